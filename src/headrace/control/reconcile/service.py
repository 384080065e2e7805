"""Reconciling service for gateways, replicas, pools and upstreams."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from headrace.control.agents.build import Gateway
from headrace.control.base.context import ServiceContext
from headrace.control.base.faults import Faults
from headrace.control.gateway.certificates import Certificates
from headrace.control.gateway.first_request import NEXT_TRY, FirstRequest, send_first_request
from headrace.control.gateway.upstream_watch import UpstreamWatch
from headrace.control.limits.service import LimitService
from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.control.reconcile.caller_policy import CallerPolicy, Keys
from headrace.control.reconcile.pools import PoolSync
from headrace.control.reconcile.publication import Reconciling
from headrace.control.reconcile.reports import Reports
from headrace.control.reconcile.status import is_routed_as_desired, revision_ids
from headrace.core import Clock, ExampleValue, HeadraceError
from headrace.registry import Registry

_LOG: Final = logging.getLogger("headrace.control")


@dataclass(slots=True, kw_only=True)
class FirstRequests:
    """Sends each endpoint a first request when its revisions change, until one is answered."""

    reconciler: Reconciling
    registry: Registry
    address: str
    """Address at which the control plane reaches the gateway."""
    clock: Clock
    faults: Faults
    results: dict[str, FirstRequest] = field(default_factory=dict)
    """Newest result by endpoint."""
    _asking: dict[str, tuple[str, ...]] = field(default_factory=dict)

    async def run(self) -> None:
        """Send due first requests until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for endpoint in self._pending():
                    self._asking[endpoint.name] = revision_ids(endpoint)
                    group.create_task(self._ask(endpoint))
                await self.reconciler.changes.wait()

    def repeat_request(self) -> None:
        """Retry upstreams that did not answer, because the connection to them has changed."""
        for endpoint in self.reconciler.desired.endpoints:
            first = self.results.get(endpoint.name)
            leads_out = any(arm.revision.upstream is not None for arm in endpoint.arms)
            if leads_out and first is not None and not first.answered:
                del self.results[endpoint.name]
                self._asking.pop(endpoint.name, None)
        self.reconciler.changes.notify()

    def _pending(self) -> list[DesiredEndpoint]:
        """Return the reachable endpoints with revisions that got no first request yet."""
        routes = {route.name: route for route in self.reconciler.publication.routes}
        endpoints = self.reconciler.desired.endpoints
        self.faults.keep_only("first request", [endpoint.name for endpoint in endpoints])
        return [
            endpoint
            for endpoint in endpoints
            if endpoint.gets_first_request
            and is_routed_as_desired(endpoint, routes.get(endpoint.name))
            and self._asking.get(endpoint.name) != revision_ids(endpoint)
        ]

    async def _ask(self, endpoint: DesiredEndpoint) -> None:
        name, revisions, result = endpoint.name, revision_ids(endpoint), None
        with self.faults.contain("first request", name):
            result = await send_first_request(
                self.address,
                name,
                revisions=revisions,
                clock=self.clock,
                example=await asyncio.to_thread(self._example, endpoint),
            )
        if result is None:
            return
        if self._asking.get(name) != revisions:
            return  # the endpoint changed meanwhile, and a newer request is on its way
        before = self.results.get(name)
        failures = before.failures if before and before.revisions == revisions else 0
        failures = 0 if result.answered else failures + 1
        self.results[name] = replace(result, failures=failures)
        self.reconciler.changes.notify()
        if result.answered:
            extra = {"endpoint": name, "seconds": f"{result.latency_s:.4f}"}
            _LOG.info("endpoint answered its first request", extra=extra)
            return
        extra = {"endpoint": name, "error": result.message}
        _LOG.error("endpoint did not answer its first request", extra=extra)
        await asyncio.sleep(NEXT_TRY.delay_s(failures))
        latest = self.results.get(name)
        if self._asking.get(name) == revisions and latest and not latest.answered:
            del self._asking[name]
            self.reconciler.changes.notify()

    def _example(self, endpoint: DesiredEndpoint) -> Mapping[str, ExampleValue]:
        """Return the endpoint's example, else that of its model in the registry. Blocking."""
        if endpoint.example is not None:
            return dict(endpoint.example)
        arm = max(endpoint.arms, key=lambda arm: arm.weight)
        try:
            return self.registry.get(arm.revision.model).signature.example
        except HeadraceError:
            return {}


class ReconcileService:
    """Brings replicas and gateways to the desired state, and checks what they serve."""

    def __init__(
        self,
        context: ServiceContext,
        *,
        reconciler: Reconciling,
        gateway_supervisor: Gateway,
        certificates: Certificates,
        limits: LimitService | None,
        gateway_address: str,
        sends_first_requests: bool,
    ) -> None:
        """Create the parts around one reconciler and one gateway.

        Args:
            limits: None if another control plane counts rate limits.
            gateway_address: Address at which the control plane reaches the gateway.
            sends_first_requests: Whether an endpoint is ready only once it answered a request.
        """
        clock, faults = context.clock, context.faults
        self.reconciler: Final = reconciler
        self.gateway_supervisor: Final = gateway_supervisor
        self.limits: Final = limits
        self.reports: Final = Reports(replicas=reconciler.replicas, faults=faults)
        self.first_requests: Final = FirstRequests(
            reconciler=reconciler,
            registry=context.registry,
            address=gateway_address,
            clock=clock,
            faults=faults,
        )
        self.upstreams: Final = UpstreamWatch(
            routes=lambda: reconciler.publication.routes,
            read=gateway_supervisor.handshakes,
            on_change=self.first_requests.repeat_request,
            clock=clock,
            emit=context.journal.write,
            faults=faults,
        )
        self.callers: Final = CallerPolicy(
            store=context.store,
            clock=clock,
            gateway=gateway_supervisor,
            reconciler=reconciler,
            faults=faults,
        )
        self.keys: Final = Keys(store=context.store, clock=clock, apply=self.callers.apply)
        self.pools: Final = PoolSync(world=reconciler, clock=clock, faults=faults)
        self.sends_first_requests: Final = sends_first_requests
        self._certificates: Final = certificates

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_gateway())
            if self.limits is not None:
                group.create_task(self.limits.run())
            if self.sends_first_requests:
                group.create_task(self.first_requests.run())
            for part in (self.reconciler, self.pools, self.upstreams):
                group.create_task(part.run())
            group.create_task(self._certificates.run(self._use_certificate))

    async def _run_gateway(self) -> None:
        await self.gateway_supervisor.open(self.reconciler.publication.routes)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.gateway_supervisor.run())
            group.create_task(self.callers.run())

    async def _use_certificate(self, name: str) -> None:
        """Use a certificate that had no valid version before."""
        await self.gateway_supervisor.take_certificate(name)
        self.first_requests.repeat_request()

    def arm_problem(self, endpoint: str, arm: DesiredArm) -> str:
        """Return why an arm cannot run; empty if it can.

        Its model cannot be served, its upstream is not usable, or its replicas cannot be created.
        """
        if arm.revision.unloadable:
            return arm.revision.unloadable
        upstream = arm.revision.upstream
        if upstream is None:
            return self.reconciler.arm_problem(endpoint, arm)
        problem = self.gateway_supervisor.upstream_problem(upstream)
        return problem or self.upstreams.problem(endpoint, arm.key, upstream)
