"""`headrace profile`: measured speed of a model, and recommended settings."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from headrace.cli.base.connection import CommandTarget, gateway
from headrace.cli.base.options import (
    AllowCode,
    ControlPlaneOptions,
    Json,
    RowsIndependent,
    Runtime,
    argument,
    numbers,
    option,
    seconds,
)
from headrace.cli.base.output import progress, progress_bar, say, show, write_json
from headrace.client import Client
from headrace.control.local.sandbox import Sandbox
from headrace.core import HeadraceError
from headrace.optimize.profiling.recommend import Requirements

if TYPE_CHECKING:
    from headrace.cli.base.profiles import ProfiledModel
    from headrace.optimize.profiling.messages import Event, Measured, Overhead

_MEASURED_SHARE: Final = 0.7
"""Share of the budget for the model itself; the rest is for measuring a replica, for predictions
and for process starts."""
_OVERHEAD_SHARE: Final = 0.12
_MAX_OVERHEAD_S: Final = 8.0


def profile(
    target: Annotated[
        str,
        argument(
            "A model file or directory, NAME[:VERSION] of the registry, or an endpoint.",
            metavar="MODEL|ENDPOINT",
        ),
    ],
    *,
    rate: Annotated[
        float | None, option("Target rate in requests per second.", min=1e-6, shown="open")
    ] = None,
    p99: Annotated[
        str | None,
        option(
            "p99 latency target: 50ms, or seconds.",
            metavar="DURATION",
            shown="open",
        ),
    ] = None,
    rows: Annotated[str, option("Batch sizes to measure: 1,2,4.", shown="1, 2, 4, ...")] = "",
    lengths: Annotated[
        str,
        option(
            "Sizes of variable dimensions to measure, the most common first: 32,64.",
            shown="16 to 256 where the model accepts them, 32 first",
        ),
    ] = "",
    threads: Annotated[
        str, option("Numbers of threads per run to measure.", shown="1, 2, 4, ...")
    ] = "",
    concurrency: Annotated[
        str, option("Numbers of concurrent runs to measure.", shown="1, 2, 4, ...")
    ] = "",
    cores: Annotated[int | None, option("Cores per replica.", min=1, shown="all cores")] = None,
    budget: Annotated[str, option("Time budget: 60s, 5m.", metavar="DURATION")] = "60s",
    cost_per_hour: Annotated[
        float | None, option("Cost per hour of --cores cores, in any currency.", min=0.0)
    ] = None,
    runtime: Runtime = "",
    plot: Annotated[
        Path | None,
        option("Plot latency over load to this file: .png, .svg or .pdf.", dir_okay=False),
    ] = None,
    save: Annotated[
        bool, option("Store the profile for `headrace apply --tuned`.", "--save/--no-save")
    ] = True,
    allow_code: AllowCode = False,
    rows_independent: RowsIndependent = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Measure a model over batch size, length, threads and concurrency; recommend settings.

    For an endpoint, the model is taken from the registry and measured in a separate process; only
    the request overhead is measured on the endpoint itself, at a low rate. Ctrl-C keeps the
    measurements so far.

    For example:

        headrace profile model.onnx

        headrace profile fraud:3 --rate 400 --p99 50ms --cost-per-hour 0.17

        headrace profile fraud --budget 3m --plot fraud.svg
    """
    import headrace
    from headrace.cli.base.profiles import find_subject, profile_text, save_profile
    from headrace.control.sandboxed.profile import measure
    from headrace.engine import usable_cores
    from headrace.optimize.profiling.document import conclude
    from headrace.optimize.profiling.messages import ProfileProgress as Step
    from headrace.optimize.profiling.messages import ProfileRequest
    from headrace.runtimes.optimized.processor import this_processor

    if plot is not None:
        from headrace.cli.base.plots import check_plot

        check_plot(plot)
    available = usable_cores()
    if cores is not None and cores > available:
        raise typer.BadParameter(
            f"is more than the {available} cores of this machine", param_hint="--cores"
        )
    requirements = Requirements(
        rate=rate,
        p99_s=None if p99 is None else seconds(p99, "--p99"),
        cost_per_hour=cost_per_hour,
    )
    budget_s = seconds(budget, "--budget")
    request = ProfileRequest(
        path="",
        runtime=runtime,
        cores=cores or available,
        rows=numbers(rows, "--rows"),
        lengths=numbers(lengths, "--lengths"),
        threads=numbers(threads, "--threads"),
        runs=numbers(concurrency, "--concurrency"),
        budget_s=budget_s * _MEASURED_SHARE,
    )
    location = plane.target()
    subject = find_subject(
        target,
        location,
        runtime=runtime,
        allow_code=allow_code,
        rows_independent=rows_independent,
    )
    request = msgspec.structs.replace(
        request,
        path=str(subject.path),
        runtime=subject.runtime,
        allow_code=subject.allow_code,
        rows_independent=subject.rows_independent,
    )
    with progress_bar(f"profiling {subject.name}", request.budget_s) as update:

        def on_event(event: "Event") -> None:
            if isinstance(event, Step):
                text = f"profiling {subject.name}: {event.text}"
                update(completed=request.budget_s - event.left_s, description=text)

        measured = measure(Sandbox.of_home(plane.home), request, on_event)
    with progress("measuring the overhead of a request"):
        measured, overhead = _overhead(
            subject, measured, location, cores=request.cores, budget_s=overhead_s(budget_s)
        )
    with progress("predicting"):
        finished = conclude(
            measured,
            overhead,
            requirements,
            model=subject.name,
            digest=subject.digest,
            processor=this_processor(),
            cores=request.cores,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            headrace=headrace.__version__,
        )
    if save:
        say(f"stored as {save_profile(plane.home, finished)}; `headrace apply --tuned` uses it")
    if plot is not None:
        from headrace.cli.base.plots import draw_profile

        draw_profile(plot, finished)
    if json:
        write_json(finished)
    else:
        show(*profile_text(finished))


def _overhead(
    subject: "ProfiledModel",
    measured: "Measured",
    target: CommandTarget,
    *,
    cores: int,
    budget_s: float,
) -> "tuple[Measured, Overhead | None]":
    """Return the overhead, or a note why it is unknown."""
    from headrace.control.sandboxed.profile import endpoint_overhead, replica_overhead

    length = measured.loaded.length
    overhead: Overhead | None = None
    notes = measured.notes
    try:
        overhead = replica_overhead(
            subject.path,
            runtime=measured.loaded.runtime,
            rows_independent=subject.rows_independent,
            sandbox=Sandbox.of_home(target.home),
            cores=cores,
            length=length,
            budget_s=budget_s,
        )
        if subject.endpoint:
            address = gateway(target)
            with Client(
                address.url, ca_file=address.ca_file, server_name=address.server_name
            ) as client:
                overhead = endpoint_overhead(
                    client, subject.endpoint, overhead, length=length, budget_s=budget_s
                )
    except HeadraceError as error:
        text = f"the overhead of a request could not be measured completely: {error}"
        notes = (*notes, text)
    except KeyboardInterrupt:
        notes = (*notes, "interrupted while the overhead of a request was measured")
    return msgspec.structs.replace(measured, notes=notes), overhead


def overhead_s(budget_s: float) -> float:
    """Return the part of the budget for measuring a replica."""
    return min(budget_s * _OVERHEAD_SHARE, _MAX_OVERHEAD_S)
