"""`headrace features`: definition, materialization, writing and training sets of features."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import CommandGroup, Home, Json, argument, option
from headrace.cli.base.output import FAILED, progress, say, show_answer, write_json
from headrace.cli.base.tables import opened as opened_file
from headrace.cli.base.tables import read_rows
from headrace.cli.features.serving import Service, Store, get, opened, plain, serve_check, skew
from headrace.core import FailedPreconditionError, SystemClock
from headrace.features import (
    FeatureView,
    OnlineStore,
    applied_definitions,
    apply_definitions,
    push_rows,
)
from headrace.features.applied import apply_feast
from headrace.features.offline import join_files
from headrace.features.online_writers import materialize as run
from headrace.features.online_writers import refusals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.feast.importing import LeftOut

DEFAULT_PATH: Final = Path("features.yaml")
EXAMPLE: Final = """\
entities:
  - {name: customer, join_key: customer_id, datatype: INT64}
feature_views:
  - name: customer_stats
    entities: [customer]
    source: {path: customers.parquet}   # customer_id, event_timestamp, age
    features:
      - {name: age, datatype: INT64}
feature_services:
  - {name: fraud, features: [customer_stats]}
"""
HOW_TO_BEGIN: Final = """\
Write features.yaml, then run:

    headrace features apply

    headrace features materialize

    headrace features get fraud -k customer_id=17

`headrace features apply` without a features.yaml prints a short example; `--from-feast REPO` needs
no file.
"""


_TOLD: Final = 20


class RefusedRow(msgspec.Struct, frozen=True):
    """Row that was not written, by its number from 1, not counting headers and empty lines."""

    row: int
    why: str


class PushReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a push; `refused` has the first refused rows."""

    view: str
    rows: int
    written: int
    older: int
    refused_rows: int
    refused: list[RefusedRow]


def push_file(view: FeatureView, store: OnlineStore, path: Path) -> PushReport:
    """Write the valid rows of a file, or of standard input (`-`).

    Raises:
        InvalidArgumentError: The file cannot be read on; what came before is written.
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: The store cannot be written; the message contains the remedy.
    """
    rows = written = right = refused_rows = 0
    refused: list[RefusedRow] = []
    with ExitStack() as stack:
        stream = opened_file(path)
        if str(path) != "-":
            stack.enter_context(stream)
        for part in read_rows(stream, str(path), view):
            wrong = [RefusedRow(number, row) for number, row in part if isinstance(row, str)]
            valid = [(number, row) for number, row in part if not isinstance(row, str)]
            reasons = refusals(view, [row for _, row in valid])
            wrong += [RefusedRow(valid[i][0], reason) for i, reason in reasons.items()]
            fit = [row for i, (_, row) in enumerate(valid) if i not in reasons]
            written += push_rows(view, store, fit)
            rows += len(part)
            right += len(fit)
            refused_rows += len(wrong)
            refused += sorted(wrong, key=lambda refusal: refusal.row)
            del refused[_TOLD:]
    return PushReport(
        view=view.name,
        rows=rows,
        written=written,
        older=right - written,
        refused_rows=refused_rows,
        refused=refused,
    )


app = CommandGroup(
    help=f"""Features of entities: apply, materialize, push, get, join, serve-check, skew.

{HOW_TO_BEGIN}""",
)
_TIME = "%Y-%m-%d %H:%M:%S"


