"""`headrace batch`: a model over a data set, in files that are complete once they are written."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from headrace.cli.base.options import (
    NULLS_OPTION,
    AllowCode,
    CommandGroup,
    ControlPlaneOptions,
    Json,
    RowsIndependent,
    Runtime,
    argument,
    file_option,
    option,
)
from headrace.cli.base.output import columns, say, write, write_json
from headrace.cli.batch.jobs import cancel, list_, runs, start
from headrace.core import NotFoundError, NullPolicy
from headrace.jobs.messages import ErrorsTo, FileFormat

TOO_MANY_ERRORS: Final = 4
"""Exit status of a job that more rows failed in than it allows."""
app = CommandGroup(
    help="Run a model over a data set: run, status. Jobs of the spec: list, runs, start, cancel.",
)


class EngineChoice(StrEnum):
    """What runs the shards."""

    LOCAL = "local"
    RAY = "ray"
    SPARK = "spark"
    """Refused: it was removed."""


_EXIT = (
    "Exit status: 0 every row was answered, or has its error beside it; 4 more rows have errors "
    "than --max-errors; 1 it failed; 2 the command line is wrong; 3 a cluster or a database is out "
    "of reach; 130 it was interrupted. After all but 0 the same command goes on where it ended, "
    "if it has a --run-id."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a run."""

    output: Annotated[
        Path, option("A folder of its own; made if need be.", "--output", "-o", file_okay=False)
    ]
    model: Annotated[
        str,
        option(
            "A model file or directory, NAME[:VERSION] of the registry, or an endpoint: then "
            "with its features, and columns that name entities.",
            "--model",
            "-m",
            metavar="MODEL|ENDPOINT",
        ),
    ]
    source: Annotated[
        str,
        option(
            "Parquet, CSV, JSON lines, Arrow, pictures; or sqlite:///PATH, postgresql://. "
            "${NAME} stands for a variable of the environment.",
            "--input",
            "-i",
            metavar="PATH|GLOB|FOLDER|URL",
        ),
    ]
    file: Annotated[
        Path | None,
        file_option("A spec file that has the endpoint.", "--file", "-f", shown="what runs"),
    ] = None
    input_format: Annotated[
        str,
        option(
            "parquet, csv, jsonl, arrow or images.", metavar="FORMAT", shown="by the files' endings"
        ),
    ] = ""
    sql: Annotated[str, option("What a database is asked.", metavar="QUERY")] = ""
    sql_key: Annotated[
        str,
        option(
            "A column of whole numbers: its ranges are shards, which can be resumed.",
            metavar="COLUMN",
            shown="one shard",
        ),
    ] = ""
    mapping: Annotated[
        list[str] | None,
        option(
            "Of which column an input of the model is made: x=features, or x=f0..f31, or "
            "x=age,income. May be repeated.",
            "--map",
            "--columns",
            metavar="INPUT=COLUMN[,...]",
            shown="columns of the inputs' names",
        ),
    ] = None
    keys: Annotated[
        list[str] | None,
        option("Columns that are written beside the answers.", metavar="[NAME=]COLUMN[,...]"),
    ] = None
    outputs: Annotated[str, option("Which.", metavar="NAME[,...]", shown="all")] = ""
    output_format: Annotated[FileFormat, option("What is written.", "--format")] = (
        FileFormat.PARQUET
    )
    errors: Annotated[
        ErrorsTo,
        option(
            "Into the column `error`, or into files in _errors; the output then has no such rows."
        ),
    ] = ErrorsTo.COLUMN
    max_errors: Annotated[
        int | None,
        option("Rows that may have errors; more end the job.", min=0, shown="any number"),
    ] = None
    nulls: Annotated[NullPolicy, NULLS_OPTION] = NullPolicy.NAN
    resume: Annotated[str, option("Go on with this run.", metavar="ID")] = ""
    run_id: Annotated[
        str,
        option(
            "What the run is called; one that began under this name goes on.",
            metavar="ID",
            shown="made of the time",
        ),
    ] = ""
    engine: Annotated[
        EngineChoice,
        option(
            "What runs it: this process, or the workers of a cluster, which see the input, "
            "the model and the output under the same paths.",
            metavar="[local|ray]",
        ),
    ] = EngineChoice.LOCAL
    address: Annotated[
        str,
        option(
            "With --engine ray, the cluster: HOST:PORT, auto or ray://HOST:PORT.",
            metavar="ADDRESS",
            shown="one on this machine, for this job",
        ),
    ] = ""
    chunk_rows: Annotated[
        int | None,
        option("Rows of one run of the model.", min=1, shown="8 to 4096, by the size of a row"),
    ] = None
    shard_rows: Annotated[
        int | None,
        option(
            "Rows of a shard, about: what is lost when it is interrupted.",
            min=1,
            shown="262144; of texts and pictures 16384",
        ),
    ] = None
    workers: Annotated[
        int | None,
        option("Shards at once.", min=1, shown="usable cores; with --address the cluster's"),
    ] = None
    memory: Annotated[
        str, option("What the data of all shards under way may take.", metavar="SIZE")
    ] = "512MiB"
    runtime: Runtime = ""
    allow_code: AllowCode = False
    rows_independent: RowsIndependent = False
    # What the control plane says of its own runs, and such a run to itself.
    confined: Annotated[int | None, typer.Option(hidden=True)] = None
    chosen: Annotated[Path | None, typer.Option(hidden=True)] = None


