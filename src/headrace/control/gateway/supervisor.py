"""Envoy process supervisor, with records by which a new control plane adopts Envoy."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.base.faults import LOOP, Faults, message_of
from headrace.control.base.ownership import HomeIdentity, ProcessOwner
from headrace.control.gateway.routes import RoutesLeftOutError, gateway_route
from headrace.control.gateway.server_weights import (
    POLL_INTERVAL_S,
    ServerWeights,
    resolve_host,
)
from headrace.control.gateway.tls import GatewayTls
from headrace.control.limits.limiter import Rules, make_rules
from headrace.control.model.desired import POOL_PREFIX
from headrace.control.model.observed import CRASHED, STABLE_AFTER_S
from headrace.core import Clock, HeadraceError
from headrace.core.processes import start_ticks
from headrace.core.spec.observe import LogMode, RequestLogSpec, TracingSpec
from headrace.core.spec.upstream import UpstreamSpec
from headrace.core.state_file import StateFile
from headrace.gateway import (
    WATCHED_FILES,
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    GatewayPolicy,
    GatewayStatistics,
    GatewayUnavailableError,
    Handshakes,
    ListenerTls,
    NotOurGatewayError,
    SecretFiles,
    Snapshot,
    SnapshotBuilder,
    SnapshotRejectedError,
    TokenStatistics,
)
from headrace.observe.metrics import Family

_FIXED: Final = ("host", "http_port", "grpc_port", "max_body_bytes", "access_log")
"""Settings that a running Envoy cannot change."""
_CHANGEABLE: Final = ("tls", "request_log", "tracing", "counts_all")
"""Settings that it can change; existing connections drain."""


class GatewayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Record of the running Envoy and its settings."""

    pid: int
    start_ticks: int
    host: str
    http_port: int
    grpc_port: int
    max_body_bytes: int
    access_log: bool
    home: HomeIdentity | None = None
    request_log: RequestLogSpec = RequestLogSpec(mode=LogMode.ALL)
    tracing: TracingSpec | None = None
    tls: ListenerTls | None = None
    files: tuple[str, ...] = ()
    counts_all: bool = False

    @classmethod
    def of(cls, settings: EnvoySettings, pid: int, home: HomeIdentity | None) -> "GatewayRecord":
        """Return the record of an Envoy that `home` started with `settings`."""
        of_settings = {name: getattr(settings, name) for name in (*_FIXED, *_CHANGEABLE)}
        ticks = start_ticks(pid) or 0
        return cls(pid=pid, start_ticks=ticks, home=home, files=WATCHED_FILES, **of_settings)

    def fits(self, settings: EnvoySettings) -> bool:
        """Whether it can change to `settings` while it runs."""
        return self.files == WATCHED_FILES and all(
            getattr(self, name) == getattr(settings, name) for name in _FIXED
        )

    def is_current(self, settings: EnvoySettings) -> bool:
        """Whether it has all changeable values of `settings`."""
        return all(getattr(self, name) == getattr(settings, name) for name in _CHANGEABLE)


def gateway_record_file(path: Path) -> StateFile[GatewayRecord]:
    """Return the file of the record of this home's Envoy."""
    return StateFile(path, GatewayRecord, "the record of the gateway")


def routes_file(path: Path) -> StateFile[tuple[EndpointRoute, ...]]:
    """Return the file of the routes that a gateway acknowledged last."""
    return StateFile(path, tuple[EndpointRoute, ...], "the routes of the gateway")


def read_gateway_record(path: Path, owner: ProcessOwner) -> GatewayRecord | None:
    """Return the record of a running Envoy that belongs to `owner`, or None."""
    record = gateway_record_file(path).load()
    return record if record is not None and owner.is_running(record) else None


_LOG: Final = logging.getLogger("headrace.control")
_WATCH_LOGS_S: Final = 30.0
_UP_TIMEOUT_S: Final = 15.0


