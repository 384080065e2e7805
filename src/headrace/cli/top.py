"""`headrace top`: live view of all endpoints."""

# a command imports what it uses, so that each starts fast

import os
import select
import sys
import termios
import time
import tty
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.cli.base.options import ControlPlaneOptions, Json, argument, option
from headrace.cli.base.output import Column, row_cells, rows_text, show, styled, write_json
from headrace.core import DeadlineExceededError, UnavailableError
from headrace.core.text import duration_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from headrace.cli.base.connection import CommandTarget

SORT_KEYS: Final = {
    "n": "name",
    "s": "state",
    "r": "requests_per_s",
    "e": "error_ratio",
    "5": "p50_s",
    "9": "p95_s",
    "p": "p99_s",
}
"""Sort column by key."""
_NUMBERS: Final = frozenset({"ready", "req/s", "errors", "p50", "p95", "p99"})
_STYLES: Final = {"ok": "green", "warning": "yellow", "failing": "bold red", "idle": "dim"}
COLUMNS: Final[dict[str, Column]] = {
    "endpoint": lambda row: Text(row["name"], style="bold"),
    "state": styled("state", _STYLES),
    "versions": lambda row: ", ".join(row["versions"]) or "-",
    "ready": lambda row: f"{row['replicas_ready']}/{row['replicas_desired']}",
    "req/s": lambda row: f"{row['requests_per_s']:,.1f}",
    "errors": lambda row: Text(
        f"{row['error_ratio']:.1%}", style="red" if row["error_ratio"] else ""
    ),
    "p50": lambda row: duration_text(row["p50_s"]),
    "p95": lambda row: duration_text(row["p95_s"]),
    "p99": lambda row: duration_text(row["p99_s"]),
    "rollout": "rollout",
}
_SORTED: Final = {
    "endpoint": "name",
    "state": "state",
    "req/s": "requests_per_s",
    "errors": "error_ratio",
    "p50": "p50_s",
    "p95": "p95_s",
    "p99": "p99_s",
}
"""The API's sort column by heading."""
_HELP: Final = "q quit  / search  n s r e 5 9 p sort  - reverse  j k page"
_MAX_SEARCH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TopView:
    """State of the interactive view."""

    sort: str = "name"
    """Column of the API's `sort` parameter."""
    is_turned: bool = False
    """Whether the order is reversed."""
    search: str = ""
    """Text that names contain; empty for all."""
    page: int = 1
    """Page number, from 1."""
    typing: bool = False
    """Whether keys are entered into the search."""
    is_over: bool = False
    """Whether the user has quit."""

    def query(self, size: int) -> dict[str, object]:
        """Return the query for the management API."""
        sort = f"-{self.sort}" if self.is_turned else self.sort
        return {"search": self.search, "page": self.page, "size": size, "sort": sort}

    def press(self, key: str) -> "TopView":
        """Return the view after a key; `within` corrects a page that is too high."""
        if self.typing:
            return self._typed(key)
        view = self
        match key:
            case "q" | "\x03" | "\x04":
                view = replace(self, is_over=True)
            case "-":
                view = replace(self, is_turned=not self.is_turned, page=1)
            case "/":
                view = replace(self, typing=True)
            case "j" | " ":
                view = replace(self, page=self.page + 1)
            case "k":
                view = replace(self, page=max(self.page - 1, 1))
            case "\x1b":
                view = replace(self, search="", page=1)
            case _ if key in SORT_KEYS:
                view = replace(self, sort=SORT_KEYS[key], is_turned=False, page=1)
        return view

    def within(self, total: int, size: int) -> "TopView":
        """Return the view limited to existing pages."""
        return replace(self, page=min(self.page, max(-(-total // size), 1)))

    def _typed(self, key: str) -> "TopView":
        view = self
        match key:
            case "\x03" | "\x04":
                view = replace(self, is_over=True)
            case "\r" | "\n":
                view = replace(self, typing=False)
            case "\x1b":
                view = replace(self, typing=False, search="", page=1)
            case "\x7f" | "\b":
                view = replace(self, search=self.search[:-1], page=1)
            case _ if key.isprintable():
                view = replace(self, search=(self.search + key)[:_MAX_SEARCH], page=1)
        return view


def render(document: dict[str, Any], view: TopView, *, is_live: bool = True) -> "RenderableType":
    """Return the overview as a table, with key help on a terminal."""
    rows = document["endpoints"]
    if view.search:
        none = f"no endpoint name contains '{view.search}'"
    elif document["total"]:
        none = "no more endpoints"
    else:
        none = "no endpoints yet; add some with `headrace apply -f headrace.yaml`"
    empty = [] if rows else [Text(none)]
    if not is_live:
        return Group(rows_text(rows, COLUMNS), *empty)
    total, size = document["total"], document["size"]
    words = [
        f"{total:,} endpoint{'' if total == 1 else 's'}",
        f"page {document['page']} of {max(-(-total // size), 1)}",
        *([f"with '{view.search}'"] if view.search else []),
        "rates and latencies of the last minute",
    ]
    summary = Text(", ".join(words), style="dim", no_wrap=True, overflow="ellipsis")
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    for name in COLUMNS:
        mark = ("^" if view.is_turned else "v") if _SORTED.get(name) == view.sort else ""
        table.add_column(
            Text(name + mark),
            justify="right" if name in _NUMBERS else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*row_cells(row, COLUMNS))
    keys = Text(f"/{view.search}_" if view.typing else _HELP, style="dim")
    return Group(summary, table, *empty, keys)


_REFRESH_S = 1.0
_AROUND = 4
_ALL = 500


class SortBy(StrEnum):
    """Sort column of endpoints."""

    NAME = "name"
    STATE = "state"
    REQUESTS = "requests"
    ERRORS = "errors"
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"

    def api_name(self) -> str:
        """Return the management API's name of the column."""
        heading = {SortBy.NAME: "endpoint", SortBy.REQUESTS: "req/s"}.get(self, self.value)
        return _SORTED[heading]


def top(
    search: Annotated[
        str, argument("Only endpoints whose name contains this text.", shown="all")
    ] = "",
    *,
    sort: Annotated[
        SortBy, option("Sort column; descending, problems first.", "--sort", "-s")
    ] = SortBy.NAME,
    reverse: Annotated[bool, option("Reverse the order.", "--reverse", "-r")] = False,
    once: Annotated[bool, option("Print once and exit, as when piped.", "--once")] = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show requests, errors and latency of all endpoints, live; q quits.

    Rates and latencies cover the last minute, as measured by the gateway. Keys select the sort
    column: `n` name, `s` state, `r` requests, `e` errors, `5`, `9`, `p` the 50th, 95th, 99th
    percentile. `-` reverses the order, `/` searches, `j` and `k` change pages.

    For example:

        headrace top

        headrace top --sort p99

        headrace top fraud --json | jq '.endpoints[].p99_s'
    """
    target = plane.target()
    view = TopView(search=search, sort=sort.api_name(), is_turned=reverse)
    console = Console()
    if not (once or json) and console.is_terminal and sys.stdin.isatty():
        with suppress(KeyboardInterrupt):
            _refresh(target, view)
        return
    api = target.management()
    document = api.get("/api/v1/overview", **view.query(_ALL))
    while len(document["endpoints"]) < document["total"]:
        view = replace(view, page=view.page + 1)
        more = api.get("/api/v1/overview", **view.query(_ALL))["endpoints"]
        if not more:
            break
        document["endpoints"] += more
    if json:
        write_json(document)
    else:
        show(render(document, view, is_live=False))


def _refresh(target: "CommandTarget", view: "TopView") -> None:
    """Refresh the view until the user quits; reconnects to the control plane."""
    console = Console()
    # Errors of the first request are raised immediately.
    target.management().get("/api/v1/overview", **view.query(1))
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
                live.update(Text(f"{error}\n\nretrying; q quits"), refresh=True)
            before = view
            while view == before and (left_s := due - time.monotonic()) > 0:
                for key in pressed(left_s):
                    view = view.press(key)


@contextmanager
def _keys() -> "Iterator[Callable[[float], str]]":
    """Yield a function that reads single keys without echo; then restore the terminal."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout_s: float) -> str:
        """Return the pressed keys, as soon as there is one; empty after the timeout."""
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        if not ready:
            return ""
        read = os.read(descriptor, 64)
        if not read:
            return "\x04"  # the terminal is closed
        text = read.decode(errors="ignore")
        is_sequence = len(text) > 1 and text.startswith("\x1b")  # an arrow key or similar
        return "" if is_sequence else text

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
