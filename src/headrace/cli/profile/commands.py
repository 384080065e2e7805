"""`headrace profile`: measured speed of a model, and a recommendation how to serve it."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.cli.connection import find_target
from headrace.cli.options import (
    AllowCode,
    ControlPlane,
    Json,
    RowsIndependent,
    numbers,
    seconds,
)
from headrace.cli.output import progress, say, show, write_json
from headrace.client import Client
from headrace.control.local.sandbox import Sandbox
from headrace.core import HeadraceError
from headrace.optimize.profiling.recommend import Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.cli.profile.documents import Subject
    from headrace.optimize.profiling.document import Profile
    from headrace.optimize.profiling.messages import Event, Measured, Overhead, ProfileRequest

_MEASURED_SHARE: Final = 0.7
"""Of the budget, for the model itself; then a replica is asked, and the rest is for predictions,
and for processes that start."""
_OVERHEAD_SHARE: Final = 0.12
_MOST_OVERHEAD_S: Final = 8.0


def profile(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ENDPOINT",
            help="A model file or directory, NAME[:VERSION] of the registry, or an endpoint.",
        ),
    ],
    *,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Requests a second to serve.", show_default="open"),
    ] = None,
    p99: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Latency to keep 99 of 100 requests within: 50ms, or seconds.",
            show_default="open",
        ),
    ] = None,
    rows: Annotated[
        str, typer.Option(help="Batch sizes: 1,2,4.", show_default="1, 2, 4, ...")
    ] = "",
    lengths: Annotated[
        str,
        typer.Option(
            help="Sizes of variable dimensions, the most usual first: 32,64.",
            show_default="16 to 256 where the model takes them, 32 first",
        ),
    ] = "",
    threads: Annotated[
        str, typer.Option(help="Threads inside a run.", show_default="1, 2, 4, ...")
    ] = "",
    concurrency: Annotated[
        str, typer.Option(help="Runs at once.", show_default="1, 2, 4, ...")
    ] = "",
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores of a replica.", show_default="all of them")
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it may take: 60s, 5m.")
    ] = "60s",
    cost_per_hour: Annotated[
        float | None,
        typer.Option(min=0.0, help="What --cores cores cost in an hour, in any currency."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="What runs the model.", show_default="detected")
    ] = "",
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw latency over load into this file: .png, .svg or .pdf.", dir_okay=False
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Keep the profile for `apply --tuned`.")
    ] = True,
    allow_code: AllowCode = False,
    rows_independent: RowsIndependent = False,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Measure a model over batch, length, threads and runs at once; say how it should be served.

    Of an endpoint the model is taken from the registry, and measured beside what runs; only what a
    request costs on its way is asked of the endpoint itself, gently. Ctrl-C keeps what there is.

    For example:

        headrace profile model.onnx

        headrace profile fraud:3 --rate 400 --p99 50ms --cost-per-hour 0.17

        headrace profile fraud --budget 3m --plot fraud.svg
    """
    from headrace.cli.profile.documents import find_subject, profile_text, save_profile
    from headrace.engine import usable_cores
    from headrace.optimize.profiling.messages import ProfileRequest

    if plot is not None:
        from headrace.cli.plots import check_plot

        check_plot(plot)
    mine = usable_cores()
    if cores is not None and cores > mine:
        raise typer.BadParameter(f"this machine has {mine}", param_hint="--cores")
    wishes = Wishes(
        rate=rate,
        p99_s=None if p99 is None else seconds(p99, "--p99"),
        cost_per_hour=cost_per_hour,
    )
    budget_s = seconds(budget, "--budget")
    request = ProfileRequest(
        path="",
        runtime=runtime,
        cores=cores or mine,
        rows=numbers(rows, "--rows"),
        lengths=numbers(lengths, "--lengths"),
        threads=numbers(threads, "--threads"),
        runs=numbers(concurrency, "--concurrency"),
        budget_s=budget_s * _MEASURED_SHARE,
    )
    subject = find_subject(
        target,
        server=plane.server,
        home=plane.home,
        runtime=runtime,
        allow_code=allow_code,
        rows_independent=rows_independent,
    )
    made = _profile(
        subject, request, wishes=wishes, budget_s=budget_s, server=plane.server, home=plane.home
    )
    if save:
        say(f"kept as {save_profile(plane.home, made)}; `headrace apply --tuned` uses it")
    if plot is not None:
        from headrace.cli.plots import draw_profile

        draw_profile(plot, made)
    if json:
        write_json(made)
    else:
        show(*profile_text(made))


