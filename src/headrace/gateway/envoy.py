"""Gateway process: one Envoy that is started or adopted, configured, and drained at its stop."""

import asyncio
import contextlib
import errno
import json
import os
import re
import resource
import socket
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.core import FailedPreconditionError
from headrace.core.files import size_of
from headrace.core.processes import Process, command_of, run
from headrace.gateway.access_log import rotate_arms
from headrace.gateway.binary import (
    GatewayUnavailableError,
    NotOurGatewayError,
    PortInUseError,
    SnapshotRejectedError,
    arguments,
    find_envoy,
    last_lines,
    make_private,
    read_from,
    reason_in,
    truncate,
)
from headrace.gateway.bootstrap import bootstrap
from headrace.gateway.clusters import arm_of, cluster_name, stat_name
from headrace.gateway.listeners import STAT_PREFIX
from headrace.gateway.publisher import (
    Admin,
    FileWrite,
    Publisher,
    SecretFiles,
    StatKind,
    documents_of,
    write_document,
)
from headrace.gateway.settings import EnvoySettings
from headrace.gateway.snapshot import Snapshot, inline_bootstrap
from headrace.gateway.statistics import (
    HANDSHAKES,
    OF_ALL,
    OF_SPLITS,
    TOKEN_COUNTERS,
    TOKEN_TIMES,
    Arm,
    ArmStatistics,
    GatewayStatistics,
    Handshakes,
    StatsQuery,
    TokenStatistics,
    read_all,
    read_handshakes,
    read_splits,
    read_token_times,
    read_tokens,
)

_POLL_S: Final = 0.01
_ANSWER_S: Final = 5.0
_HAND_OVER_S: Final = 0.002
_VALIDATE_TIMEOUT_S: Final = 30.0
_LOG_LINES: Final = 5
_MIN_TO_END_S: Final = 1.0
_LOG_BYTES: Final = 64 << 20
_PRIVATE: Final = 0o700
_WITHOUT_ARMS: Final = "^([^h]|h[^e]|headrace_ref)"  # RE2 has no negation
_BRIEF: Final = (
    "^([^hc]|h[^e]|headrace_ref|c[^l]|cluster_manager"
    r"|cluster\.[^.]+\.(upstream_rq_([1-5]xx|total|active|timeout|retry.*|pending_overflow)"
    r"|upstream_cx_(total|active|connect_fail|connect_timeout|overflow)"
    r"|membership_(healthy|total)|outlier_detection\.ejections_active)$)"
)
"""Statistics with only the health of each cluster."""


