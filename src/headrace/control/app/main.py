"""Lifecycle of one control plane, from its lock to the exit of its last process."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.control.app.assemble import System, assemble
from headrace.control.base.agents_settings import GatewayMode
from headrace.control.base.home import Home, HomeLock
from headrace.control.base.log_files import LogFollower, cut_large, render_line
from headrace.control.base.ownership import claim
from headrace.control.base.settings import ControlSettings, forget_secrets, write_control_file
from headrace.control.local.sandbox import harden_self
from headrace.core import FailedPreconditionError, HeadraceError
from headrace.observe import LogFormat, configure_logging

if TYPE_CHECKING:
    from headrace.control.kubernetes.standby import ClusterMembership

_LOG: Final = logging.getLogger("headrace.control")
_COPY_S: Final = 0.1
_CUT_S: Final = 30.0
_READY_TIMEOUT_S: Final = 3600.0

_INIT: Final = 1
"""Pid of a container's first process, whose end kills all others."""
_LOCAL: Final = "local"
_KUBERNETES: Final = "kubernetes"

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


class StoppedBeforeLeadingError(HeadraceError):
    """The control plane was requested to stop before it became leader."""


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Message to the starting process: ready, or the error."""

    ready: bool = False
    error: str = ""
    found_running: bool = False
    """Whether the system ran before this control plane: then a failed start must not stop it.
    """


def run(settings: ControlSettings) -> int:
    """Run the control plane of `settings.home` until a stop request; return the exit status.

    The first SIGINT drains and stops everything; a second one does not wait. SIGTERM does the same,
    or ends only this process, as `settings.leaves_running` says.
    """
    harden_self()  # Envoy and all other child processes inherit this
    return asyncio.run(_run(settings))


async def _run(settings: ControlSettings) -> int:
    _configure_log(settings)
    lock: HomeLock | None = None
    try:
        home = Home.at(Path(settings.home))
        lock = HomeLock(home.lock_file)
        lock.acquire()
        claim(home.root)
        membership = await _join(settings)
        system = assemble(settings, home, membership)
        receivers = (*system.receivers, *system.plane.telemetry.notifier.urls())
        forget_secrets((*_references(settings), *receivers), os.environ)
        write_control_file(home.control_file, system.control_file)
    except StoppedBeforeLeadingError:
        if lock is not None:
            lock.release()
        return EXIT_OK
    except (HeadraceError, OSError) as error:
        _LOG.error("cannot start: %s", _one_line(str(error)))
        _notify(settings, Notice(error=str(error)))
        if lock is not None:
            lock.release()
        return EXIT_FAILED
    if settings.copy_logs:
        _log_to(home.log_of("control"))
    try:
        return await ControlPlaneRun(settings=settings, system=system).run()
    finally:
        lock.release()


@dataclass(slots=True, kw_only=True)
class ControlPlaneRun:
    """The run of a control plane, from taking the lock to its release."""

    settings: ControlSettings
    system: System
    _failure: str = ""
    _was_ready: bool = False
    _is_leaving: bool = False
    _stop_now: asyncio.Event = field(default_factory=asyncio.Event)
    _follower: LogFollower | None = None

    async def run(self) -> int:
        """Serve until a stop request; return the exit status.

        Then everything stops, unless it is left to the next control plane.
        """
        if self.settings.copy_logs:
            self._follower = LogFollower(self.system.plane.log_files)
        self._handle_signals()
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._copy_logs()), group.create_task(self._cut_logs())]
            await self._serve_until_stopped()
            if not self._is_leaving and (not self._failure or not self._serves_callers()):
                await self._stop_services()
            for task in background:
                task.cancel()
        self._copy_new()
        if self.system.membership is not None:
            await self.system.membership.close()
        await asyncio.to_thread(self.system.plane.telemetry.payloads.stop)
        self.system.opened.close()
        return EXIT_FAILED if self._failure else EXIT_OK

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)

    def _on_signal(self, signum: signal.Signals) -> None:
        stop = self.system.plane.stop_requested
        if stop.is_set():
            _LOG.warning("second signal: ending at once", extra={"signal": signum.name})
            self._stop_now.set()
        elif signum is signal.SIGTERM and self.settings.leaves_running and os.getpid() != _INIT:
            _LOG.info(
                "ending; gateway, replicas and stream workers keep running: `headrace up` "
                "adopts them, `headrace down` stops them",
                extra={"signal": signum.name},
            )
            self._is_leaving = True
            stop.set()
        else:
            _LOG.info("stopping", extra={"signal": signum.name})
            stop.set()

    async def _serve_until_stopped(self) -> None:
        serving = asyncio.create_task(self._serve())
        stopping = asyncio.create_task(self.system.plane.stop_requested.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self.system.server.stop()
        serving.cancel()
        await asyncio.wait({serving})
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Log why this control plane exits; operator errors are logged without a traceback."""
        errors = list(_leaves(error))
        is_ours = all(isinstance(leaf, HeadraceError) for leaf in errors)
        self._failure = "; ".join(str(leaf) or type(leaf).__name__ for leaf in errors)
        trace = None if is_ours else error
        _LOG.error("cannot go on: %s", _one_line(self._failure), exc_info=trace)
        _notify(
            self.settings,
            Notice(error=self._failure, found_running=self.system.found_running),
        )

    async def _serve(self) -> None:
        """Start and supervise everything; return only by cancellation or with an error."""
        system = self.system
        async with asyncio.TaskGroup() as group:
            for service in system.serving:
                group.create_task(service.run())
            desired_state, document = system.plane.desired_state, self.settings.spec
            if system.membership is not None and document is not None:
                await desired_state.apply_file(document)
                if self.settings.spec_file:
                    path = Path(self.settings.spec_file)
                    group.create_task(desired_state.follow_file(path))
            else:
                await desired_state.start(document, self.settings.endpoint)
            for service in system.deciding:
                group.create_task(service.run())
            # One iteration of the loop starts the replicas; the API's imports follow.
            await asyncio.sleep(0)
            group.create_task(system.server.run())
            await self._notify_ready()

    async def _notify_ready(self) -> None:
        gateways = self.system.plane.status().gateway.gateways
        if self.settings.gateway == GatewayMode.REMOTE and not gateways:
            # Endpoints become ready with the first gateway, which is started after this one.
            self._was_ready = True
            _notify(self.settings, Notice(ready=True, found_running=self.system.found_running))
            return
        status = await self.system.plane.wait_ready(_READY_TIMEOUT_S)
        reasons = "; ".join(f"{e.name}: {e.message}" for e in status.endpoints if not e.ready)
        self._was_ready = status.is_served or (
            status.gateway.ready and any(endpoint.ready for endpoint in status.endpoints)
        )
        if reasons or not self._was_ready:
            _LOG.error("not ready", extra={"reason": reasons or status.gateway.reason})
        if self._was_ready:
            _LOG.info("ready", extra={"http": status.addresses["http"]})
        notice = Notice(
            ready=self._was_ready,
            error="" if self._was_ready else reasons,
            found_running=self.system.found_running,
        )
        _notify(self.settings, notice)

    def _serves_callers(self) -> bool:
        """Whether processes may serve callers, which this process's failure must not stop."""
        return self._was_ready or self.system.found_running

    async def _stop_services(self) -> None:
        """Close the gateway's ports, drain requests, then stop the replicas."""
        draining = asyncio.create_task(self._drain(self.settings.drain_timeout_s))
        stop_now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait({draining, stop_now}, return_when=asyncio.FIRST_COMPLETED)
        stop_now.cancel()
        if not draining.done():
            draining.cancel()
            await asyncio.wait({draining})
            await self._drain(0.0)
        else:
            await draining
        self.system.plane.home.control_file.unlink(missing_ok=True)
        _LOG.info("stopped")

    async def _drain(self, drain_s: float) -> None:
        streams = asyncio.create_task(self.system.plane.workloads.streams.stop(drain_s))
        plane = self.system.plane
        await plane.reconciling.gateway_supervisor.stop(
            drain_s=drain_s, drained=plane.telemetry.tokens.poll
        )
        await self.system.driver.stop(drain_s=drain_s)
        await streams

    async def _copy_logs(self) -> None:
        while self._follower is not None:
            await asyncio.sleep(_COPY_S)
            self._copy_new()

    def _copy_new(self) -> None:
        for line in self._follower.read_new() if self._follower is not None else ():
            sys.stderr.write(f"{render_line(line, log_format=self.settings.log_format)}\n")

    async def _cut_logs(self) -> None:
        while True:
            await asyncio.sleep(_CUT_S)
            for path in await asyncio.to_thread(cut_large, self.system.plane.home.logs):
                _LOG.info("moved a large log aside", extra={"path": str(path)})


