"""Commands on a whole home: `headrace down`, `backup` and `restore`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from headrace.cli.base.connection import copy_note, find_target, local_management
from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import Home, Json, StateUrl, argument, option
from headrace.cli.base.output import TransferView, columns, progress, say, write, write_json
from headrace.control import read_control_file
from headrace.control.base.home import Home as HomeDir
from headrace.control.base.home import HomeLock
from headrace.control.base.ownership import ProcessOwner
from headrace.control.base.settings import original_of, read_last_control_file, resolve_url
from headrace.control.local.driver import LocalDriver
from headrace.control.streams.driver import make_stream_driver
from headrace.core import FailedPreconditionError, HeadraceError, SystemClock
from headrace.core.text import bytes_text
from headrace.gateway import EnvoyGateway, EnvoySettings, gateway_user

if TYPE_CHECKING:
    from headrace.control import ControlFile
    from headrace.control.app.backup import BackupManifest

_LOCK_TRIES: Final = 20
_LOCK_RETRY_S: Final = 0.05


async def stop_remaining_processes(path: Path, *, drain_s: float) -> int:
    """End gateway and replicas recorded in the home; return the number of ended processes.

    Records of processes of another home, which this one is a copy of, are left out.

    Raises:
        FailedPreconditionError: A control plane runs there, which would start them again.
    """
    from headrace.control.streams.supervisor import StreamSupervisor

    home = HomeDir.at(path)
    lock = HomeLock(home.lock_file)
    for left in reversed(range(_LOCK_TRIES)):
        try:
            lock.acquire()
            break
        except FailedPreconditionError:
            # A just killed control plane holds the lock for a moment.
            if not left:
                raise
            await asyncio.sleep(_LOCK_RETRY_S)
    try:
        ended = await _stop_gateway(home, drain_s=drain_s)
        driver = LocalDriver(home=home, socket_dir=home.socket_dir())
        ended += sum(running.process is not None for running in driver.adopt_all())
        await driver.stop(drain_s=drain_s)
        supervisor = StreamSupervisor(
            driver=make_stream_driver(home, driver),
            desired_streams=tuple,
            prepare=lambda settings: settings,
            emit=_ignore_progress,
            clock=SystemClock(),
        )
        supervisor.load()
        ended += await supervisor.stop(drain_s)
        for file in (home.control_file, home.gateway_file, home.routes_file):
            file.unlink(missing_ok=True)
    finally:
        lock.release()
    return ended


async def _ignore_progress(_: object) -> None:
    """Ignore progress."""


async def _stop_gateway(home: HomeDir, *, drain_s: float) -> int:
    from headrace.control.gateway.supervisor import read_gateway_record

    owner = ProcessOwner.of(home.root, sockets=home.socket_dir())
    record = read_gateway_record(home.gateway_file, owner)
    process = None if record is None else owner.adopt(record)
    if record is None or process is None:
        return 0
    gateway = EnvoyGateway(
        EnvoySettings(
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
        # It does not respond, so there is nothing to drain.
        process = owner.adopt(record)
        if process is not None:
            process.send(signal.SIGKILL)
            process.close()
    return 1


_SLACK_S = 15.0
"""Additional time of a drain beyond its limit: killing undrained processes, closing, cleanup."""


def down(
    *,
    drain_s: Annotated[
        float, option("Drain time in seconds for requests in flight.", min=0)
    ] = 30.0,
    server: Annotated[
        str | None,
        option(
            "Stop this remote control plane; the current context is never used.",
            metavar="URL",
            shown="the system in --home",
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop gateway, replicas and control plane; requests in flight are answered first.

    Also stops processes left behind by a killed control plane. Does nothing if no system runs.

    For example:

        headrace down
    """
    if server is not None:
        find_target(server, home).management().post("/api/v1/stop")
        say(f"{server} is draining and will stop")
        return
    if not (home / "run").is_dir():
        say(f"no system runs in {home}")
        return
    original = original_of(home)
    with progress("draining and stopping"):
        control = read_control_file(home)
        if control is not None:
            _stop(control, home, drain_s)
        ended = asyncio.run(stop_remaining_processes(home, drain_s=drain_s))
    if control is None and not ended:
        say(f"no system runs in {home}{copy_note(original)}")
    elif control is None:
        noun = "process" if ended == 1 else "processes"
        say(f"stopped {ended} {noun} without a control plane")
    else:
        say("stopped")


