"""`headrace batch`: a model over a data set, in files that are complete once they are written."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import signal
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.batch.jobs import cancel, list_, runs, start
from headrace.cli.options import (
    NULLS_OPTION,
    AllowCode,
    CommandGroup,
    ControlPlane,
    Json,
    RowsIndependent,
)
from headrace.cli.output import columns, say, write, write_json
from headrace.core import InvalidArgumentError, NotFoundError, Nulls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.jobs.engines.ray import RayEngine
    from headrace.jobs.running import LocalEngine, Summary

TOO_MANY_ERRORS: Final = 4
"""Exit status of a job that more rows failed in than it allows."""
app = CommandGroup(
    help="Run a model over a data set: run, status. Jobs of the spec: list, runs, start, cancel.",
)


class Engine(StrEnum):
    """What runs the shards."""

    LOCAL = "local"
    RAY = "ray"


class OutputFormat(StrEnum):
    """What is written."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"
    ARROW = "arrow"


class ErrorsIn(StrEnum):
    """Where errors of rows go."""

    COLUMN = "column"
    FILE = "file"


_EXIT = (
    "Exit status: 0 every row was answered, or has its error beside it; 4 more rows have errors "
    "than --max-errors; 1 it failed; 2 the command line is wrong; 3 a cluster or a database is out "
    "of reach; 130 it was interrupted. After all but 0 the same command goes on where it ended, "
    "if it has a --run-id."
)
_Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="A folder of its own; made if need be.",
        file_okay=False,
        show_default=False,
    ),
]