async def _join(settings: ControlSettings) -> "ClusterMembership | None":
    """Return the cluster membership when this control plane leads; None for the driver `local`.

    Raises:
        StoppedError: SIGTERM or SIGINT came first.
        FailedPreconditionError: The driver is unknown, or the cluster is unreachable.
    """
    if settings.driver == _LOCAL:
        return None
    if settings.driver != _KUBERNETES or settings.cluster is None:
        raise FailedPreconditionError(
            f"unknown driver {settings.driver!r}: use local, or kubernetes with a namespace"
        )
    from headrace.control.kubernetes.standby import stand_by  # noqa: PLC0415  # few have one

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    membership = await stand_by(settings, settings.cluster, stopped)
    if membership is None:
        raise StoppedBeforeLeadingError("stopped while on standby")
    return membership


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _references(settings: ControlSettings) -> tuple[str, ...]:
    """Return the settings that may reference secrets."""
    secret = settings.oidc.client_secret if settings.oidc else ""
    return settings.state_url, secret, settings.prometheus_url


def _configure_log(settings: ControlSettings) -> None:
    log_format: LogFormat = "json" if settings.log_format == "json" else "text"
    configure_logging(log_format=log_format, level=settings.log_level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # at INFO it logs its plug-ins


def _one_line(text: str) -> str:
    """Return a list of mistakes as one line, for a log with one line per event."""
    return "; ".join(line.strip() for line in text.splitlines()).replace(":;", ":")


def _log_to(path: Path) -> None:
    """Send this process's log to a file, which is merged into the stream of all logs."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(path.open("a", encoding="utf-8"))


def _notify(settings: ControlSettings, notice: Notice) -> None:
    """Notify the process that started this one, once."""
    descriptor = settings.notify_fd
    if descriptor is None:
        return
    try:
        os.write(descriptor, msgspec.json.encode(notice) + b"\n")
        os.close(descriptor)
    except OSError:
        return  # already notified, or the reader has exited
