"""`headrace batch`: a model over a data set, with atomically written output files."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import signal
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from headrace.cli.base.options import (
    NULLS_OPTION,
    AllowCode,
    CallerOptions,
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
from headrace.cli.batch.openai import GatewayRunOptions, open_embeddings, openai
from headrace.core import NotFoundError, NullPolicy
from headrace.jobs.messages import ErrorsTo, FileFormat

if TYPE_CHECKING:
    from headrace.jobs.run import Summary

TOO_MANY_ERRORS: Final = 4
"""Exit status of a job with more failed rows than it allows."""
app = CommandGroup(
    help="Run a model over a data set: run, embed, status. Files of OpenAI requests: openai. "
    "Scheduled jobs of the spec: list, runs, start, cancel.",
)


class EngineChoice(StrEnum):
    """Engine that runs the shards."""

    LOCAL = "local"
    RAY = "ray"
    SPARK = "spark"
    """Removed engine, which is refused."""


_EXIT = (
    "Exit status: 0 every row has an answer or an error; 4 more errors than "
    "--max-errors; 1 failed; 2 wrong command line; 3 cluster or database not reachable; "
    "130 interrupted. After any status but 0, the same command resumes if it has a "
    "--run-id."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """Options of a run over a data set: its input, its output and its id."""

    output: Annotated[
        Path,
        option(
            "Output directory; created if it does not exist.", "--output", "-o", file_okay=False
        ),
    ]
    sql: Annotated[str, option("SQL query for a database input.", metavar="QUERY")] = ""
    sql_key: Annotated[
        str,
        option(
            "Integer column of the query that divides it into shards, which makes the run "
            "resumable.",
            metavar="COLUMN",
            shown="one shard",
        ),
    ] = ""
    keys: Annotated[
        list[str] | None,
        option("Input columns to copy to the output.", metavar="[NAME=]COLUMN[,...]"),
    ] = None
    output_format: Annotated[FileFormat, option("Output format.", "--format")] = FileFormat.PARQUET
    errors: Annotated[
        ErrorsTo,
        option(
            "Write errors to the column `error`, or to files in _errors; then the output omits "
            "rows with errors."
        ),
    ] = ErrorsTo.COLUMN
    max_errors: Annotated[
        int | None,
        option(
            "Maximum number of rows with errors; the job fails beyond it.", min=0, shown="unlimited"
        ),
    ] = None
    resume: Annotated[str, option("Resume this run.", metavar="ID")] = ""
    run_id: Annotated[
        str,
        option(
            "Run id; an existing run with this id is resumed.",
            metavar="ID",
            shown="derived from the time",
        ),
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(DatasetOptions):
    """Options of a run."""

    model: Annotated[
        str,
        option(
            "A model file or directory, NAME[:VERSION] of the registry, or an endpoint, which "
            "adds its features from columns with entity keys.",
            "--model",
            "-m",
            metavar="MODEL|ENDPOINT",
        ),
    ]
    source: Annotated[
        str,
        option(
            "Parquet, CSV, JSON lines, Arrow or images; or sqlite:///PATH, postgresql://. "
            "${NAME} is replaced by an environment variable.",
            "--input",
            "-i",
            metavar="PATH|GLOB|FOLDER|URL",
        ),
    ]
    file: Annotated[
        Path | None,
        file_option(
            "The spec file that defines the endpoint.", "--file", "-f", shown="the running system"
        ),
    ] = None
    input_format: Annotated[
        str,
        option(
            "parquet, csv, jsonl, arrow or images.", metavar="FORMAT", shown="by file extension"
        ),
    ] = ""
    mapping: Annotated[
        list[str] | None,
        option(
            "Columns of a model input: x=features, or x=f0..f31, or x=age,income. May be repeated.",
            "--map",
            "--columns",
            metavar="INPUT=COLUMN[,...]",
            shown="columns named like the inputs",
        ),
    ] = None
    outputs: Annotated[str, option("Which.", metavar="NAME[,...]", shown="all")] = ""
    nulls: Annotated[NullPolicy, NULLS_OPTION] = NullPolicy.NAN
    engine: Annotated[
        EngineChoice,
        option(
            "Execution engine: this process, or the workers of a cluster, which need input, "
            "model and output under the same paths.",
            metavar="[local|ray]",
        ),
    ] = EngineChoice.LOCAL
    address: Annotated[
        str,
        option(
            "Ray cluster: HOST:PORT, auto or ray://HOST:PORT.",
            metavar="ADDRESS",
            shown="a cluster on this machine, for this job",
        ),
    ] = ""
    chunk_rows: Annotated[
        int | None,
        option("Rows per model run.", min=1, shown="8 to 4096, by row size"),
    ] = None
    shard_rows: Annotated[
        int | None,
        option(
            "Approximate rows per shard; an interruption loses at most the unfinished shards.",
            min=1,
            shown="262144; 16384 for texts and images",
        ),
    ] = None
    workers: Annotated[
        int | None,
        option(
            "Number of shards to run concurrently.",
            min=1,
            shown="usable cores; with --address, cores of the cluster",
        ),
    ] = None
    memory: Annotated[
        str, option("Memory limit for the data of all running shards.", metavar="SIZE")
    ] = "512MiB"
    runtime: Runtime = ""
    allow_code: AllowCode = False
    rows_independent: RowsIndependent = False
    # Options that the control plane passes to its runs, and such a run to itself.
    confined: Annotated[int | None, typer.Option(hidden=True)] = None
    chosen: Annotated[Path | None, typer.Option(hidden=True)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions(DatasetOptions):
    """Options of a run that computes embeddings."""

    endpoint: Annotated[str, option("Endpoint, or NAME:VERSION.", "--endpoint", "-e")]
    column: Annotated[str, option("Column with the texts.", "--column", "-c")]
    input_format: Annotated[
        str, option("parquet, csv, jsonl or arrow.", metavar="FORMAT", shown="by file extension")
    ] = ""
    dimensions: Annotated[
        int | None,
        option("Numbers of each vector, for models with `dimensions`.", min=1, shown="all"),
    ] = None
    texts: Annotated[int, option("Texts of one request.", min=1, max=2048)] = 64
    concurrency: Annotated[int, option("Concurrent requests.", min=1, max=64)] = 8


@app.command(epilog=_EXIT)
def run(*, options: RunOptions, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Run a model on every row of a data set and write the answers to files.

    Columns are checked against the model before rows are read. The model runs in this process as
    this user, or in the workers of another --engine. Output files are written atomically: a run
    that was interrupted and resumed with --resume writes the same files.

    For example:

        headrace batch run -m fraud:3 -i 'data/*.parquet' -o scored --keys id --map input=f0..f31

        headrace batch run -m fraud -i customers.csv -o scored --keys customer_id --run-id monday
    """
    from headrace.cli.batch.run import run_batch

    _run_to_end(lambda: run_batch(options, plane.target()), json=json)