def _profile(
    subject: "Subject",
    request: "ProfileRequest",
    *,
    wishes: "Wishes",
    budget_s: float,
    server: str | None,
    home: Path,
) -> "Profile":
    import msgspec

    import headrace
    from headrace.control.sandboxed.profile import measure
    from headrace.optimize.profiling.document import conclude
    from headrace.runtimes.processor import this_processor

    sandbox = Sandbox.of_home(home)
    asked = msgspec.structs.replace(
        request,
        path=str(subject.path),
        runtime=subject.runtime,
        allow_code=subject.allow_code,
        rows_independent=subject.rows_independent,
    )
    with _watched(subject.name, request.budget_s) as hear:
        measured = measure(sandbox, asked, hear)
    with progress("asking a replica what a request costs"):
        measured, overhead = _overhead(
            subject,
            measured,
            sandbox,
            cores=request.cores,
            budget_s=overhead_s(budget_s),
            server=server,
            home=home,
        )
    with progress("predicting"):
        return conclude(
            measured,
            overhead,
            wishes,
            model=subject.name,
            digest=subject.digest,
            processor=this_processor(),
            cores=request.cores,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            headrace=headrace.__version__,
        )


def _overhead(
    subject: "Subject",
    measured: "Measured",
    sandbox: "Sandbox",
    *,
    cores: int,
    budget_s: float,
    server: str | None,
    home: Path,
) -> "tuple[Measured, Overhead | None]":
    """The overhead, or a note that says why it is not known."""
    import msgspec

    from headrace.control.sandboxed.profile import endpoint_overhead, replica_overhead

    length = measured.loaded.length
    overhead: Overhead | None = None
    notes = measured.notes
    try:
        overhead = replica_overhead(
            subject.path,
            runtime=measured.loaded.runtime,
            rows_independent=subject.rows_independent,
            sandbox=sandbox,
            cores=cores,
            length=length,
            budget_s=budget_s,
        )
        if subject.endpoint:
            with _client(server, home) as client:
                overhead = endpoint_overhead(
                    client, subject.endpoint, overhead, length=length, budget_s=budget_s
                )
    except HeadraceError as error:
        text = f"what a request costs besides its run could not be asked in full: {error}"
        notes = (*notes, text)
    except KeyboardInterrupt:
        notes = (*notes, "interrupted while a replica was asked what a request costs")
    return msgspec.structs.replace(measured, notes=notes), overhead


@contextmanager
def _client(server: str | None, home: Path) -> "Iterator[Client]":
    from headrace.cli import connection

    found = connection.gateway(find_target(server, home))
    with Client(found.url, ca_file=found.ca_file, server_name=found.server_name) as client:
        yield client


@contextmanager
def _watched(name: str, budget_s: float) -> "Iterator[Callable[[Event], None]]":
    """What shows how far it is, where somebody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return

    from headrace.optimize.profiling.messages import Progress as Step

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"profiling {name}", total=budget_s)

        def hear(event: "Event") -> None:
            if isinstance(event, Step):
                text = f"profiling {name}: {event.text}"
                bar.update(task, completed=budget_s - event.left_s, description=text)

        yield hear


def overhead_s(budget_s: float) -> float:
    """How much of the budget goes to asking a replica."""
    return min(budget_s * _OVERHEAD_SHARE, _MOST_OVERHEAD_S)
