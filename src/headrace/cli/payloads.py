"""`headrace payloads`: requests and answers that an endpoint's payload log kept."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json, Server

_SHAPE: Final = ".shape"
_LONGEST_CELL: Final = 40
_NO: Final = "-"


def payloads(
    endpoint: Annotated[str, typer.Argument(help="Whose.", show_default=False)],
    *,
    rows: Annotated[
        int,
        typer.Option(
            "--rows", "-n", min=0, max=1000, help="Show the newest so many requests, not the files."
        ),
    ] = 0,
    request: Annotated[
        str, typer.Option("--request", help="Show the request of this id.", show_default="any")
    ] = "",
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show the files of an endpoint's payload log, or the requests and answers in them.

    For example:

        headrace payloads fraud

        headrace payloads fraud --rows 20
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import say, show, table, write_json

    api = connect(server, home)
    path = f"/api/v1/endpoints/{endpoint}/payloads"
    if not rows and not request:
        found = api.get(path)
        if json:
            write_json(found)
            return
        _show_files(found)
        return
    kept = api.get(f"{path}/rows", limit=rows or 1, request_id=request)["rows"]
    if json:
        write_json(kept)
    elif not kept:
        say(f"nothing was kept of '{endpoint}'")
    else:
        show(table(*cells(kept)))


def _show_files(found: Mapping[str, Any]) -> None:
    from headrace.cli.output import say, show, table
    from headrace.core.text import bytes_text

    state = "on" if found["on"] else "off"
    say(f"payload log is {state}: {found['written']} written, {found['dropped']} dropped")
    if found["files"]:
        lines = [
            (
                file["begin"],
                f"v{file['version']}",
                bytes_text(file["bytes"]),
                "open" if file["open"] else "closed",
                file["path"],
            )
            for file in found["files"]
        ]
        show(table(lines, "begin", "version", "size", "state", "file"))


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], *tuple[str, ...]]:
    """Lines of a table, and the names of its columns: of all that some row has."""
    names = dict.fromkeys(
        name for row in rows for name in row if not name.endswith(_SHAPE) and name != "trace_id"
    )
    lines = [[_cell(row.get(name)) for name in names] for row in rows]
    return lines, *names


def _cell(value: object) -> str:
    if value is None or value == "":
        return _NO
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"[{', '.join(map(_cell, value))}]" if isinstance(value, list) else str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