def _run_to_end(start: Callable[[], "Summary"], *, json: bool) -> None:
    """Run a job that SIGTERM interrupts, and print its summary."""
    from headrace.jobs.run import TooManyErrorsError

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # SIGTERM ends the job as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        summary = start()
    except TooManyErrorsError as error:
        say(f"headrace: {error}")
        raise typer.Exit(TOO_MANY_ERRORS) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        write_json(summary)
        return
    skipped = f", {summary.skipped} of them earlier" if summary.skipped else ""
    say(f"{summary.rows:,} rows in {summary.shards} shards{skipped}: {summary.output}")
    say(f"{summary.seconds:.1f} s, {summary.rows_per_s:,.0f} rows/s, by {summary.model}")
    if summary.redone:
        say(f"repeated: {', '.join(sorted(set(summary.redone.values())))[:300]}")
    if summary.errors:
        shown = "; ".join(dict.fromkeys(summary.error_samples))[:300]
        say(f"{summary.errors:,} rows have errors" + (f": {shown}" if shown else ""))
    if summary.row_problem:
        say(f"answers of rows depend on other rows: {summary.row_problem}")


@app.command(epilog=_EXIT)
def embed(
    source: Annotated[
        str,
        argument(
            "Parquet, CSV, JSON lines or Arrow; or sqlite:///PATH, postgresql://. ${NAME} is "
            "replaced by an environment variable.",
            metavar="PATH|GLOB|FOLDER|URL",
        ),
    ],
    *,
    options: EmbedOptions,
    gateway: GatewayRunOptions,
    caller: CallerOptions,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Write the embeddings of a column of texts, which an endpoint of the gateway computes.

    The column `embedding` has lists of fixed size of 32-bit floats, with the bits of
    `POST /v1/embeddings`. A null, empty or refused text has no embedding; the column `error` says
    why. Interrupted and resumed, a run writes the same rows.

    For example:

        headrace batch embed 'docs/*.parquet' --column text --endpoint encoder -o vectors --keys id
    """
    from headrace.cli.batch.run import run_batch
    from headrace.core.encoders import TEXT

    target = plane.target()
    run_options = RunOptions(
        **{field.name: getattr(options, field.name) for field in fields(DatasetOptions)},
        model=options.endpoint,
        source=source,
        mapping=[f"{TEXT}={options.column}"],
        input_format=options.input_format,
        chunk_rows=options.texts,
        workers=options.concurrency,
    )
    load = partial(open_embeddings, options, gateway, caller, target)
    _run_to_end(lambda: run_batch(run_options, target, load=load), json=json)


@app.command()
def status(
    output: Annotated[Path, argument("Output directory of a job.", file_okay=False)],
    *,
    json: Json = False,
) -> None:
    """Show the run that wrote an output directory, and its progress.

    For example:

        headrace batch status scored
    """
    from headrace.jobs.manifest import OutputFolder

    folder = OutputFolder(output)
    record = folder.record()
    if record is None:
        raise NotFoundError(f"{output} is not the output directory of a job")
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


app.command()(openai)
app.command("list")(list_)
app.command()(runs)
app.command()(start)
app.command()(cancel)
