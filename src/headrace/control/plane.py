"""The control plane of one home: what should run, what runs, and everything one may ask of it."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace import __version__
from headrace.control.changes import changes_between
from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.control.fetch import fetch
from headrace.control.first_request import FirstRequest, send_first_request
from headrace.control.home import Home
from headrace.control.keeper import GatewayKeeper
from headrace.control.log_files import LogFiles
from headrace.control.metrics import Labels, Source, gauge, merge_expositions
from headrace.control.observed import Phase, Replica
from headrace.control.process import rss_bytes
from headrace.control.reconciler import Reconciler
from headrace.control.resolve import Resolver
from headrace.control.statistics import Json, merge_model_stats
from headrace.control.status import (
    GatewayStatus,
    Status,
    endpoint_statuses,
    is_routed_as_desired,
    revision_ids,
)
from headrace.control.store import Store
from headrace.core import Clock, FailedPreconditionError, HeadraceError, ModelNotFoundError
from headrace.core.spec import SystemSpec, is_model_path, parse_spec
from headrace.registry import Inspect, Registry

_LOG: Final = logging.getLogger("headrace.control")
_SCRAPE_TIMEOUT_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply changed."""

    changes: list[str]
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything is reached."""

    http_url: str
    grpc_target: str
    metrics_url: str
    admin_url: str


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """Answers questions and takes orders; `Reconciler` and `GatewayKeeper` carry them out."""

    home: Home
    store: Store
    registry: Registry
    inspect: Inspect
    reconciler: Reconciler
    keeper: GatewayKeeper
    clock: Clock
    addresses: Addresses
    gateway_address: str
    log_files: LogFiles
    sends_first_requests: bool = True
    first_requests: dict[str, FirstRequest] = field(default_factory=dict)
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    _applying: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asking: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def desired(self) -> DesiredState:
        """What should run."""
        return self.reconciler.desired

    async def apply(self, document: Mapping[str, Any]) -> Applied:
        """Want what `document` says, and nothing else.

        Raises:
            SpecError: With all mistakes; nothing was changed.
        """
        spec = parse_spec(document)
        async with self._applying:
            return await self._apply(spec)

    async def remove_endpoint(self, name: str) -> Applied:
        """Stop serving `name`; all else stays pinned as it is.

        Raises:
            ModelNotFoundError: There is no such endpoint.
            FailedPreconditionError: It is one of a repository's models, which come and go together.
        """
        async with self._applying:
            found = self.desired.endpoint(name)
            if found is None:
                raise ModelNotFoundError(name)
            if any(is_model_path(arm.revision.model) for arm in found.arms):
                message = f"'{name}' comes from a model repository; take that out of the spec"
                raise FailedPreconditionError(message)
            rest = tuple(e for e in self.desired.endpoints if e.name != name)
            return self._aim(_without(self.desired.spec, name), rest)

    async def load(self, name: str) -> Applied:
        """Serve the registry's newest version of `name`, or load a served endpoint anew.

        Raises:
            SpecError: The registry has no such model, or it cannot be served.
        """
        async with self._applying:
            served = self.desired.endpoint(name)
            document = self.desired.spec if served else _with_entry(self.desired.spec, name)
            spec = _only(parse_spec(document), name)
            found = await self._resolve(spec, reload=name if served else "")
            loaded = next((e for e in found if e.name == name), None)
            if loaded is None:
                raise ModelNotFoundError(name)
            rest = self.desired.endpoints
            # All others stay pinned as they are, and where they are.
            endpoints = tuple(loaded if e.name == name else e for e in rest)
            return self._aim(document, endpoints if served else (*rest, loaded))

    async def _apply(self, spec: SystemSpec) -> Applied:
        return self._aim(spec.document(), await self._resolve(spec))

    async def _resolve(self, spec: SystemSpec, *, reload: str = "") -> tuple[DesiredEndpoint, ...]:
        reloads = _reloads(self.desired)
        if reload:
            reloads[reload] = reloads.get(reload, 0) + 1
        resolver = Resolver(
            registry=self.registry,
            inspect=self.inspect,
            spec=spec,
            reloads=reloads,
            max_body_bytes=self.keeper.settings.max_body_bytes,
        )
        return await asyncio.to_thread(resolver.resolve)

    def _aim(self, document: dict[str, Any], endpoints: tuple[DesiredEndpoint, ...]) -> Applied:
        old = self.desired
        new = DesiredState(generation=old.generation + 1, spec=document, endpoints=endpoints)
        changes = changes_between(old, new)
        if not changes and old.generation:
            return Applied(changes=[], generation=old.generation)
        self.store.save(new)
        for change in changes:
            _LOG.info("%s", change, extra={"generation": new.generation})
        self.reconciler.want(new)
        return Applied(changes=changes, generation=new.generation)

    def request_stop(self) -> None:
        """Drain and end everything, soon."""
        _LOG.info("stopping as the management API was asked to")
        self.stop_requested.set()

    async def wait_ready(self, timeout_s: float, *, name: str = "") -> Status:
        """The status when each endpoint is ready or failed for good, or time is up.

        Args:
            name: Wait for this endpoint only; empty for all.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not _is_decided(status := self.status(), name):
                    # The gateway's coming up is no change of the reconciler's: look again anyway.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN_S):
                            await self.reconciler.wait_change()
        except TimeoutError:
            return self.status()
        return status

    async def ask_first_requests(self) -> None:
        """Send each endpoint its first request whenever its revisions changed; until cancelled."""
        if not self.sends_first_requests:
            return
        async with asyncio.TaskGroup() as group:
            while True:
                for endpoint in self._unasked():
                    self._asking[endpoint.name] = revision_ids(endpoint)
                    group.create_task(self._ask(endpoint))
                await self.reconciler.wait_change()

    def _unasked(self) -> list[DesiredEndpoint]:
        """Endpoints that requests reach, with revisions that nobody asked yet."""
        routes = {route.name: route for route in self.reconciler.published or ()}
        return [
            endpoint
            for endpoint in self.desired.endpoints
            if is_routed_as_desired(endpoint, routes.get(endpoint.name))
            and self._asking.get(endpoint.name) != revision_ids(endpoint)
        ]

    async def _ask(self, endpoint: DesiredEndpoint) -> None:
        revisions = revision_ids(endpoint)
        result = await send_first_request(
            self.gateway_address, endpoint.name, revisions=revisions, clock=self.clock
        )
        if self._asking.get(endpoint.name) != revisions:
            return  # the endpoint changed meanwhile, and a newer request is on its way
        self.first_requests[endpoint.name] = result
        if result.answered:
            extra = {"endpoint": endpoint.name, "seconds": f"{result.latency_s:.4f}"}
            _LOG.info("endpoint answered its first request", extra=extra)
        else:
            extra = {"endpoint": endpoint.name, "error": result.message}
            _LOG.error("endpoint did not answer its first request", extra=extra)
        self.reconciler.note_change()

    def status(self) -> Status:
        """How everything is now."""
        observed = self.reconciler.observed()
        pids = [r.pid for r in observed.replicas.values() if r.pid is not None]
        endpoints = endpoint_statuses(
            self.desired,
            observed,
            first_requests=self.first_requests if self.sends_first_requests else None,
            http_url=self.addresses.http_url,
            rss_bytes={pid: rss_bytes(pid) for pid in pids},
        )
        gateway = GatewayStatus(
            ready=self.keeper.is_ready,
            pid=self.keeper.pid,
            restarts=self.keeper.restarts,
            reason=self.keeper.reason or self.reconciler.publish_error,
        )
        return Status(
            ready=gateway.ready and all(endpoint.ready for endpoint in endpoints),
            version=__version__,
            generation=self.desired.generation,
            pid=os.getpid(),
            home=str(self.home.root),
            gateway=gateway,
            endpoints=endpoints,
            addresses={
                "http": self.addresses.http_url,
                "grpc": self.addresses.grpc_target,
                "metrics": self.addresses.metrics_url,
                "admin": self.addresses.admin_url,
            },
        )

    async def metrics(self) -> str:
        """All processes' metrics as one exposition; each sample of a replica says which."""
        replicas = self._ready_replicas()
        texts = await asyncio.gather(
            self._gateway_stats(), *(_scrape(replica.address) for replica in replicas)
        )
        gateway_text, *replica_texts = texts
        sources = [
            Source(text=text, labels={"replica": replica.name})
            for replica, text in zip(replicas, replica_texts, strict=True)
        ]
        return merge_expositions(
            [Source(text=self._own_metrics()), *sources, Source(text=gateway_text)]
        )

    async def model_statistics(self, name: str = "", version: str = "") -> dict[str, Json]:
        """Triton's statistics, summed over the replicas of each model version."""
        replicas = [
            replica
            for replica in self._ready_replicas()
            if name in {"", replica.endpoint} and version in {"", replica.version}
        ]
        if not replicas and name:
            raise ModelNotFoundError(name, version)
        answers = await asyncio.gather(*(_statistics(replica) for replica in replicas))
        return merge_model_stats(answers)

    def _ready_replicas(self) -> list[Replica]:
        replicas = self.reconciler.replicas.values()
        return [replica for replica in replicas if replica.phase is Phase.READY]

    async def _gateway_stats(self) -> str:
        try:
            async with asyncio.timeout(_SCRAPE_TIMEOUT_S):
                return await self.keeper.stats()
        except (HeadraceError, TimeoutError):
            return ""

    def _own_metrics(self) -> str:
        replicas = self.reconciler.replicas.values()
        ready = [(_labels(r), float(r.phase is Phase.READY)) for r in replicas]
        restarts = [(_labels(r), float(r.restarts)) for r in replicas]
        generation = float(self.desired.generation)
        is_up = float(self.keeper.is_ready)
        return "".join(
            gauge(name, text, samples)
            for name, text, samples in (
                ("headrace_control_generation", "Of the desired state.", [((), generation)]),
                ("headrace_control_gateway_ready", "1 while the gateway serves.", [((), is_up)]),
                ("headrace_control_replica_ready", "1 while the replica is ready.", ready),
                ("headrace_control_replica_restarts", "Starts after the first.", restarts),
            )
        )


