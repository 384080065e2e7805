"""Process of a gateway agent, from its lock to the end of Envoy."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from headrace.control.agents.tls import MutualTls, client_context, name_in, name_with
from headrace.control.asgi.reflection import ReflectionApp
from headrace.control.base.home import HomeLock
from headrace.control.base.ownership import claim
from headrace.control.base.ports import listen
from headrace.control.gateway.activator import HeldRequests
from headrace.control.gateway.certificates import Certificates
from headrace.control.local.sandbox import Sandbox
from headrace.core import Clock, FailedPreconditionError, HeadraceError, SystemClock
from headrace.core.files import make_private_dir
from headrace.gateway import listen_unix, make_private, runtime_dir
from headrace.gateway_agent.agent import GatewayAgent
from headrace.gateway_agent.applier import Applier, BundleStore
from headrace.gateway_agent.apps import AdminApp, Forwarding
from headrace.gateway_agent.client import ControlClient
from headrace.gateway_agent.settings import AgentSettings, control_address
from headrace.observe import LogFormat, configure_logging

if TYPE_CHECKING:
    from headrace.control.asgi.guards import App

_LOG: Final = logging.getLogger("headrace.gateway")
_STOP_S: Final = 1
_RENEW_S: Final = 1.0
EXIT_OK: Final = 0


@dataclass(slots=True, kw_only=True)
class AgentRun:
    """One agent between its lock and its end, after all checks."""

    settings: AgentSettings
    clock: Clock
    agent: GatewayAgent
    client: ControlClient
    certificates: Certificates
    admin: socket.socket
    control_listener: socket.socket
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until stopped, then drain requests."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        serving = asyncio.create_task(self._serve())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        drain_s = self.settings.drain_timeout_s
        _LOG.info("stopping", extra={"drain_s": drain_s})
        draining = asyncio.create_task(
            self.agent.applier.stop(drain_s=drain_s, drained=self.agent.report_last)
        )
        stop_now = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({draining, stop_now}, return_when=asyncio.FIRST_COMPLETED)
        stop_now.cancel()
        if not draining.done():
            draining.cancel()
            await asyncio.wait({draining})
            await self.agent.applier.stop(drain_s=0.0)
        serving.cancel()
        await asyncio.wait({serving})
        await self.client.close()
        if not serving.cancelled() and (error := serving.exception()) is not None:
            raise error

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _serve(self) -> None:
        answers = ReflectionApp(fallback=Forwarding(client=self.client))
        held = HeldRequests(self.agent.holding.activator, answers)
        admin = AdminApp(agent=self.agent, certificates=self.certificates)
        async with (
            _serving(held, self.control_listener),
            _serving(admin, self.admin),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self.agent.run())
            group.create_task(self.certificates.run())
            group.create_task(self._renew())

    async def _renew(self) -> None:
        """Publish a renewed certificate to Envoy."""
        tls = self.agent.applier.tls
        shown = tls.pair
        while True:
            await asyncio.sleep(_RENEW_S)
            if tls.pair is shown:
                continue
            try:
                await self.agent.applier.renew()
            except HeadraceError as error:
                _LOG.warning("cannot load the renewed certificate", extra={"error": str(error)})
            else:
                shown = tls.pair


def run(settings: AgentSettings) -> int:
    """Run the agent until it is stopped; return the exit status.

    Raises:
        HeadraceError: The settings are not valid; nothing was started.
    """
    log_format: LogFormat = "json" if settings.log_format == "json" else "text"
    configure_logging(log_format=log_format, level=settings.log_level.upper())
    logging.getLogger("httpx").setLevel(logging.WARNING)  # logs every request
    lock = HomeLock(make_private_dir(settings.dir) / "agent.lock")
    try:
        lock.acquire()
    except FailedPreconditionError:
        message = f"another agent serves from {settings.dir}: stop it, or choose another --dir"
        raise FailedPreconditionError(message) from None
    try:
        claim(settings.dir)
        asyncio.run(_run(settings))
    finally:
        lock.release()
    return EXIT_OK


async def _run(settings: AgentSettings) -> None:
    with contextlib.ExitStack() as opened:
        life = assemble(settings, SystemClock(), opened)
        await life.run()


def assemble(settings: AgentSettings, clock: Clock, opened: contextlib.ExitStack) -> AgentRun:
    """Return the parts for `settings`, with sockets bound; `opened` closes them. Blocking.

    Raises:
        HeadraceError: A certificate cannot be used, or a port is taken.
    """
    control_address(settings.control)
    directory = make_private(settings.dir.absolute())
    run = runtime_dir(directory)
    certificates = Certificates(clock=clock)
    tls = MutualTls(
        certificates=certificates,
        directory=run,
        context=client_context(),
        is_server=False,
    )
    tls.open(settings.tls)
    admin = listen(
        settings.admin_host,
        settings.admin_port,
        description="the agent's health",
        flag="--admin-port",
    )
    opened.callback(admin.close)
    control_listener = listen_unix(run / "control.sock")
    opened.callback(control_listener.close)
    name = _name(settings, tls)
    client = ControlClient(settings.control.rstrip("/"), tls.context)
    agent = GatewayAgent(
        name=name,
        applier=Applier(
            settings=settings,
            run_dir=make_private(run / "envoy"),
            control_socket=run / "control.sock",
            store=BundleStore(directory / "bundle.json", settings.fallback),
            tls=tls,
            clock=clock,
            sandbox=Sandbox.of_home(directory),
        ),
        client=client,
        clock=clock,
        rng=Random(os.urandom(16)),  # noqa: S311  # spreads retries; nobody must not guess it
        url=settings.url,
    )
    _LOG.info("gateway agent", extra={"gateway": name, "control": settings.control})
    return AgentRun(
        settings=settings,
        clock=clock,
        agent=agent,
        client=client,
        certificates=certificates,
        admin=admin,
        control_listener=control_listener,
    )


def _name(settings: AgentSettings, tls: MutualTls) -> str:
    assert tls.pair is not None, "it was opened"
    certificate = name_in(tls.pair.certificates)
    if not certificate:
        raise FailedPreconditionError(
            f"{settings.tls.certificate_file} has no name: a gateway is named by its "
            "certificate (common name, DNS name or URI)"
        )
    return name_with(certificate, settings.name)


@contextlib.asynccontextmanager
async def _serving(app: "App", sock: socket.socket) -> AsyncIterator[None]:
    from headrace.control.asgi.edge import make_server  # noqa: PLC0415  # loads uvicorn

    server = make_server(app, stop_s=_STOP_S)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait({task})