@app.command()
def apply(
    path: Annotated[
        Path, argument("File with feature definitions.", dir_okay=False)
    ] = DEFAULT_PATH,
    *,
    allow_code: Annotated[
        bool,
        option(
            "Allow the code of on-demand views, which runs once here and then in replicas.",
            "--allow-code",
        ),
    ] = False,
    from_feast: Annotated[
        Path | None,
        option(
            "Read definitions from this Feast repository instead of a file; its online store is "
            "used.",
            metavar="REPO",
        ),
    ] = None,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Apply feature definitions: entities, feature views, feature services.

    All errors are reported at once, and then nothing changes. Data is not read. The code of
    on-demand views is stored: apply again after changing it.

    For example:

        headrace features apply features.yaml

        headrace features apply --from-feast ../feature_repo
    """
    if from_feast is None:
        if path == DEFAULT_PATH and not path.exists():
            message = (
                f"there is no {path} here. Create one, for example\n\n{EXAMPLE}\nor pass "
                "another file, or import a Feast repository: headrace features apply "
                "--from-feast REPO"
            )
            raise FailedPreconditionError(message)
        changes = apply_definitions(path, home, allow_code=allow_code)
        left_out: Sequence[LeftOut] = ()
    else:
        changes, left_out = apply_feast(from_feast, home)
    if json:
        documents = [plain(change) for change in changes]
        left = [plain(skipped) for skipped in left_out]
        write_json(documents if from_feast is None else {"changes": documents, "left_out": left})
        return
    for skipped in left_out:
        say(f"skipped: {skipped.kind} {skipped.name}, as {skipped.reason}")
    for change in changes:
        again = change.has_other_schema and change.kind == "view"
        after = "; materialize it again" if again else ""
        say(f"{change.kind} {change.name} is {change.what}{after}")
    if not changes:
        say("no changes")


@app.command()
def materialize(
    views: Annotated[list[str] | None, argument("Which.", metavar="[VIEW]...", shown="all")] = None,
    *,
    until: Annotated[
        str,
        option(
            "Skip rows later than this time: 2026-11-27T06:00:00Z.", metavar="TIME", shown="now"
        ),
    ] = "",
    incremental: Annotated[
        bool, option("Start at the newest time of the last run.", "--incremental")
    ] = False,
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Load the newest values of each entity from Parquet into the online store.

    Safe to interrupt and repeat. An older value never replaces a newer one.

    For example:

        headrace features materialize

        headrace features materialize customer_stats --incremental
    """
    definitions = applied_definitions(home)
    selected = [definitions.view(name) for name in views or definitions.views]
    try:
        now = datetime.fromtimestamp(SystemClock().now(), UTC)
        end = datetime.fromisoformat(until) if until else now
    except ValueError:
        msg = f"'{until}' is not a time; write it as 2026-11-27T06:00:00Z"
        raise typer.BadParameter(msg, param_hint="--until") from None
    reports = []
    with opened(online_store, home) as store:
        for view in selected:
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
    view: Annotated[str, argument("The feature view.")],
    file: Annotated[
        Path, argument("Rows as Parquet, JSON lines or CSV; - for standard input.", allow_dash=True)
    ],
    *,
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Push feature values directly to the online store.

    A row has the view's join keys, an event time with a zone, and all features; null, or empty in
    CSV, means missing. An older value never replaces a newer one. Invalid rows are rejected and
    reported, with exit status 1; the other rows are written.

    For example:

        headrace features push customer_stats rows.jsonl

        tail -f events.jsonl | headrace features push customer_stats -
    """
    feature_view = applied_definitions(home).view(view)
    with opened(online_store, home) as store:
        report = push_file(feature_view, store, file)
    if json:
        write_json(plain(report))
    else:
        for refused in report.refused:
            say(f"row {refused.row} rejected: {refused.why}")
        if report.refused_rows > len(report.refused):
            say(f"and {report.refused_rows - len(report.refused)} more")
        say(
            f"{view}: {report.written} of {report.rows} rows written, {report.older} older than "
            f"the stored value, {report.refused_rows} rejected"
        )
    if report.refused_rows:
        raise typer.Exit(FAILED)


app.command()(get)


@app.command()
def join(
    service: Service,
    entities: Annotated[
        Path,
        argument("Parquet with the join keys and event_timestamp.", exists=True, dir_okay=False),
    ],
    *,
    output: Annotated[Path, option("Parquet to write.", "--output", "-o", dir_okay=False)],
    fill_defaults: Annotated[
        bool, option("Fill missing values with defaults, as serving does.", "--fill-defaults")
    ] = False,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Create training data: join each entity row with the feature values known at its time.

    All rows are kept in order; the column VIEW__status describes how values were found.
    """
    feature_service = applied_definitions(home).service(service)
    with progress(f"joining {entities}"):
        counts = join_files(feature_service, entities, output, fill_defaults=fill_defaults)
    lines = [
        f"{view}: {', '.join(f'{count} {status}' for status, count in statuses.items())}"
        for view, statuses in counts["views"].items()
    ]
    show_answer(counts, *lines, f"{counts['rows']} rows written to {output}", json=json)


app.command("serve-check")(serve_check)
app.command()(skew)