@app.command(epilog=_EXIT)
def run(*, options: RunOptions, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Answer every row of a data set, into files that are whole whatever happens.

    Columns are checked against the model before a row is read. The model runs in this process, as
    this user; with another --engine in its workers. Ended at any moment and run again with
    --resume, it comes to the same files.

    For example:

        headrace batch run -m fraud:3 -i 'data/*.parquet' -o scored --keys id --map input=f0..f31

        headrace batch run -m fraud -i customers.csv -o scored --keys customer_id --run-id monday
    """
    from headrace.cli.batch.run import run_batch
    from headrace.jobs.run import TooManyErrorsError

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # Whoever ends the process by SIGTERM ends the job as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        summary = run_batch(options, plane.target())
    except TooManyErrorsError as error:
        say(f"headrace: {error}")
        raise typer.Exit(TOO_MANY_ERRORS) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        write_json(summary)
        return
    skipped = f", {summary.skipped} of them before" if summary.skipped else ""
    say(f"{summary.rows:,} rows in {summary.shards} shards{skipped}: {summary.output}")
    say(f"{summary.seconds:.1f} s, {summary.rows_per_s:,.0f} rows/s, by {summary.model}")
    if summary.redone:
        say(f"done again: {', '.join(sorted(set(summary.redone.values())))[:300]}")
    if summary.errors:
        shown = "; ".join(dict.fromkeys(summary.error_samples))[:300]
        say(f"{summary.errors:,} rows have errors" + (f": {shown}" if shown else ""))
    if summary.row_problem:
        say(f"rows depend on each other: {summary.row_problem}")


@app.command()
def status(
    output: Annotated[Path, argument("The folder of a job.", file_okay=False)],
    *,
    json: Json = False,
) -> None:
    """Say whose output a folder is, and how much of it is done.

    For example:

        headrace batch status scored
    """
    from headrace.jobs.manifest import OutputFolder

    folder = OutputFolder(output)
    record = folder.record()
    if record is None:
        raise NotFoundError(f"{output} is no output of a job")
    entries = folder.entries().values()
    rows, wrong = sum(entry.rows for entry in entries), sum(entry.errors for entry in entries)
    document = {
        "run_id": record.id,
        "status": "done" if folder.is_complete() else "unfinished",
        "begun_at": record.begun_at,
        "model": record.model.reference,
        "input": record.source.url,
        "shards": len(record.shards),
        "done": len(entries),
        "rows": rows,
        "errors": wrong,
    }
    if json:
        write_json(document)
        return
    for line in columns([(name, str(value)) for name, value in document.items()]):
        write(line)


app.command("list")(list_)
app.command()(runs)
app.command()(start)
app.command()(cancel)
