"""`headrace top`: all endpoints at a glance, live."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
import time
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.cli.connection import Target
    from headrace.cli.top_view import View

_REFRESH_S = 1.0
_AROUND = 4
_ALL = 500


class SortBy(StrEnum):
    """What endpoints are sorted by."""

    NAME = "name"
    STATE = "state"
    REQUESTS = "requests"
    ERRORS = "errors"
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"


_API_NAMES = {
    SortBy.REQUESTS: "requests_per_s",
    SortBy.ERRORS: "error_ratio",
    SortBy.P50: "p50_s",
    SortBy.P95: "p95_s",
    SortBy.P99: "p99_s",
}


def top(
    search: Annotated[
        str, typer.Argument(help="Only endpoints with this in their name.", show_default="all")
    ] = "",
    *,
    sort: Annotated[
        SortBy, typer.Option("--sort", "-s", help="What comes first: the worst, or the most.")
    ] = SortBy.NAME,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print it and end, as into a pipe.")] = False,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show requests, errors and latency of all endpoints, live; q quits.

    Rates and latencies are of the last minute, as the gateway saw all requests. A key sorts: `n`
    name, `s` state, `r` requests, `e` errors, `5`, `9`, `p` the 50th, 95th, 99th percentile. `-`
    turns the order round, `/` searches, `j` and `k` turn pages.

    For example:

        headrace top

        headrace top --sort p99

        headrace top fraud --json | jq '.endpoints[].p99_s'
    """
    from rich.console import Console

    from headrace.cli.connection import find_target
    from headrace.cli.output import show, write_json
    from headrace.cli.top_view import View, render

    target = find_target(server, home)
    view = View(search=search, sort=_API_NAMES.get(sort, sort.value), is_turned=reverse)
    console = Console()
    if not (once or json) and console.is_terminal and sys.stdin.isatty():
        with suppress(KeyboardInterrupt):
            _watch(target, view)
        return
    document = _everything(target, view)
    if json:
        write_json(document)
    else:
        show(render(document, view, is_live=False))


def _everything(target: "Target", view: "View") -> dict[str, Any]:
    """All pages in one."""
    from dataclasses import replace

    api = target.management()
    document = api.get("/api/v1/overview", **view.query(_ALL))
    while len(document["endpoints"]) < document["total"]:
        view = replace(view, page=view.page + 1)
        more = api.get("/api/v1/overview", **view.query(_ALL))["endpoints"]
        if not more:
            break
        document["endpoints"] += more
    return document


def _watch(target: "Target", view: "View") -> None:
    """Show it until somebody leaves; goes on after a control plane that was away."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from headrace.cli.top_view import render
    from headrace.core import DeadlineExceededError, UnavailableError

    console = Console()
    management = target.management()
    management.get("/api/v1/overview", **view.query(1))  # what is wrong at once is said at once
    with (
        _keys() as pressed,
        Live(console=console, auto_refresh=False, screen=True) as live,
    ):
        while not view.is_over:
            due = time.monotonic() + _REFRESH_S
            size = max(min(console.size.height - _AROUND, _ALL), 1)
            try:
                document = target.management().get("/api/v1/overview", **view.query(size))
                view = view.within(document["total"], size)
                live.update(render(document, view), refresh=True)
            except (UnavailableError, DeadlineExceededError) as error:
                live.update(Text(f"{error}\n\ntrying again; q quits"), refresh=True)
            before = view
            while view == before and (left_s := due - time.monotonic()) > 0:
                for key in pressed(left_s):
                    view = view.press(key)


@contextmanager
def _keys() -> "Iterator[Callable[[float], str]]":
    """Reads single keys, without showing them; the terminal is as before afterwards."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda timeout_s: _pressed(descriptor, timeout_s)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(descriptor: int, timeout_s: float) -> str:
    """The keys that were pressed, as soon as there is one; none if none came in time."""
    import os
    import select

    ready, _, _ = select.select([descriptor], [], [], timeout_s)
    if not ready:
        return ""
    read = os.read(descriptor, 64)
    if not read:
        return "\x04"  # the terminal is gone
    text = read.decode(errors="ignore")
    is_sequence = len(text) > 1 and text.startswith("\x1b")  # an arrow, or the like
    return "" if is_sequence else text
