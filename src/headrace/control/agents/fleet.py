"""Fleet of the gateways on other hosts and on this host, with the interface of one gateway."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.agents.bundles import SharedSecrets, make_bundle
from headrace.control.agents.counts import FleetCounts
from headrace.control.agents.messages import (
    AgentStatus,
    Bundle,
    EnvoyCounts,
    Poll,
    checked_report,
)
from headrace.control.agents.registry import (
    AgentRegistry,
    AgentTimeouts,
    DuplicateNames,
    GatewayState,
    PublicationOutcome,
    SyncChange,
    SyncStatus,
    event_of,
    families,
    next_change_s,
    should_send,
)
from headrace.control.base.journal import ChangeSignal, wait_for
from headrace.control.gateway.routes import GatewayRefusedError, NoGatewayError, reachable_route
from headrace.control.gateway.supervisor import EnvoySupervisor, routes_file
from headrace.control.gateway.tls import GatewayTls
from headrace.control.limits.limiter import Rules, make_rules
from headrace.control.model.records import Event
from headrace.core import Clock, HeadraceError
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    EnvoySettings,
    GatewayPolicy,
    GatewayStatistics,
    GatewayUnavailableError,
    Handshakes,
    SnapshotRejectedError,
    TokenStatistics,
)
from headrace.observe.metrics import Family

_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 1.0


async def _discard_event(_events: Sequence[Event]) -> None:
    """Discard events."""


@dataclass(slots=True, kw_only=True)
class GatewayFleet:
    """Offers every gateway the newest snapshot, waits for acknowledgements, and sums counts."""

    settings: EnvoySettings
    clock: Clock
    routes_path: Path
    counts: FleetCounts
    local: EnvoySupervisor | None = None
    """The gateway on this host; None without one."""
    tls: GatewayTls | None = None
    policy: GatewayPolicy = field(default_factory=GatewayPolicy)
    secrets: SharedSecrets = field(default_factory=SharedSecrets)
    timeouts: AgentTimeouts = field(default_factory=AgentTimeouts)
    is_needed: bool = True
    """Whether routes count as published only after a gateway acknowledged them."""
    limits_port: int | None = None
    socket_dir: Path | None = None
    """Directory of the sockets of replicas on this host."""
    publish_rules: Callable[[Rules], None] = lambda _rules: None
    emit: Callable[[Sequence[Event]], Awaitable[None]] = _discard_event
    """Stores events."""
    changes: ChangeSignal = field(default_factory=ChangeSignal)
    registry: AgentRegistry = field(init=False)
    _duplicate_names: DuplicateNames = field(default_factory=DuplicateNames)
    _bundle: Bundle | None = None
    _encoded: bytes = b""
    _is_decided: bool = False
    _routes: tuple[EndpointRoute, ...] = ()
    _taken: tuple[EndpointRoute, ...] = ()
    _missing: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.registry = AgentRegistry(timeouts=self.timeouts)
        self.secrets.on_change = self._resend

    @property
    def pid(self) -> int | None:
        """Return the pid of the Envoy on this host; None without one."""
        return None if self.local is None else self.local.pid

    @property
    def is_ready(self) -> bool:
        """Whether any gateway accepts requests."""
        if not self.is_needed or (self.local is not None and self.local.is_ready):
            return True
        return any(
            report.ready for report in self.registry.live(now=self.clock.monotonic()).values()
        )

    @property
    def restarts(self) -> int:
        """Return the restarts of the Envoy on this host; 0 without one."""
        return 0 if self.local is None else self.local.restarts

    @property
    def reason(self) -> str:
        """Return why the Envoy on this host, or else the fleet, does not serve."""
        if self.local is not None and self.local.reason:
            return self.local.reason
        if self.is_ready:
            return ""
        states = self.states()
        reasons = "; ".join(
            f"gateway '{state.name}': {state.reason}" for state in states if state.reason
        )
        return reasons or ("no gateway is connected" if not states else "no gateway serves")

    def states(self) -> tuple[GatewayState, ...]:
        """Return the states of gateways on other hosts."""
        return self.registry.states(now=self.clock.monotonic())

    # --- configuration of gateways ---

    async def open(self, routes: Sequence[EndpointRoute]) -> bool:
        """Offer `routes` as last acknowledged; return whether the local Envoy was adopted.

        Raises:
            HeadraceError: The local Envoy cannot be started.
        """
        self._routes = self._taken = tuple(routes)
        self._is_decided = bool(routes)
        adopted = self.local is not None and await self.local.open(routes)
        await self._offer()
        return adopted

    async def run(self) -> None:
        """Supervise the local Envoy and report sync changes until cancelled, after `open`."""
        async with asyncio.TaskGroup() as group:
            if self.local is not None:
                group.create_task(self.local.run())
            group.create_task(self._watch())

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        """Publish `routes`; return when all connected gateways that are not behind use them.

        Waits at most `max_behind_s` for a gateway that has just fallen behind.

        Raises:
            GatewayRefusedError: A gateway refused the routes; the message names it.
            NoGatewayError: No gateway is connected; the first to connect gets the routes.
            GatewayUnavailableError: No gateway has the routes, or the local gateway does not run.
        """
        self._routes = tuple(routes)
        if not self._is_decided:
            self._is_decided = True
            self.changes.notify()  # polls wait for the first publication
        number = await self._offer()
        here = [] if self.local is None else [self.local.publish(routes)]
        await asyncio.gather(*here, self._accepted(number))
        self._taken = tuple(routes)
        routes_file(self.routes_path).try_save(tuple(routes))
        if self.tls is not None:
            await self.tls.forget_unused((*routes, *self._routes))

    async def set_policy(self, policy: GatewayPolicy) -> None:
        """Set the access policy at every gateway, like `EnvoySupervisor.set_policy`.

        Raises:
            GatewayUnavailableError: A gateway is behind and uses an older policy.
        """
        previous, self.policy = self.policy, policy
        number = await self._offer()
        try:
            here = [] if self.local is None else [self.local.set_policy(policy)]
            await asyncio.gather(*here, self._accepted(number))
        except SnapshotRejectedError:
            await self._without_refused(previous, policy)
            raise
        sync_statuses = self.registry.sync_statuses(now=self.clock.monotonic(), offer=number)
        if late := sorted(
            name for name, status in sync_statuses.items() if status is SyncStatus.BEHIND
        ):
            names = ", ".join(f"'{name}'" for name in late)
            raise GatewayUnavailableError(
                f"gateways are behind and still apply the previous caller policy: {names}"
            )

    async def _without_refused(self, previous: GatewayPolicy, policy: GatewayPolicy) -> None:
        """Find what was refused: newer routes or the policy. Revoked keys stay revoked."""
        if self._taken != self._routes and await self._takes(self._taken):
            return
        if self.policy is policy:
            self.policy = replace(previous, keys=policy.keys)
            await self._takes(self._taken)

    async def _takes(self, routes: tuple[EndpointRoute, ...]) -> bool:
        """Whether gateways accept the current policy with these routes."""
        previous, self._routes = self._routes, routes
        try:
            number = await self._offer()
        finally:
            self._routes = previous
        try:
            await self._accepted(number)
        except SnapshotRejectedError:
            return False
        return True

    async def take_certificate(self, name: str) -> None:
        """Send requests to upstreams that lacked a valid certificate."""
        if self.local is not None:
            await self.local.take_certificate(name)
        if name in self._missing:
            await self._offer()

    def accepted(self) -> bytes:
        """Return the newest bundle as JSON if a gateway on another host uses it; else nothing."""
        statuses = self.registry.sync_statuses(now=self.clock.monotonic()).values()
        return self._encoded if self._is_decided and SyncStatus.CURRENT in statuses else b""

    def upstream_problem(self, upstream: UpstreamSpec | None) -> str:
        """Return why an upstream gets no requests because of this side's TLS; empty otherwise."""
        return "" if self.tls is None else self.tls.upstream_problem(upstream, self._missing)

    async def stop(
        self, *, drain_s: float, drained: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Stop the Envoy on this host, see `EnvoyGateway.stop`; the others continue to serve."""
        await asyncio.to_thread(self.counts.save)
        if self.local is not None:
            await self.local.stop(drain_s=drain_s, drained=drained)

    async def _offer(self) -> int:
        """Offer the current configuration as the newest; return its number."""
        if self.tls is not None:
            self._missing = await self.tls.prepare(self._routes)
        self.publish_rules(make_rules(self.policy.access, self._routes))
        return self._make()

    def _resend(self) -> None:
        """Offer the same configuration with changed secrets."""
        if self._bundle is not None:
            self._make()

    def _make(self) -> int:
        bundle = make_bundle(
            self.settings,
            [reachable_route(route, self._missing) for route in self._routes],
            self.policy,
            secrets=self.secrets.all(),
            limits_port=self.limits_port,
            socket_dir=self.socket_dir,
        )
        if self._bundle is None or bundle.version != self._bundle.version:
            self._bundle, self._encoded = bundle, msgspec.json.encode(bundle)
            self.registry.offer(bundle.version, now=self.clock.monotonic())
            self.counts.note_splits(bundle.version, bundle.routes)
            self.changes.notify()
        return self.registry.newest

    async def _accepted(self, number: int) -> None:
        """Return when no gateway is waited for; raises the errors of `publish`."""
        while True:
            changes = self.changes.next
            now = self.clock.monotonic()
            match self.registry.outcome(number, now=now):
                case PublicationOutcome.DONE:
                    return
                case PublicationOutcome.REFUSED:
                    raise GatewayRefusedError(self.registry.refusals(number, now=now))
                case PublicationOutcome.NOBODY:
                    if self.local is not None or not self.is_needed:
                        return
                    raise NoGatewayError(
                        "no gateway is connected; the first one that connects receives the routes"
                    )
                case PublicationOutcome.BEHIND:
                    if self.local is not None:
                        return
                    names = ", ".join(f"'{state.name}'" for state in self.states())
                    raise GatewayUnavailableError(f"all gateways are behind: {names}")
                case PublicationOutcome.WAIT:
                    due_s = next_change_s(
                        self.registry.last_reports,
                        self.registry.offers,
                        now=now,
                        timeouts=self.timeouts,
                    )
                    await wait_for(changes, max(min(due_s, _POLL_INTERVAL_S), 0.01))

    # --- reports of gateways ---

    async def poll(
        self, poll: Poll, *, wait_s: float, has_desired_state: Callable[[], bool] = lambda: False
    ) -> tuple[int, bytes | None]:
        """Return a count request and a newer bundle, when either is due or `wait_s` has passed.

        Args:
            has_desired_state: Whether a first publication is expected.
        """
        deadline = self.clock.monotonic() + wait_s
        while True:
            changes = self.changes.next
            has_newer = self._bundle is not None and should_send(
                held=poll.held,
                refused=poll.refused,
                newest=self._bundle.version,
                has_routes=self._is_decided,
                has_desired_state=has_desired_state(),
            )
            bundle = self._encoded if has_newer else None
            left_s = deadline - self.clock.monotonic()
            if (
                bundle is not None
                or self.counts.request_number != poll.request_number
                or left_s <= 0
            ):
                return self.counts.request_number, bundle
            await wait_for(changes, left_s)

    def take_report(self, report: AgentStatus) -> dict[str, int]:
        """Record a gateway's report; return the waiting requests by endpoint to start.

        Raises:
            InvalidArgumentError: The report is inconsistent.
        """
        report = self._duplicate_names.with_unique_name(checked_report(report))
        report = self.counts.without_unknown_tokens(report)
        newest = "" if self._bundle is None else self._bundle.version
        has_returned = self.registry.take_report(report, now=self.clock.monotonic())
        self.counts.take_report(report, newest=newest, has_returned=has_returned)
        holds = {} if self._bundle is None else self._bundle.holds
        self.changes.notify()
        return {endpoint: held for endpoint, held in report.held.items() if endpoint in holds}

    async def _watch(self) -> None:
        """Report changed sync states and save counts, until cancelled."""
        while True:
            await wait_for(self.changes.next, _POLL_INTERVAL_S)
            await self._record_changes(self.registry.sync_changes(now=self.clock.monotonic()))
            await self.counts.save_if_due(self.clock.monotonic())

    async def _record_changes(self, sync_changes: Iterable[SyncChange]) -> None:
        events = [event_of(turn, timestamp=self.clock.now()) for turn in sync_changes]
        for event in events:
            is_bad = event.reason in {"GatewayBehind", "GatewayLost", "GatewayRefused"}
            _LOG.log(logging.WARNING if is_bad else logging.INFO, "%s", event.message)
        try:
            await self.emit(events)
        except HeadraceError as error:
            _LOG.error("cannot write an event", extra={"error": str(error)})

    # --- counts ---

    async def read_arms(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return the counts of all gateways for these endpoints' splits, up to this call.

        Raises:
            GatewayUnavailableError: No gateway is connected, or one does not answer.
        """
        if self.local is not None:
            self.counts.take_local(await self.local.read_arms(endpoints), splits=True)
        self.counts.ask()
        self.changes.notify()
        if not await self._have_answered(self.counts.request_number):
            raise GatewayUnavailableError("a gateway does not report its counters")
        live = self.registry.counts(now=self.clock.monotonic())
        return self.counts.splits(set(endpoints), live.values())

    async def _have_answered(self, question: int) -> bool:
        """Whether every gateway that is not behind has answered in time."""
        deadline = self.clock.monotonic() + self.counts.answer_s
        while True:
            changes, now = self.changes.next, self.clock.monotonic()
            sync_statuses = self.registry.sync_statuses(now=now)
            silent = [
                name
                for name, report in self.registry.live(now=now).items()
                if report.ask < question and sync_statuses[name] is not SyncStatus.BEHIND
            ]
            if not silent:
                return True
            if now >= deadline:
                # A stopped gateway is silent and soon counts as lost: until then the others decide.
                return len(silent) < len(sync_statuses)
            await wait_for(changes, deadline - now)

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return the counts of all gateways for all requests to these endpoints, each once.

        Raises:
            HeadraceError: The local gateway does not answer.
        """
        if self.local is not None:
            self.counts.take_local(await self.local.read_endpoints(endpoints), splits=False)
        return self.counts.every(set(endpoints))

    async def endpoint_statistics(self) -> GatewayStatistics:
        """Return the counts of all gateways for all requests to known endpoints."""
        names = {route.name for route in self._routes}
        return await self.read_endpoints(names)

    def agent_counts(self) -> Mapping[str, EnvoyCounts]:
        """Return the last counts of each connected gateway on another host."""
        return self.registry.counts(now=self.clock.monotonic())

    async def token_statistics(self) -> TokenStatistics:
        """Return those of the local gateway; see `agent_counts` for the others."""
        return TokenStatistics() if self.local is None else await self.local.token_statistics()

    async def in_flight(self) -> dict[tuple[str, str], int]:
        """Return the requests in progress at connected gateways, by endpoint and arm."""
        requests = {} if self.local is None else await self.local.in_flight()
        for counts in self.registry.counts(now=self.clock.monotonic()).values():
            for active in counts.active:
                arm = (active.endpoint, active.key)
                requests[arm] = requests.get(arm, 0) + active.requests
        return requests

    async def handshakes(self) -> dict[tuple[str, str], Handshakes]:
        """Return the TLS handshakes of all connected gateways with upstreams."""
        sums = {} if self.local is None else await self.local.handshakes()
        for counts in self.registry.counts(now=self.clock.monotonic()).values():
            for upstream in counts.upstreams:
                arm = (upstream.endpoint, upstream.key)
                before = asdict(sums.get(arm, Handshakes()))
                more = asdict(upstream.handshakes)
                sums[arm] = Handshakes(**{name: before[name] + more[name] for name in before})
        return sums

    async def stats(self, *, full: bool) -> str:
        """Return the local Envoy's metrics; each agent serves those of its own Envoy."""
        return "" if self.local is None else await self.local.stats(full=full)

    def families(self) -> list[Family]:
        """Return metrics about gateways on other hosts."""
        return families(self.states())