@app.command(epilog=_EXIT)
def run(
    output: _Output,
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL|ENDPOINT",
            help="A model file or directory, NAME[:VERSION] of the registry, or an endpoint: then "
            "with its features, and columns that name entities.",
        ),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            metavar="PATH|GLOB|FOLDER|URL",
            help="Parquet, CSV, JSON lines, Arrow, pictures; or sqlite:///PATH, postgresql://. "
            "${NAME} stands for a variable of the environment.",
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="A spec file that has the endpoint.",
            exists=True,
            dir_okay=False,
            show_default="what runs",
        ),
    ] = None,
    input_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="parquet, csv, jsonl, arrow or images.",
            show_default="by the files' endings",
        ),
    ] = "",
    sql: Annotated[str, typer.Option(metavar="QUERY", help="What a database is asked.")] = "",
    sql_key: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="A column of whole numbers: its ranges are shards, which can be resumed.",
            show_default="one shard",
        ),
    ] = "",
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            "--columns",
            metavar="INPUT=COLUMN[,...]",
            help="Of which column an input of the model is made: x=features, or x=f0..f31, or "
            "x=age,income. May be repeated.",
            show_default="columns of the inputs' names",
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]COLUMN[,...]", help="Columns that are written beside the answers."
        ),
    ] = None,
    outputs: Annotated[
        str, typer.Option(metavar="NAME[,...]", help="Which.", show_default="all")
    ] = "",
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="What is written.")
    ] = OutputFormat.PARQUET,
    errors: Annotated[
        ErrorsIn,
        typer.Option(
            help="Into the column `error`, or into files in _errors; the output then has no such "
            "rows."
        ),
    ] = ErrorsIn.COLUMN,
    max_errors: Annotated[
        int | None,
        typer.Option(
            min=0, help="Rows that may have errors; more end the job.", show_default="any number"
        ),
    ] = None,
    nulls: Annotated[Nulls, NULLS_OPTION] = Nulls.NAN,
    resume: Annotated[str, typer.Option(metavar="ID", help="Go on with this run.")] = "",
    run_id: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="What the run is called; one that began under this name goes on.",
            show_default="made of the time",
        ),
    ] = "",
    engine: Annotated[
        Engine,
        typer.Option(
            help="What runs it: this process, or the workers of a cluster, which see the input, "
            "the model and the output under the same paths."
        ),
    ] = Engine.LOCAL,
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="With --engine ray, the cluster: HOST:PORT, auto or ray://HOST:PORT.",
            show_default="one on this machine, for this job",
        ),
    ] = "",
    chunk_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of one run of the model.",
            show_default="8 to 4096, by the size of a row",
        ),
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of a shard, about: what is lost when it is interrupted.",
            show_default="262144; of texts and pictures 16384",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Shards at once.", show_default="usable cores; with --address the cluster's"
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What the data of all shards under way may take.")
    ] = "512MiB",
    runtime: Annotated[
        str, typer.Option(help="What runs the model.", show_default="detected")
    ] = "",
    allow_code: AllowCode = False,
    rows_independent: RowsIndependent = False,
    json: Json = False,
    plane: ControlPlane,
    # What the control plane says of its own runs, and such a run to itself.
    confined: Annotated[int | None, typer.Option(hidden=True)] = None,
    chosen: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Answer every row of a data set, into files that are whole whatever happens.

    Columns are checked against the model before a row is read. The model runs in this process, as
    this user; with another --engine in its workers. Ended at any moment and run again with
    --resume, it comes to the same files.

    For example:

        headrace batch run -m fraud:3 -i 'data/*.parquet' -o scored --keys id --map input=f0..f31

        headrace batch run -m fraud -i customers.csv -o scored --keys customer_id --run-id monday
    """
    from headrace.cli.batch.run import Asked, run_batch
    from headrace.engine import usable_cores
    from headrace.jobs.mapping import parse_keys, parse_map
    from headrace.jobs.messages import ErrorsTo, Format
    from headrace.jobs.preparing import Wish, parse_bytes
    from headrace.jobs.running import TooManyErrorsError

    cores = workers or usable_cores()
    wish = Wish(
        output=output,
        given=parse_map(mapping or []),
        keys=parse_keys(keys or []),
        outputs=[name.strip() for name in outputs.split(",") if name.strip()],
        format=Format(output_format),
        errors=ErrorsTo(errors),
        nulls=nulls,
        run_rows=chunk_rows,
        shard_rows=shard_rows,
        memory_bytes=parse_bytes(memory),
        workers=cores,
    )
    asked = Asked(
        wish=wish,
        engine=open_engine(engine, address=address, workers=workers, source=source),
        model=model,
        source=source,
        file=file,
        kind=input_format,
        query=sql,
        key=sql_key,
        resume=resume,
        run_id=run_id,
        max_errors=max_errors,
        runtime=runtime,
        allow_code=allow_code,
        rows_independent=rows_independent,
        server=plane.server,
        home=plane.home,
        confined=confined,
        chosen=chosen,
    )
    try:
        with _terminable():
            summary = run_batch(asked)
    except TooManyErrorsError as error:
        say(f"headrace: {error}")
        raise typer.Exit(TOO_MANY_ERRORS) from None
    if json:
        write_json(summary)
    else:
        for line in _summary_text(summary):
            say(line)


@app.command()
def status(
    output: Annotated[Path, typer.Argument(help="The folder of a job.", file_okay=False)],
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
    rows, wrong = sum(one.rows for one in entries), sum(one.errors for one in entries)
    found = {
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
        write_json(found)
        return
    for line in columns([(name, str(value)) for name, value in found.items()]):
        write(line)


app.command("list")(list_)
app.command()(runs)
app.command()(start)
app.command()(cancel)


def open_engine(
    name: Engine, *, address: str, workers: int | None, source: str
) -> "LocalEngine | RayEngine":
    """The engine of a name.

    Args:
        address: Of a cluster; empty for one on this machine that ends with the job.
        workers: Shards at once; None for as many as there are cores.
        source: The input as the command names it.

    Raises:
        InvalidArgumentError: The engine takes no such address.
        FailedPreconditionError: Ray is not installed.
    """
    from headrace.engine import usable_cores

    if name is Engine.LOCAL:
        from headrace.jobs.running import LocalEngine

        if address:
            raise InvalidArgumentError(f"--address {address} is of a cluster: say --engine ray")
        return LocalEngine(workers=workers or usable_cores())
    from headrace.jobs.engines.ray import LOCAL, RayEngine, check_address, import_ray

    import_ray()
    # A cluster of our own is as large as the job may be.
    size = workers if address else workers or usable_cores()
    return RayEngine(source=source, address=check_address(address or LOCAL), workers=size)


@contextmanager
def _terminable() -> "Iterator[None]":
    """Whoever ends the process by SIGTERM ends the job as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary_text(summary: "Summary") -> list[str]:
    skipped = f", {summary.skipped} of them before" if summary.skipped else ""
    lines = [
        f"{summary.rows:,} rows in {summary.shards} shards{skipped}: {summary.output}",
        f"{summary.seconds:.1f} s, {summary.rows_per_s:,.0f} rows/s, by {summary.model}",
    ]
    if summary.redone:
        lines.append(f"done again: {', '.join(sorted(set(summary.redone.values())))[:300]}")
    if summary.errors:
        shown = "; ".join(dict.fromkeys(summary.error_samples))[:300]
        lines.append(f"{summary.errors:,} rows have errors" + (f": {shown}" if shown else ""))
    if summary.row_problem:
        lines.append(f"rows depend on each other: {summary.row_problem}")
    return lines
