"""`headrace features`: what is known about entities, for training and for serving."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.failures import FAILED, NOT_READY
from headrace.cli.features_begin import DEFAULT_PATH, HOW_TO_BEGIN, check_exists
from headrace.cli.features_skew import skew
from headrace.cli.options import DEFAULT_HOME, Home, Json

if TYPE_CHECKING:
    from datetime import datetime

    from headrace.core import Datatype
    from headrace.features import FeatureRows, FeatureService, LeftOut, OnlineStore

app = typer.Typer(
    no_args_is_help=True,
    help=f"""Features of entities: apply, materialize, push, get, join, serve-check, skew.

{HOW_TO_BEGIN}""",
)

_TIME = "%Y-%m-%d %H:%M:%S"
_Service = Annotated[str, typer.Argument(help="The feature service.", show_default=False)]
_Store = Annotated[
    str,
    typer.Option(
        "--online-store",
        envvar="HEADRACE_ONLINE_STORE",
        metavar="URL",
        help="sqlite:///PATH, redis://HOST:PORT/DB, rediss://, unix:///SOCKET, feast://REPO "
        "or hopsworks://HOST/STORE.",
        show_default="features/online.db in --home, or Feast's",
    ),
]


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
        told = [_plain(change) for change in changes]
        left = [_plain(one) for one in left_out]
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
    online_store: _Store = "",
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
    with _opened(online_store, home) as store:
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
        write_json([_plain(report) for report in reports])


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
    online_store: _Store = "",
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
    with _opened(online_store, home) as store:
        report = push_file(found, store, file)
    if json:
        write_json(_plain(report))
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


@app.command()
def get(
    service: _Service,
    *,
    key: Annotated[
        list[str],
        typer.Option(
            "--key",
            "-k",
            metavar="NAME=VALUE",
            help="A join key or request column; again for more of them, and for more rows.",
            show_default=False,
        ),
    ],
    online_store: _Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what a request with these entities would get, and how it was found.

    For example:

        headrace features get fraud -k customer_id=17

        headrace features get fraud -k customer_id=17 -k customer_id=18 --json
    """
    from headrace.cli.output import show, table, write_json
    from headrace.features import FeatureReader, applied_definitions

    found = applied_definitions(home).service(service)
    with _opened(online_store, home) as store:
        keys, values = _keys(key, found)
        rows = FeatureReader(found, store).read(keys, values=values)
    if json:
        write_json(_documents(rows, found))
        return
    of_view = {column.name: column.view.name for column in found.columns}
    lines = [
        (name, _text(value), of_view[name], rows.statuses[of_view[name]][row].value)
        for row in range(_count(rows))
        for name, value in ((name, column[row]) for name, column in rows.columns.items())
    ]
    show(table(lines, "feature", "value", "view", "status"))


@app.command()
def join(
    service: _Service,
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


@app.command("serve-check")
def serve_check(
    service: _Service,
    *,
    online_store: _Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Say whether each view of a service was materialized, and lately enough to be served.

    Exit status 3 if one was not. Values that were pushed are not counted.
    """
    from headrace.cli.output import show, table, write_json
    from headrace.core import SystemClock
    from headrace.features import Status, applied_definitions, service_readiness

    found = applied_definitions(home).service(service)
    with _opened(online_store, home) as store:
        views = service_readiness(found, store, SystemClock())
    is_ready = all(one.status is Status.PRESENT for one in views)
    if json:
        document = {"service": service, "schema_hash": found.schema_hash, "is_ready": is_ready}
        write_json({**document, "views": [_plain(one) for one in views]})
    else:
        lines = [
            (one.view, one.status.value, _seconds(one.age_s), _seconds(one.ttl_s)) for one in views
        ]
        show(table(lines, "view", "status", "age", "time to live"))
    if not is_ready:
        raise typer.Exit(NOT_READY)


app.command()(skew)


@contextmanager
def _opened(url: str, home: Path) -> "Iterator[OnlineStore]":
    from headrace.features import default_online_store, open_online_store

    store = open_online_store(url or default_online_store(home))
    try:
        yield store
    finally:
        store.close()


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


def _keys(
    given: Sequence[str], service: "FeatureService"
) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
    """The values of each join key, and of each request column, as they are defined."""
    kinds = {entity.join_key: entity.datatype for entity in service.entities}
    of_request = {column.name: column.datatype for column in service.request_columns}
    keys: dict[str, list[object]] = {}
    values: dict[str, list[object]] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{item}' is no NAME=VALUE", param_hint="--key")
        value = _typed(name, text, of_request.get(name, kinds.get(name)))
        (values if name in of_request else keys).setdefault(name, []).append(value)
    return keys, values


def _typed(name: str, text: str, datatype: "Datatype | None") -> object:
    from headrace.core import Datatype

    match datatype:
        case Datatype.INT64:
            kind: type = int
            has = "whole numbers"
        case Datatype.FP32 | Datatype.FP64:
            kind, has = float, "numbers"
        case Datatype.BOOL:
            if text not in {"true", "false"}:
                msg = f"{name} is true or false, and not '{text}'"
                raise typer.BadParameter(msg, param_hint="--key")
            return text == "true"
        case _:
            return text
    try:
        value: object = kind(text)
    except ValueError:
        msg = f"{name} has {has}, and '{text}' is none"
        raise typer.BadParameter(msg, param_hint="--key") from None
    return value


def _documents(rows: "FeatureRows", service: "FeatureService") -> dict[str, Any]:
    return {
        "service": service.name,
        "schema_hash": service.schema_hash,
        "rows": [
            {
                "features": {name: _value(c[row]) for name, c in rows.columns.items()},
                "statuses": {view: of[row].value for view, of in rows.statuses.items()},
                "ages_s": {view: _value(of[row]) for view, of in rows.ages_s.items()},
                "reasons": {v: of[row] for v, of in rows.reasons.items() if row in of},
            }
            for row in range(_count(rows))
        ],
    }


def _count(rows: "FeatureRows") -> int:
    return len(next(iter(rows.columns.values())))


def _value(value: Any) -> object:  # noqa: ANN401  # of an array
    """As JSON has it: text where it is, NaN and infinity as null."""
    import math

    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bytes):
        return plain.decode(errors="backslashreplace")
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.0f} s"


def _plain(value: object) -> object:
    import msgspec

    return msgspec.to_builtins(value)
