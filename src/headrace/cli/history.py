"""`headrace history` and `undo`: what an endpoint was, and the way back."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json, Server
from headrace.core import span

_LONGEST: Final = 120
_Endpoint = Annotated[str, typer.Argument(help="The endpoint's name.", show_default=False)]


def history(
    endpoint: _Endpoint,
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="The newest so many.")
    ] = 100,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """List what an endpoint has been: when, what was served, who changed it and why.

    Beside its generations stand the ends of its rollouts: what was decided, by whom or by what.

    For example:

        headrace history fraud
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import show, table, write_json

    path = f"/api/v1/endpoints/{endpoint}/history"
    document = connect(server, home).get(path, limit=limit)
    if json:
        write_json(document)
        return
    show(table(history_rows(document)[:limit], "", "generation", "since", "versions", "by", "why"))


def history_rows(document: dict[str, Any]) -> list[Sequence[str]]:
    """Generations and ends of rollouts in one list, the newest first, a row each."""
    from headrace.cli.rollout_table import clock_text

    rows = [
        (
            entry["at"],
            "*" if entry["current"] else "",
            str(entry["generation"]),
            versions_text(entry),
            entry["actor"],
            entry["reason"],
        )
        for entry in document["generations"]
    ]
    rows += [
        (
            end["at"],
            "",
            end["id"],
            f"{end['from_version']} to {end['to_version']}",
            end["decided_by"],
            end_text(end),
        )
        for end in document["rollouts"]
    ]
    rows.sort(key=lambda row: row[0], reverse=True)
    return [(mark, number, clock_text(at), *rest) for at, mark, number, *rest in rows]


def end_text(end: dict[str, Any]) -> str:
    """How a rollout ended, after how long and why, in a line."""
    text = f"{end['phase'].replace('_', ' ')} after {span(end['duration_s'])}: {end['why']}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def versions_text(entry: dict[str, Any]) -> str:
    """What a generation served, in a few words."""
    if entry["spec"] is None and not entry["versions"]:
        return "removed"
    versions = entry["versions"]
    if len(versions) == 1:
        return str(versions[0]["model"])
    return ", ".join(f"{one['model']} {one['weight']}%" for one in versions)


def undo(
    endpoint: _Endpoint,
    *,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            min=1,
            help="A generation of `headrace history`.",
            show_default="the one before the newest",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is ready.")] = False,
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0.1, help="Seconds that --wait waits.")
    ] = 120.0,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make an endpoint what it was in a former generation, at once and without a rollout.

    The models of that generation are pinned, so the same versions are served again. It is a new
    generation itself: `undo` twice is where you were.

    For example:

        headrace undo fraud

        headrace undo fraud --to 3 --wait
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import progress
    from headrace.cli.spec import tell_applied

    api = connect(server, home)
    body = {} if to is None else {"generation": to}
    with progress("waiting until it is ready" if wait else "going back"):
        answer = api.post(
            f"/api/v1/endpoints/{endpoint}/undo",
            body,
            timeout_s=wait_s + 30,
            wait_s=wait_s if wait else None,
        )
    tell_applied(answer, json=json)
