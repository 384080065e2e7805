"""`headrace features`: what is known about entities, for training and for serving."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.failures import FAILED
from headrace.cli.features_begin import DEFAULT_PATH, HOW_TO_BEGIN, check_exists
from headrace.cli.features_get import get, serve_check
from headrace.cli.features_skew import skew
from headrace.cli.features_store import Service, Store, opened, plain
from headrace.cli.options import DEFAULT_HOME, Home, Json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from headrace.features import LeftOut

app = typer.Typer(
    no_args_is_help=True,
    help=f"""Features of entities: apply, materialize, push, get, join, serve-check, skew.

{HOW_TO_BEGIN}""",
)

_TIME = "%Y-%m-%d %H:%M:%S"


@app.command()
def apply(
    path: Annotated[Path, typer.Argument(help="What is defined.", dir_okay=False)] = DEFAULT_PATH,
    *,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Of on-demand views: their functions run, here once and then in replicas.",
        ),
    ] = False,
    from_feast: Annotated[
        Path | None,
        typer.Option(
            "--from-feast",
            metavar="REPO",
            help="Instead of a file: what this repository of Feast's defines. Its online store is "
            "then read.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Put a file of definitions in force: entities, feature views, feature services.

    All mistakes are told at once, and then nothing changes. Data is not read. The code of on-demand
    views is kept as it is now: change it, and apply it again.

    For example:

        headrace features apply features.yaml

        headrace features apply --from-feast ../feature_repo
    """
    from headrace.cli.output import say, write_json
    from headrace.features import apply_definitions, apply_feast

    if from_feast is None:
        check_exists(path)
        changes = apply_definitions(path, home, allow_code=allow_code)
        left_out: Sequence[LeftOut] = ()
    else:
        changes, left_out = apply_feast(from_feast, home)
    if json:
        told = [plain(change) for change in changes]
        left = [plain(one) for one in left_out]
        write_json(told if from_feast is None else {"changes": told, "left_out": left})
        return
    for one in left_out:
        say(f"left out: {one.kind} {one.name}, as {one.reason}")
    for change in changes:
        again = change.has_other_schema and change.kind == "view"
        after = "; materialize it again" if again else ""
        say(f"{change.kind} {change.name} is {change.what}{after}")
    if not changes:
        say("nothing changed")


@app.command()
def materialize(
    views: Annotated[
        list[str] | None, typer.Argument(metavar="[VIEW]...", help="Which.", show_default="all")
    ] = None,
    *,
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="TIME",
            help="Rows of later times are left out: 2026-11-27T06:00:00Z.",
            show_default="now",
        ),
    ] = "",
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only from the newest time of the last run on.")
    ] = False,
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Bring the newest values of each entity from Parquet to the online store.

    Safe to end and to run again. An older value never replaces a newer one.

    For example:

        headrace features materialize

        headrace features materialize customer_stats --incremental
    """
    from headrace.cli.output import progress, say, write_json
    from headrace.features import applied_definitions
    from headrace.features import materialize as run

    definitions = applied_definitions(home)
    chosen = [definitions.view(name) for name in views or definitions.views]
    end = _time(until)
    reports = []
    with opened(online_store, home) as store:
        for view in chosen:
            with progress(f"materializing {view.name}"):
                report = run(view, store, until=end, incremental=incremental)
            reports.append(report)
            if not json:
                when = (
                    "" if report.newest is None else f", the newest of {report.newest:{_TIME}} UTC"
                )
                say(f"{view.name}: {report.written} of {report.entities} entities written{when}")
    if json:
        write_json([plain(report) for report in reports])


@app.command()
def push(
    view: Annotated[str, typer.Argument(help="The feature view.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            help="Rows as Parquet, JSON lines or CSV; - for standard input.",
            allow_dash=True,
            show_default=False,
        ),
    ],
    *,
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write values as they happen to the online store, without a source.

    A row has the view's join keys, its time with a zone, and all of its features; what is null, or
    empty in CSV, is missing. An older value never replaces a newer one. Rows that are wrong are
    refused and told, with exit status 1; the others are written.

    For example:

        headrace features push customer_stats rows.jsonl

        tail -f events.jsonl | headrace features push customer_stats -
    """
    from headrace.cli.features_push import push_file
    from headrace.cli.output import say, write_json
    from headrace.features import applied_definitions

    found = applied_definitions(home).view(view)
    with opened(online_store, home) as store:
        report = push_file(found, store, file)
    if json:
        write_json(plain(report))
    else:
        for one in report.refused:
            say(f"row {one.row} is refused: {one.why}")
        if report.refused_rows > len(report.refused):
            say(f"and {report.refused_rows - len(report.refused)} more")
        say(
            f"{view}: {report.written} of {report.rows} rows written, {report.older} older than "
            f"what stood there, {report.refused_rows} refused"
        )
    if report.refused_rows:
        raise typer.Exit(FAILED)


app.command()(get)


@app.command()
def join(
    service: Service,
    entities: Annotated[
        Path,
        typer.Argument(
            help="Parquet with the join keys and event_timestamp.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Parquet to write.", dir_okay=False, show_default=False
        ),
    ],
    fill_defaults: Annotated[
        bool,
        typer.Option(
            "--fill-defaults", help="Put defaults where nothing was known, as serving does."
        ),
    ] = False,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """For each row of entities, the values that were known at its time: data to train with.

    Every row stays, in its order; VIEW__status says how its values were found.
    """
    from headrace.cli.output import progress, say, write_json
    from headrace.features import applied_definitions, join_files

    found = applied_definitions(home).service(service)
    with progress(f"joining {entities}"):
        counts = join_files(found, entities, output, fill_defaults=fill_defaults)
    if json:
        write_json(counts)
        return
    for view, of_view in counts["views"].items():
        told = ", ".join(f"{count} {status}" for status, count in of_view.items())
        say(f"{view}: {told}")
    say(f"{counts['rows']} rows are in {output}")


app.command("serve-check")(serve_check)
app.command()(skew)


def _time(text: str) -> "datetime":
    from datetime import UTC, datetime

    from headrace.core import SystemClock

    if not text:
        return datetime.fromtimestamp(SystemClock().now(), UTC)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        msg = f"'{text}' is no time; write it as 2026-11-27T06:00:00Z"
        raise typer.BadParameter(msg, param_hint="--until") from None
