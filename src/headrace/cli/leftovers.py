"""Stop of what a killed control plane left running."""

import asyncio
import signal
from pathlib import Path
from typing import Final

from headrace.control.gateway_record import read_gateway_record
from headrace.control.home import Home, HomeLock
from headrace.control.local import LocalDriver
from headrace.control.ownership import ProcessOwner
from headrace.control.streams.driver import make_stream_driver
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.core import FailedPreconditionError, HeadraceError, SystemClock
from headrace.gateway import EnvoyGateway, GatewaySettings, gateway_user

_LOCK_TRIES: Final = 20
_LOCK_RETRY_S: Final = 0.05


async def stop_leftovers(path: Path, *, drain_s: float) -> int:
    """End the gateway and the replicas recorded in the home `path`; how many processes ended.

    Records of processes of another home, which this one is a copy of, are left out.

    Raises:
        FailedPreconditionError: A control plane runs there, which would start them again.
    """
    home = Home.at(path)
    lock = HomeLock(home.lock_file)
    await _acquire(lock)
    try:
        ended = await _stop_gateway(home, drain_s=drain_s)
        driver = LocalDriver(home=home, socket_dir=home.socket_dir())
        ended += sum(running.process is not None for running in driver.adopt_all())
        await driver.stop(drain_s=drain_s)
        ended += await _stop_workers(home, driver, drain_s=drain_s)
        for file in (home.control_file, home.gateway_file, home.routes_file):
            file.unlink(missing_ok=True)
    finally:
        lock.release()
    return ended


async def _stop_workers(home: Home, replicas: LocalDriver, *, drain_s: float) -> int:
    supervisor = StreamSupervisor(
        driver=make_stream_driver(home, replicas),
        wanted=tuple,
        prepare=lambda settings: settings,
        emit=_unheard,
        clock=SystemClock(),
    )
    supervisor.load()
    return await supervisor.stop(drain_s)


async def _unheard(_: object) -> None:
    """There is nobody to tell."""


async def _acquire(lock: HomeLock) -> None:
    """Take the lock; a control plane that was just killed holds it for a moment more."""
    for _ in range(_LOCK_TRIES):
        try:
            lock.acquire()
        except FailedPreconditionError:
            await asyncio.sleep(_LOCK_RETRY_S)
        else:
            return
    lock.acquire()


async def _stop_gateway(home: Home, *, drain_s: float) -> int:
    owner = ProcessOwner.of(home.root, sockets=home.socket_dir())
    record = read_gateway_record(home.gateway_file, owner)
    process = None if record is None else owner.adopt(record)
    if record is None or process is None:
        return 0
    gateway = EnvoyGateway(
        GatewaySettings(
            run_dir=home.socket_dir() / "envoy",
            host=record.host,
            http_port=record.http_port,
            grpc_port=record.grpc_port,
            user=gateway_user(),
        )
    )
    try:
        await gateway.adopt(process)
        await gateway.stop(drain_s)
    except HeadraceError:
        # It does not answer, so there is nothing to drain.
        process = owner.adopt(record)
        if process is not None:
            process.send(signal.SIGKILL)
            process.close()
    return 1