class EnvoyGateway:
    """One Envoy process and its configuration.

    It outlives this object, and the process that created it: another object with the same `run_dir`
    may `adopt` it. `start` and `stop` must not run concurrently; `publish` may.
    """

    def __init__(self, settings: EnvoySettings) -> None:
        self.settings = settings
        self.admin = Admin(settings.admin_socket, min(settings.publish_timeout_s, _ANSWER_S))
        self.publisher = Publisher(
            directory=settings.run_dir,
            admin=self.admin,
            log=self.log_path,
            timeout_s=settings.publish_timeout_s,
        )
        self.secrets = SecretFiles(directory=settings.run_dir, publisher=self.publisher)
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Return Envoy's process ID; None before a start and after its end."""
        return self._process.pid if self.is_running() and self._process else None

    @property
    def log_path(self) -> Path:
        """Return the path of Envoy's own log, in `log_format`."""
        return self.settings.run_dir / "envoy.log"

    @property
    def access_log_path(self) -> Path:
        """Return the path of the request log: one JSON line per request, if `access_log` is on."""
        return self.settings.run_dir / "access.log"

    def is_running(self) -> bool:
        """Whether Envoy runs."""
        return self._process is not None and self._process.is_running()

    async def start(
        self, snapshot: Snapshot, *, on_spawn: Callable[[int], None] = lambda _: None
    ) -> None:
        """Start Envoy and return once it serves `snapshot`.

        Args:
            on_spawn: Called with Envoy's pid before it serves. Without a record of it, an Envoy
                whose starter is killed cannot be adopted.

        Raises:
            PortInUseError: Another process listens on a port, as the gateway of this directory.
            SnapshotRejectedError: Envoy refused the snapshot; it was stopped.
            GatewayUnavailableError: Envoy ended, or was not ready within `start_timeout_s`.
            EnvoyNotFoundError: No binary exists.
        """
        try:
            self._prepare()
            check_ports(self.settings)
            self._write(snapshot)
            offset = size_of(self.log_path)
            command = arguments(
                self.settings, find_envoy(self.settings), self._config, os.cpu_count() or 1
            )
            process = Process.spawn((*self.settings.launcher, *command), log=self.log_path)
        except OSError as error:
            raise _unwritable(self.settings.run_dir, error) from error
        self._hold(process)
        try:
            with contextlib.suppress(OSError):  # it may have ended
                _, maximum = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (maximum, maximum))
            on_spawn(process.pid)
            await self._started(process, snapshot, offset)
        except BaseException as error:
            await process.end(within_s=_MIN_TO_END_S)
            if isinstance(error, OSError):
                raise _unwritable(self.settings.run_dir, error) from error
            raise

    async def adopt(self, process: Process) -> None:
        """Take over `process`, an Envoy that an earlier process of ours started; closed on failure.

        Raises:
            NotOurGatewayError: The process is gone, or is not the gateway of this `run_dir`.
            GatewayUnavailableError: The process does not respond.
        """
        if str(self._config) not in command_of(process.pid):
            process.close()
            raise NotOurGatewayError(process.pid, self.settings.run_dir)
        try:
            await self.admin.get("/ready")
        except BaseException:
            process.close()
            raise
        self._make_logs()  # an earlier version has fewer
        self._hold(process)

    async def publish(self, snapshot: Snapshot) -> None:
        """Publish a snapshot; as `Publisher.publish`."""
        await self.publisher.publish(snapshot)

    async def validate(self, snapshot: Snapshot) -> None:
        """Let Envoy validate a snapshot without serving it.

        Raises:
            SnapshotRejectedError: Envoy would refuse it.
        """
        self._prepare()  # Envoy opens the access log even then
        config = json.dumps(inline_bootstrap(self.settings, snapshot))
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=self.settings.run_dir) as file:
            file.write(config)
            file.flush()
            if self.settings.user is not None:
                os.chown(file.name, -1, self.settings.user)
                os.fchmod(file.fileno(), 0o640)
            command = arguments(self.settings, find_envoy(self.settings), Path(file.name), 1)
            command = (*self.settings.launcher, *command, "--mode", "validate")
            ended = await run(command, timeout_s=_VALIDATE_TIMEOUT_S)
        if ended.exceeded is not None:
            raise TimeoutError("Envoy did not validate the configuration in time")
        if ended.status != 0:
            reason = reason_in(ended.error) or last_lines(ended.error, _LOG_LINES)
            raise SnapshotRejectedError(reason)

    async def wait(self) -> int | None:
        """Wait for Envoy's end; return its exit status, None if it was adopted or never ran."""
        return None if self._process is None else await self._process.wait()

    async def stats(self, *, full: bool = True) -> str:
        """Return Envoy's metrics in Prometheus' text format, without unused ones.

        Counts of arms are excluded, which have a histogram for every status.

        Args:
            full: All of each cluster's, and not only its counts of connections and answers.
        """
        names = _WITHOUT_ARMS if full else _BRIEF
        return await self.admin.get(f"/stats/prometheus?usedonly&filter={quote(names)}")

    async def arm_statistics(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return Envoy's counts of these endpoints' splits since its start.

        Everything that ended before the call is in it.

        Raises:
            GatewayUnavailableError: Envoy does not answer, or ended meanwhile.
        """
        return await self._statistics(OF_SPLITS, lambda text: read_splits(text, endpoints))

    async def endpoint_statistics(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return Envoy's counts of all callers' requests to these endpoints since its start.

        Everything that ended before the call is in it.

        Raises:
            GatewayUnavailableError: Envoy does not answer, or ended meanwhile.
        """
        return await self._statistics(OF_ALL, lambda text: read_all(text, endpoints))

    async def token_statistics(self) -> TokenStatistics:
        """Return the tokens and times of answers of OpenAI's API since Envoy's start.

        Raises:
            GatewayUnavailableError: Envoy does not answer.
        """
        epoch = self._epoch()
        counters = await self.admin.stats(TOKEN_COUNTERS, StatKind.COUNTER)
        times = read_token_times((await self.admin.get(TOKEN_TIMES)).encode()) if counters else {}
        if self._epoch() != epoch:
            raise GatewayUnavailableError("Envoy was restarted during the request")
        return TokenStatistics(epoch=epoch, counts=read_tokens(counters), times=times)

    async def _statistics(
        self,
        question: StatsQuery,
        read: Callable[[bytes], tuple[Mapping[Arm, ArmStatistics], int]],
    ) -> GatewayStatistics:
        epoch = self._epoch()
        # A request for statistics makes worker threads hand over their counts, but not immediately.
        counted = await self.admin.stats(question.total, StatKind.COUNTER)
        expected = sum(int(value) for value in counted.values())
        arms, total = read((await self.admin.get(question.histograms)).encode())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ANSWER_S
        while total < expected:
            if loop.time() > deadline:
                raise GatewayUnavailableError(
                    "Envoy's worker threads did not report their statistics"
                )
            await asyncio.sleep(_HAND_OVER_S)
            arms, total = read((await self.admin.get(question.histograms)).encode())
        if self._epoch() != epoch:
            raise GatewayUnavailableError("Envoy was restarted during the request")
        return GatewayStatistics(epoch=epoch, arms=arms)

    async def upstream_health(self, endpoint: str, key: str) -> tuple[int, int]:
        """Return the servers of an arm that pass Envoy's health checks, and all its servers.

        Zero and zero if Envoy has no such arm.

        Raises:
            GatewayUnavailableError: Envoy does not answer.
        """
        prefix = f"cluster.{stat_name(cluster_name(endpoint, key))}.membership_"
        gauges = await self.admin.stats(f"{re.escape(prefix)}(healthy|total)", StatKind.GAUGE)
        return int(gauges.get(f"{prefix}healthy", 0)), int(gauges.get(f"{prefix}total", 0))

    async def handshakes(self) -> dict[tuple[str, str], Handshakes]:
        """Return TLS handshakes with upstreams since Envoy has them, by endpoint and arm key.

        Raises:
            GatewayUnavailableError: Envoy does not answer.
        """
        counters = await self.admin.stats(HANDSHAKES, StatKind.COUNTER)
        return read_handshakes(counters | await self.admin.stats(HANDSHAKES, StatKind.GAUGE))

    async def in_flight(self) -> dict[tuple[str, str], int]:
        """Return requests that arms received and did not answer, by endpoint and arm key.

        Those count that a replica has not read from its socket yet. Arms that never had a request
        are left out.

        Raises:
            GatewayUnavailableError: Envoy does not answer.
        """
        gauges = await self.admin.stats(r"cluster\.[^.]+~[^.]+\.upstream_rq_active", StatKind.GAUGE)
        in_flight = Counter[tuple[str, str]]()
        for name, value in gauges.items():
            arm = arm_of(name.split(".")[1])
            if arm is not None:
                in_flight[arm] += int(value)
        return dict(in_flight)

    async def stop(
        self, drain_s: float, drained: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Accept no new connections, let running requests end, then end Envoy.

        Args:
            drain_s: Seconds after which requests that still run are aborted.
            drained: Awaited before Envoy ends, to read its last counts.
        """
        process = self._process
        if process is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_s
        await self._drain(deadline)
        if drained is not None:
            await drained()
        await process.end(within_s=max(deadline - loop.time(), _MIN_TO_END_S))
        self._hold(None)

    async def rotate_logs(self, *, max_bytes: int = _LOG_BYTES) -> None:
        """Limit each log and its predecessor (`.1`) to about `max_bytes`; call it periodically."""
        await asyncio.to_thread(truncate, self.log_path, max_bytes=max_bytes)
        is_moved = self.settings.arms_log is not None and rotate_arms(self.settings.arms_log)
        if size_of(self.access_log_path) > max_bytes:
            old = self.access_log_path.with_name(f"{self.access_log_path.name}.1")
            self.access_log_path.replace(old)
            is_moved = True
        if is_moved:
            self._make_logs()
            await self.admin.post("/reopen_logs")

    def _epoch(self) -> str:
        """Return an identity of the running process: its ID and its start time."""
        if self._process is None or not self.is_running():
            raise GatewayUnavailableError("Envoy is not running")
        return f"{self._process.pid}-{self._process.start_ticks}"

    def _hold(self, process: Process | None) -> None:
        if self._process is not None:
            self._process.close()
        self._process = process

    @property
    def _config(self) -> Path:
        return self.settings.run_dir / "bootstrap.json"

    def _prepare(self) -> None:
        self.settings.run_dir.parent.mkdir(parents=True, exist_ok=True)
        make_private(self.settings.run_dir)
        user = self.settings.user
        if user is not None:  # Envoy writes nothing else, as root trusts the content of `run_dir`
            self.settings.socket_dir.mkdir(mode=_PRIVATE, exist_ok=True)
            os.chown(self.settings.socket_dir, user, user)
        self._make_logs()

    def _make_logs(self) -> None:
        """Create the logs of requests, owned by Envoy, which may not create them."""
        user = self.settings.user
        if user is None:
            return
        paths = (self.access_log_path if self.settings.access_log else None, self.settings.arms_log)
        for path in filter(None, paths):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o600)
            os.fchown(descriptor, user, user)
            os.close(descriptor)

    def _write(self, snapshot: Snapshot) -> None:
        for kind, document in documents_of(snapshot).items():
            write_document(self.settings.run_dir, kind, document)
        self._config.touch(mode=0o600)
        if self.settings.user is not None:
            self._config.chmod(0o640)
        self._config.write_text(json.dumps(bootstrap(self.settings)))
        self.settings.admin_socket.unlink(missing_ok=True)
        self.settings.private_socket.unlink(missing_ok=True)
        self.settings.verify_socket.unlink(missing_ok=True)

    async def _started(self, process: Process, snapshot: Snapshot, offset: int) -> None:
        try:
            async with asyncio.timeout(self.settings.start_timeout_s):
                await self._answers(process, offset)
                for kind, document in documents_of(snapshot).items():
                    step = FileWrite(kind, document)
                    await self.publisher.acknowledged(step, refused=0, offset=offset)
                await _until(self._serves)
        except TimeoutError as error:
            raise self._failed("was not ready in time", offset) from error

    async def _answers(self, process: Process, offset: int) -> None:
        """Wait until the admin socket responds, as long as the process runs."""
        while True:
            if not process.is_running():
                raise self._failed("exited during startup", offset)
            try:
                await self.admin.get("/server_info")
            except GatewayUnavailableError:
                await asyncio.sleep(_POLL_S)
            else:
                return

    async def _serves(self) -> bool:
        return await self._gauge("listener_manager.workers_started") > 0

    async def _is_idle(self) -> bool:
        return await self._gauge(f"http.{STAT_PREFIX}.downstream_rq_active") == 0

    async def _gauge(self, name: str) -> int:
        return int((await self.admin.stats(re.escape(name), StatKind.GAUGE)).get(name, 0))

    def _failed(self, description: str, offset: int) -> GatewayUnavailableError:
        text = read_from(self.log_path, offset)
        reason = reason_in(text) or last_lines(text, _LOG_LINES) or "no log output"
        return GatewayUnavailableError(f"Envoy {description}: {reason}")

    async def _drain(self, deadline: float) -> None:
        """Close the ports, tell callers to leave, wait for running requests."""
        try:
            async with asyncio.timeout_at(deadline):
                await self.admin.post("/healthcheck/fail")
                await self.admin.post("/drain_listeners")
                await _until(self._is_idle)
        except (TimeoutError, GatewayUnavailableError):
            return  # abort the rest; or Envoy has already exited


def check_ports(settings: EnvoySettings) -> None:
    """Check the ports before Envoy does, whose own error would come late and in its log.

    Raises:
        PortInUseError: Another process listens there.
        FailedPreconditionError: The address is not this machine's, or the port needs rights.
    """
    for port in settings.ports:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PortInUseError(settings.host, port) from error
                msg = f"cannot listen on port {port} of {settings.host}: {error.strerror}"
                raise FailedPreconditionError(msg) from error


async def _until(answer: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await answer():
            return
        await asyncio.sleep(_POLL_S)


def _unwritable(directory: Path, error: OSError) -> GatewayUnavailableError:
    """Convert errors of a full disk, so that the supervisor continues."""
    return GatewayUnavailableError(f"cannot write in {directory}: {error.strerror or error}")