def _stop(control: "ControlFile", home: Path, drain_s: float) -> None:
    """Ask the control plane to end all processes; if it does not, end the control plane."""
    process = ProcessOwner.of(home).adopt(control)
    if process is None:
        return
    try:
        local_management(control, home).post("/api/v1/stop", timeout_s=5.0)
    except HeadraceError:
        process.send(signal.SIGTERM)
    if not process.wait_blocking(drain_s + _SLACK_S):
        process.send(signal.SIGKILL)
        process.wait_blocking(_SLACK_S)
    process.close()


def backup(
    file: Annotated[
        Path, argument("The backup file; existing files are never overwritten.", metavar="FILE")
    ],
    *,
    verify: Annotated[bool, option("Verify FILE; nothing is written.", "--verify")] = False,
    payloads: Annotated[
        bool, option("Include payload logs, which may be large.", "--payloads")
    ] = False,
    state_url: StateUrl = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a backup of a home to one file, while the system runs or not.

    The file contains tokens and model files: anyone who can read it can act as the home's owner.
    Only the user that owns the home can back it up, on the same machine.

    For example:

        headrace backup /backups/headrace-monday.tar

        headrace backup --verify /backups/headrace-monday.tar
    """
    from headrace.control.app.backup import check_backup, write_backup

    tell = TransferView().update
    if verify:
        result = check_backup(file, progress=tell)
    else:
        # The state is where the running control plane has it, unless an option names it.
        control = read_last_control_file(home)
        running = "" if control is None else control.state_url
        result = write_backup(
            home,
            file,
            state_url=resolve_url(state_url) if state_url else running,
            payloads=payloads,
            now=SystemClock().now(),
            progress=tell,
        )
    if json:
        write_json(result)
        return
    manifest = result.manifest
    created = datetime.fromtimestamp(manifest.created, UTC)
    is_here = manifest.state == "sqlite"
    rows = [
        ("size", bytes_text(result.size)),
        ("files", str(len(manifest.files))),
        ("taken", f"{created:%Y-%m-%d %H:%M:%S} UTC of {manifest.home}"),
        ("state", f"generation {manifest.generation}" if is_here else "not included"),
        ("models", ", ".join(manifest.models) or "none"),
    ]
    write(f"{file}: {'verified' if verify else 'written'}, sha256 {result.sha256}")
    for line in (*columns(rows), *_not_contained(manifest)):
        write(line)


def restore(
    file: Annotated[Path, argument("Backup file written by `headrace backup`.", metavar="FILE")],
    *,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Restore a backup into a new home, with a new identity and the original tokens.

    The home must not exist, or be empty. All files are verified before any is written. Restore
    trusted backups only: their content runs with the permissions of this user.

    For example:

        headrace restore /backups/headrace-monday.tar --home restored

        headrace up --home restored
    """
    from headrace.control.app.backup import restore_backup

    manifest = restore_backup(file, home, progress=TransferView().update)
    if json:
        write_json({"home": str(home.absolute()), "manifest": manifest})
        return
    flag = "" if home == DEFAULT_HOME else f" --home {home}"
    write(f"restored {len(manifest.files)} files to {home}; `headrace up{flag}` starts it")
    for line in _not_contained(manifest):
        write(line)


def _not_contained(manifest: "BackupManifest") -> list[str]:
    """Return what must be copied separately, or is lost."""
    lines = []
    if manifest.state == "none":
        lines.append(
            "not included: the desired state; the home has no state.db. If the state is in another "
            "database, pass --state-url"
        )
    if manifest.state == "postgres":
        lines.append(
            "not included: the desired state, its history, rollouts, users, keys and audit log, "
            "which are in Postgres: back that database up with pg_dump"
        )
    lines += [f"not included: {path}/ of the home" for path in manifest.left_out]
    lines += [f"not included: {path}, outside of the home" for path in manifest.outside]
    return lines
