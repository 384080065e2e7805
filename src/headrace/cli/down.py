"""`headrace down`: end everything that runs on a home."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Home

if TYPE_CHECKING:
    from headrace.control import ControlFile

_SLACK_S = 15.0
"""What draining may take beyond its limit: killing what did not drain, closing, cleaning up."""


def down(
    *,
    drain_s: Annotated[
        float, typer.Option("--drain-s", min=0, help="Seconds that requests in flight may take.")
    ] = 30.0,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="End a control plane elsewhere; only if named here, never by a context.",
            show_default="what runs on --home",
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop gateway, replicas and control plane; requests in flight are answered first.

    Also stops what a killed control plane left behind. Where nothing runs, nothing happens.

    For example:

        headrace down
    """
    import asyncio

    from headrace.cli.leftovers import stop_leftovers
    from headrace.cli.output import progress, say
    from headrace.cli.running import copy_note
    from headrace.control import read_control_file
    from headrace.control.settings import original_of

    if server is not None:
        from headrace.cli.connection import connect

        connect(server, home).post("/api/v1/stop")
        say(f"{server} drains and stops")
        return
    if not (home / "run").is_dir():
        say(f"nothing runs on {home}")
        return
    original = original_of(home)
    with progress("draining and stopping"):
        control = read_control_file(home)
        if control is not None:
            _stop(control, home, drain_s)
        ended = asyncio.run(stop_leftovers(home, drain_s=drain_s))
    if control is None and not ended:
        say(f"nothing runs on {home}{copy_note(original)}")
    elif control is None:
        noun = "process" if ended == 1 else "processes"
        say(f"stopped {ended} {noun} without a control plane")
    else:
        say("stopped")


def _stop(control: "ControlFile", home: Path, drain_s: float) -> None:
    """Ask the control plane to end everything; if it does not, end the control plane."""
    import signal

    from headrace.cli.connection import local_management
    from headrace.control.ownership import ProcessOwner
    from headrace.core import HeadraceError

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
