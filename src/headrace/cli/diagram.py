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
    PNG = "png"


def diagram(
    *,
    format_: Annotated[
        DiagramFormat | None,
        typer.Option(
            "--format",
            help="How it is written; png needs the extra `plot`.",
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

    chosen = format_ or _by_ending(output)
    if chosen is DiagramFormat.PNG and output is None and sys.stdout.isatty():
        raise typer.BadParameter("a PNG is nothing for a terminal", param_hint="--output")
    content = _drawn(chosen, _picture(connect(server, home), search, limit))
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    output.write_bytes(content)
    say(f"wrote {output}")


def _by_ending(output: Path | None) -> DiagramFormat:
    endings = {".svg": DiagramFormat.SVG, ".png": DiagramFormat.PNG}
    return endings.get(output.suffix.lower() if output else "", DiagramFormat.MERMAID)


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


def _drawn(chosen: DiagramFormat, picture: "Picture") -> bytes:
    match chosen:
        case DiagramFormat.SVG:
            from headrace.advise.diagram_svg import svg

            return svg(picture).encode()
        case DiagramFormat.PNG:
            from headrace.advise.diagram_png import png

            return png(picture)
        case DiagramFormat.MERMAID:
            from headrace.advise.diagram_mermaid import mermaid

            return mermaid(picture).encode()