def _labels(replica: Replica) -> Labels:
    return (
        ("endpoint", replica.endpoint),
        ("version", replica.version),
        ("replica", replica.name),
    )


def _is_decided(status: Status, name: str) -> bool:
    """Whether waiting for `name`, or for all if it is empty, changes nothing any more."""
    endpoints = [e for e in status.endpoints if name in {"", e.name}]
    return status.gateway.ready and all(e.ready or e.failed for e in endpoints)


def _reloads(desired: DesiredState) -> dict[str, int]:
    """How often each endpoint was loaded anew."""
    return {e.name: max(arm.revision.reload for arm in e.arms) for e in desired.endpoints if e.arms}


def _with_entry(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`document` with an endpoint for the registry's newest version of `name`."""
    entry = {"name": name, "model": name}
    return {"version": 1, **document, "endpoints": [*document.get("endpoints", []), entry]}


def _only(spec: SystemSpec, name: str) -> SystemSpec:
    """`spec` with the entry of endpoint `name`, or else those that may be repositories."""
    mine = tuple(entry for entry in spec.endpoints if entry.name == name)
    others = tuple(e for e in spec.endpoints if e.model is not None and is_model_path(e.model))
    return spec.model_copy(update={"endpoints": mine or others})


def _without(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    endpoints = [entry for entry in document.get("endpoints", []) if entry.get("name") != name]
    return {**document, "endpoints": endpoints}


async def _scrape(address: str) -> str:
    try:
        answer = await fetch(address, "/metrics", timeout_s=_SCRAPE_TIMEOUT_S)
    except HeadraceError:
        return ""
    return answer.body.decode("utf-8", "replace") if answer.status == 200 else ""  # noqa: PLR2004  # HTTP's OK


async def _statistics(replica: Replica) -> Json:
    path = f"/v2/models/{replica.endpoint}/versions/{replica.version}/stats"
    try:
        answer = await fetch(replica.address, path, timeout_s=_SCRAPE_TIMEOUT_S)
        return msgspec.json.decode(answer.body) if answer.status == 200 else None  # noqa: PLR2004  # HTTP's OK
    except (HeadraceError, msgspec.DecodeError):
        return None
