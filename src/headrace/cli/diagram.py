"""`headrace diagram`: the system as it is now, as a drawing."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Server

if TYPE_CHECKING:
    from headrace.advise.diagram import Picture
    from headrace.cli.management import Management

_PAGE = 500


class DiagramFormat(StrEnum):
    """How the drawing is written."""

    SVG = "svg"
    MERMAID = "mermaid"


def diagram(
    *,
    format_: Annotated[
        DiagramFormat | None,
        typer.Option(
            "--format",
            help="How it is written.",
            show_default="by the ending of --output, else mermaid",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, help="A file.", show_default="standard output"
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            "--search", help="Only endpoints with this in their name.", show_default="all"
        ),
    ] = "",
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            min=1,
            max=1000,
            help="So many endpoints at most: those in trouble, then the busiest.",
        ),
    ] = 40,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Draw callers, gateway, endpoints, versions, replicas and control plane as they are now.

    For example:

        headrace diagram -o system.svg

        headrace diagram --format mermaid >> README.md
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import say

    by_ending = output is not None and output.suffix.lower() == ".svg"
    chosen = format_ or (DiagramFormat.SVG if by_ending else DiagramFormat.MERMAID)
    picture = _picture(connect(server, home), search, limit)
    if chosen is DiagramFormat.SVG:
        from headrace.advise.diagram_svg import svg

        content = svg(picture)
    else:
        from headrace.advise.diagram import mermaid

        content = mermaid(picture)
    if output is None:
        sys.stdout.write(content)
        return
    output.write_text(content, encoding="utf-8")
    say(f"wrote {output}")


def _picture(api: "Management", search: str, limit: int) -> "Picture":
    from headrace.advise.diagram import picture_of

    rows: list[dict[str, Any]] = []
    page = 1
    while True:
        found = api.get("/api/v1/overview", page=page, size=_PAGE)
        rows += found["endpoints"]
        if len(rows) >= found["total"] or not found["endpoints"]:
            break
        page += 1
    rollouts = api.get("/api/v1/rollouts", active="true")["rollouts"]
    status = api.get("/api/v1/status")
    return picture_of(status, rows, rollouts, search=search, limit=limit)