@dataclass(slots=True, kw_only=True)
class EnvoySupervisor:
    """Restarts one Envoy while `run` is awaited; Envoy survives the end of `run`."""

    envoy: EnvoyGateway
    owner: ProcessOwner
    record_path: Path
    routes_path: Path
    clock: Clock
    tls: GatewayTls | None = None
    policy: GatewayPolicy = field(default_factory=GatewayPolicy)
    """Initial caller policy; `set_policy` changes it. `publish_rules` gets the limits for the rate
    limit service before the gateway uses them.
    """
    publish_rules: Callable[[Rules], None] = lambda _rules: None
    restarts: int = 0
    reason: str = ""
    resolve: Callable[[str], Awaitable[Collection[str]]] = resolve_host
    """Returns the IP addresses of an upstream's name."""
    faults: Faults = field(default_factory=Faults)
    _servers: ServerWeights = field(init=False)
    _builder: SnapshotBuilder = field(init=False)
    _routes: tuple[EndpointRoute, ...] = ()
    _missing: frozenset[str] = frozenset()
    _taken: tuple[EndpointRoute, ...] = ()
    _translated: dict[str, tuple[EndpointRoute, frozenset[str], EndpointRoute]] = field(
        default_factory=dict
    )
    _has_tokens: bool = False
    """Whether an endpoint had OpenAI's API since `open`."""
    _up: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._builder = SnapshotBuilder(self.settings)
        self._servers = ServerWeights(directory=self.settings.run_dir, resolve=self.resolve)

    @property
    def settings(self) -> EnvoySettings:
        """Settings with which Envoy is started."""
        return self.envoy.settings

    @property
    def pid(self) -> int | None:
        """Envoy's pid; None while it does not run."""
        return self.envoy.pid

    @property
    def secrets(self) -> SecretFiles:
        """Files of Envoy's certificates."""
        return self.envoy.secrets

    @property
    def is_ready(self) -> bool:
        """Whether Envoy serves."""
        return self._up.is_set() and self.envoy.pid is not None

    def states(self) -> tuple[()]:
        """Return the states of gateways on other hosts: none."""
        return ()

    def families(self) -> list[Family]:
        """Return metrics of gateways on other hosts: none."""
        return []

    async def open(self, routes: Sequence[EndpointRoute]) -> bool:
        """Adopt the running Envoy or start one with `routes`; return whether it was adopted.

        Raises:
            HeadraceError: Envoy cannot be started; the message has the reason.
        """
        self._routes = tuple(routes)
        self._publish_rules(self._routes)
        record = read_gateway_record(self.record_path, self.owner)
        if record is not None and await self._adopt(record):
            await self._prepare(self._routes)
            if not record.is_current(self.settings):
                await self._publish(self._routes)
                self._write_record(record.pid)
            return True
        await self._start()
        return False

    async def run(self) -> None:
        """Restart Envoy whenever it ends, and weigh servers, until cancelled; call after `open`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._weigh_servers())
            group.create_task(self._keep_up())

    async def _weigh_servers(self) -> None:
        while True:
            with self.faults.contain(LOOP, "weights of servers"):
                if await self._servers.poll((*self._taken, *self._routes)):
                    await self._publish(self._routes)
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            started = self.clock.monotonic()
            await self._watch()
            self._up.clear()
            stable = self.clock.monotonic() - started >= STABLE_AFTER_S
            failures = 1 if stable else failures + 1
            self.reason = "ended unexpectedly"
            _LOG.error("gateway ended", extra={"failures": failures})
            while not self._up.is_set():
                await asyncio.sleep(CRASHED.delay_s(failures))
                failures += not await self._try_start()

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        """Publish `routes`; return when requests follow them.

        Raises:
            RoutesLeftOutError: The routes are in force except those that are not valid.
            HeadraceError: Envoy rejected them or does not run.
        """
        self._routes = tuple(routes)  # a restart applies them too
        self._has_tokens |= any(route.serves_openai for route in self._routes)
        await self._wait_up()
        left_out = await self._publish(self._routes)
        self._write_routes(self._taken)
        if left_out:
            raise RoutesLeftOutError(self._taken, left_out)

    async def take_certificate(self, name: str) -> None:
        """Route to upstreams that had no valid certificate before."""
        try:
            if name in self._missing:
                await self._publish(self._routes)
        except HeadraceError as error:
            _LOG.error("cannot publish routes", extra={"error": str(error)})

    def upstream_problem(self, upstream: UpstreamSpec | None) -> str:
        """Return why an upstream gets no requests because of our TLS files; empty if it does."""
        return "" if self.tls is None else self.tls.upstream_problem(upstream, self._missing)

    async def set_policy(self, policy: GatewayPolicy) -> None:
        """Set the caller policy; return when the gateway applies it, independent of newer routes.

        Raises:
            HeadraceError: Envoy rejected it, and the former one stays, but with the new API keys,
                so that a revoked key is rejected in any case. Or Envoy does not run, and `policy`
                applies from its next start.
        """
        previous, self.policy = self.policy, policy
        await self._wait_up()
        try:
            await self._publish(self._routes)
        except SnapshotRejectedError:
            try:
                if self._taken == self._routes:
                    raise
                await self._publish(self._taken)
            except SnapshotRejectedError:
                if self.policy is policy:
                    self.policy = replace(previous, keys=policy.keys)
                    await self._publish(self._taken)
                raise

    async def _publish(self, routes: tuple[EndpointRoute, ...]) -> dict[str, str]:
        """Put `routes` into force; return why some are left out, by endpoint."""
        self._publish_rules(routes)
        await self._prepare(routes)
        in_force, left_out = self._translate(routes)
        await self.envoy.publish(self._snapshot())
        self._taken = in_force
        if self.tls is not None:
            # A newer publication may already be waiting.
            await self.tls.forget_unused((*in_force, *self._routes))
        return left_out

    async def read_arms(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return Envoy's counts of these endpoints' splits.

        Raises:
            HeadraceError: Envoy does not answer.
        """
        statistics = await self.envoy.arm_statistics(endpoints)
        upstreams = [
            (route.name, arm.key)
            for route in self._routes
            for arm in route.arms
            if arm.upstream is not None and route.name in set(endpoints)
        ]
        healthy = {}
        for name, key in upstreams:
            up, _ = await self.envoy.upstream_health(name, key)
            healthy[name, key] = up > 0
        return msgspec.structs.replace(statistics, healthy=healthy)

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return Envoy's counts of all requests to these endpoints, without health.

        Raises:
            HeadraceError: Envoy does not answer.
        """
        return await self.envoy.endpoint_statistics(endpoints)

    async def endpoint_statistics(self) -> GatewayStatistics:
        """Return Envoy's counts of all requests to its endpoints.

        Raises:
            HeadraceError: Envoy does not answer.
        """
        return await self.read_endpoints({route.name for route in self._routes})

    async def token_statistics(self) -> TokenStatistics:
        """Return the tokens and times of answers of OpenAI's API since Envoy's start.

        Empty if no endpoint had that API yet: Envoy would search all of its counters. Answers of a
        removed endpoint may still end.

        Raises:
            HeadraceError: Envoy does not answer.
        """
        self._has_tokens |= any(route.serves_openai for route in self._routes)
        if not self._has_tokens:
            return TokenStatistics()
        return await self.envoy.token_statistics()

    async def in_flight(self) -> dict[tuple[str, str], int]:
        """Return the requests in flight by endpoint and arm.

        Raises:
            HeadraceError: Envoy does not answer.
        """
        return await self.envoy.in_flight()

    async def handshakes(self) -> dict[tuple[str, str], Handshakes]:
        """Return the TLS handshakes with upstreams by endpoint and arm.

        Raises:
            HeadraceError: Envoy does not answer.
        """
        return await self.envoy.handshakes()

    async def stats(self, *, full: bool) -> str:
        """Return Envoy's metrics in Prometheus' text format; `full` as in `EnvoyGateway.stats`."""
        return await self.envoy.stats(full=full)

    async def stop(
        self, *, drain_s: float, drained: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Drain requests, then stop Envoy; see `EnvoyGateway.stop`."""
        self._up.clear()
        await self.envoy.stop(drain_s, drained)
        self.record_path.unlink(missing_ok=True)
        self.routes_path.unlink(missing_ok=True)
        self.secrets.keep_only(())  # the keys are not needed any more

    async def _prepare(self, routes: Sequence[EndpointRoute]) -> None:
        """Prepare certificates for the upstreams of `routes`."""
        missing = frozenset[str]() if self.tls is None else await self.tls.prepare(routes)
        self._missing = missing

    def _publish_rules(self, routes: Iterable[EndpointRoute]) -> None:
        self.publish_rules(make_rules(self.policy.access, routes))

    def _translate(
        self, routes: Iterable[EndpointRoute]
    ) -> tuple[tuple[EndpointRoute, ...], dict[str, str]]:
        """Return the routes for Envoy, and why others cannot be built, by endpoint.

        An endpoint whose new route cannot be built keeps its former one.
        """
        previous, self._translated = self._translated, {}
        in_force, left_out = list[EndpointRoute](), dict[str, str]()
        for route in routes:
            if route.name.startswith(POOL_PREFIX):
                in_force.append(route)  # callers reach a pool only by its models' names
                continue
            translation = previous.get(route.name)
            if translation is None or translation[:2] != (route, self._missing):
                try:
                    endpoint = gateway_route(route, self._missing)
                    endpoint.check()
                except Exception as error:  # noqa: BLE001  # one bad route stops no other
                    left_out[route.name] = message_of(error)
                else:
                    translation = (route, self._missing, endpoint)
            if translation is not None:
                self._translated[route.name] = translation
                in_force.append(translation[0])
        return tuple(in_force), left_out

    def _snapshot(self) -> Snapshot:
        endpoints = [
            self._servers.weighted_route(endpoint) for _, _, endpoint in self._translated.values()
        ]
        return self._builder.build(endpoints, self.policy)

    async def _wait_up(self) -> None:
        try:
            async with asyncio.timeout(_UP_TIMEOUT_S):
                await self._up.wait()
        except TimeoutError:
            message = f"the gateway does not run: {self.reason or 'it is being started'}"
            raise GatewayUnavailableError(message) from None

    async def _adopt(self, record: GatewayRecord) -> bool:
        process = self.owner.adopt(record)
        if process is None:
            return False
        try:
            await self.envoy.adopt(process)
        except NotOurGatewayError as error:
            _LOG.warning("cannot adopt the gateway", extra={"error": str(error)})
            return False
        if not record.fits(self.settings):
            _LOG.info("gateway runs with other settings: restarting it")
            await self.envoy.stop(5.0)
            return False
        self._up.set()
        _LOG.info("adopted gateway", extra={"pid": record.pid})
        return True

    async def _start(self) -> None:
        routes = self._routes
        await self._prepare(routes)
        self._taken, _ = self._translate(routes)
        await self.envoy.start(self._snapshot(), on_spawn=self._write_record)
        pid = self.envoy.pid
        if pid is None:
            raise GatewayUnavailableError("Envoy ended right after its start")
        self._up.set()
        self.reason = ""
        self._write_routes(self._taken)
        extra = {"pid": pid, "http_port": self.settings.http_port}
        _LOG.info("started gateway", extra=extra)

    async def _try_start(self) -> bool:
        try:
            await self._start()
        except HeadraceError as error:
            self.reason = str(error)
            _LOG.error("cannot start the gateway again", extra={"error": self.reason})
            return False
        self.restarts += 1
        return True

    async def _watch(self) -> None:
        """Return when Envoy ended; limit the size of its logs until then."""
        ended = asyncio.ensure_future(self.envoy.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=_WATCH_LOGS_S)
                if not ended.done():
                    try:
                        await self.envoy.rotate_logs()
                    except (HeadraceError, OSError) as error:
                        _LOG.warning(
                            "cannot rotate the gateway's logs", extra={"error": str(error)}
                        )
        finally:
            ended.cancel()

    def _write_record(self, pid: int) -> None:
        record = GatewayRecord.of(self.settings, pid, self.owner.identity)
        gateway_record_file(self.record_path).try_save(record)

    def _write_routes(self, routes: Sequence[EndpointRoute]) -> None:
        routes_file(self.routes_path).try_save(tuple(routes))
