"""`headrace logs`: what gateway, control plane and replicas say, in one stream."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import itertools
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Home, LogFormat, LogFormatOption, Server

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def logs(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Only this process, by its name in `headrace status --json`.",
            show_default="all of them",
        ),
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many lines.")] = 100,
    requests: Annotated[
        bool, typer.Option("--requests", help="Requests instead, as the gateway logged them.")
    ] = False,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint", "-e", help="With --requests: only of this one.", show_default="all"
        ),
    ] = "",
    log_format: LogFormatOption = None,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the newest log lines of all processes, also of those that have ended.

    For example:

        headrace logs -f

        headrace logs gateway --tail 20

        headrace logs --requests -e fraud -f
    """
    from headrace.cli.connection import find_target
    from headrace.cli.output import say, write
    from headrace.cli.running import log_lines
    from headrace.control import read_control_file

    wanted = str(log_format or LogFormat.TEXT)
    if requests:
        if source is not None:
            raise typer.BadParameter("--requests are the gateway's: leave the process out")
        _requests(server, home, endpoint, wanted, follow=follow, tail=tail)
        return
    lines: Iterable[str]
    target = find_target(server, home)
    if follow or target.is_remote or read_control_file(home) is not None:
        lines = target.management().lines(
            "/api/v1/logs", follow=int(follow), tail=tail, source=source, format=wanted
        )
    else:
        lines = log_lines(home, tail=tail, source=source or "", log_format=wanted)
        say(f"nothing runs on {home}; this is what was logged before")
    for line in lines:
        write(line)


def _requests(
    server: str | None, home: "Path", endpoint: str, wanted: str, *, follow: bool, tail: int
) -> None:
    """Print the request log, in columns or as it is."""
    from headrace.cli.connection import find_target
    from headrace.cli.output import say, write
    from headrace.cli.request_lines import HEADER, is_about, request_line

    api = find_target(server, home).management()
    if follow and endpoint:
        api.get(f"/api/v1/endpoints/{endpoint}")  # nobody waits for what will not come
    lines = api.lines("/api/v1/logs", follow=int(follow), tail=tail, source="access", format="json")
    found = (line for line in lines if is_about(line, endpoint))
    first = next(found, None)
    if first is None:
        if endpoint:
            api.get(f"/api/v1/endpoints/{endpoint}")  # says so if there is no such endpoint
        say("no request was logged")
        return
    as_json = wanted == "json"
    if not as_json:
        say(HEADER)
    for line in itertools.chain([first], found):
        write(line if as_json else request_line(line))
