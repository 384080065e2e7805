"""`headrace plan mode`: cost and latency of a model online, in a stream and in jobs."""

# a command imports what it uses, so that each starts fast

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from headrace.advise.plan.arrivals import ArrivalLog, read_arrivals
from headrace.advise.plan.mode import Arrival, Costs, ModePlan, Needs, plan_mode
from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import (
    CommandGroup,
    Home,
    Json,
    Profiled,
    file_option,
    option,
    seconds,
)
from headrace.cli.base.output import Column, columns, progress, rows_text, show, write_json
from headrace.cli.base.profiles import newest_profile
from headrace.cli.profile.capacity import capacity
from headrace.core.text import duration_text

app = CommandGroup(help="Capacity planning: serving mode and number of machines.")
_PEAK: Final = 3.0
"""Default ratio of the peak to the average rate."""
app.command()(capacity)


@app.callback()
def _plan() -> None:
    """Capacity planning before deployment."""


@app.command()
def mode(
    *,
    arrival: Annotated[
        str,
        option(
            "How rows arrive: `requests` (a caller waits), `events` (a stream), `table` (files).",
            shown="prompted on a terminal",
        ),
    ] = "",
    rate: Annotated[
        float | None,
        option("Average rows per second.", min=0.0, shown="from --log, else prompted"),
    ] = None,
    rows_per_day: Annotated[
        float | None, option("Average rows per day, instead of --rate.", min=0.0)
    ] = None,
    peak_rate: Annotated[
        float | None,
        option(
            "Rows per second in the busiest minute.",
            min=0.0,
            shown="from --log, else three times the average",
        ),
    ] = None,
    latency: Annotated[
        str,
        option(
            "p99 latency target, from the request or event: 50ms.",
            shown="any time",
        ),
    ] = "",
    freshness: Annotated[
        str,
        option(
            "Maximum age of the input data when an answer is used, such as 1h or 2d.",
            shown="1d",
        ),
    ] = "",
    entities: Annotated[
        int | None,
        option(
            "Number of entities (customers, products) whose answers can be computed in advance, "
            "if all inputs are known then.",
            min=1,
            shown="answers cannot be computed in advance",
        ),
    ] = None,
    log: Annotated[
        Path | None,
        file_option(
            "Sample of arrivals, JSON lines or CSV with a time per line, from which rates and "
            "peaks are derived."
        ),
    ] = None,
    time_column: Annotated[str, option("Of --log.", shown="timestamp, time, ts, ...")] = "",
    key_column: Annotated[str, option("Entity column of --log; counts distinct entities.")] = "",
    model: Profiled = "",
    row_time: Annotated[
        str,
        option(
            "Time of a single row on one core, such as 4ms, instead of --model.",
            shown="from the profile",
        ),
    ] = "",
    batch_row_time: Annotated[
        str, option("Time per row in a batch.", shown="from the profile, else --row-time")
    ] = "",
    cost_per_hour: Annotated[
        float, option("Cost of a core per hour, in any currency.", min=0.0)
    ] = 0.05,
    home: Home = DEFAULT_HOME,
    json: Json = False,
) -> None:
    """Recommend online, streaming or batch inference, with figures and costs.

    Prompts for missing values on a terminal. Examples:

      headrace plan mode --arrival events --rate 200 --freshness 5s --row-time 2ms

      headrace plan mode --log requests.jsonl --key-column customer_id --model fraud
    """
    log_arrivals = None
    if log is not None:
        with progress(f"reading {log}"):
            log_arrivals = read_arrivals(log, time_column=time_column, key_column=key_column)
    is_asked = sys.stdin.isatty() and not json
    if not arrival and is_asked:
        question = "How do rows arrive: requests (a caller waits), events, or a table?"
        arrival = typer.prompt(question, default="requests", err=True)
    try:
        kind = Arrival(arrival.strip().lower())
    except ValueError:
        description = (
            f"'{arrival}' is not an arrival mode" if arrival else "the arrival mode is missing"
        )
        msg = f"{description}; use one of {', '.join(Arrival)}"
        raise typer.BadParameter(msg, param_hint="--arrival") from None
    mean = _rate(rate, rows_per_day, log_arrivals, is_asked=is_asked)
    peak = (
        peak_rate
        if peak_rate is not None
        else log_arrivals.peak_rate
        if log_arrivals
        else _PEAK * mean
    )
    if is_asked and kind == "requests" and not latency:
        latency = typer.prompt("What is the p99 latency target?", default="100ms", err=True)
    if is_asked and not freshness:
        freshness = typer.prompt(
            "What is the maximum age of the input data?", default="1d", err=True
        )
    needs = Needs(
        arrival=kind,
        rate=mean,
        peak_rate=max(peak, mean),
        latency_s=seconds(latency, "--latency") if latency else None,
        freshness_s=seconds(freshness, "--freshness") if freshness else None,
        entities=entities,
    )
    costs = _costs(
        model,
        row_time,
        batch_row_time,
        cost_per_hour=cost_per_hour,
        home=home,
        is_asked=is_asked,
    )
    plan = plan_mode(needs, costs)
    if not json:
        _show(plan, log_arrivals)
        return
    choices = [
        {**asdict(choice), "cost_per_million": choice.cost_per_million} for choice in plan.options
    ]
    arrivals = None if log_arrivals is None else asdict(log_arrivals)
    write_json({**asdict(plan), "options": choices, "log": arrivals})


def _rate(
    rate: float | None, rows_per_day: float | None, arrivals: ArrivalLog | None, *, is_asked: bool
) -> float:
    if rate is not None and rows_per_day is not None:
        raise typer.BadParameter(
            "--rate and --rows-per-day exclude each other", param_hint="--rate"
        )
    if rate is not None:
        return rate
    if rows_per_day is not None:
        return rows_per_day / 86_400
    if arrivals is not None:
        return arrivals.rate
    if is_asked:
        answer: float = typer.prompt("How many rows per second on average?", type=float, err=True)
        return answer
    raise typer.BadParameter(
        "the rate is missing: pass --rate, --rows-per-day or --log", param_hint="--rate"
    )


def _costs(
    model: str,
    row_time: str,
    batch_row_time: str,
    *,
    cost_per_hour: float,
    home: Path,
    is_asked: bool,
) -> Costs:
    if model and row_time:
        raise typer.BadParameter("--model and --row-time exclude each other", param_hint="--model")
    if not model and not row_time and is_asked:
        row_time = typer.prompt("How long does one row take on one core?", default="5ms", err=True)
    if row_time:
        row_s = seconds(row_time, "--row-time")
        batch_s = seconds(batch_row_time, "--batch-row-time") if batch_row_time else row_s
        return Costs(row_s=row_s, batch_row_s=batch_s, cost_per_hour=cost_per_hour)
    if not model:
        raise typer.BadParameter(
            "the run time is missing: pass --row-time, or a --model that was measured by "
            "`headrace profile`",
            param_hint="--model",
        )
    # Time of a row alone, and in the best batch, by the newest profile.
    measured = newest_profile(model, home).measured
    length = measured.loaded.length
    cells = [
        cell
        for cell in measured.cells
        if cell.threads == 1 and cell.runs == 1 and cell.length == length
    ]
    alone = min(cells, key=lambda cell: cell.rows)
    return Costs(
        row_s=alone.mean_s / alone.rows,
        batch_row_s=min(cell.mean_s / cell.rows for cell in cells),
        cost_per_hour=cost_per_hour,
    )


def _show(plan: ModePlan, arrivals: ArrivalLog | None) -> None:
    needs = plan.needs
    if arrivals is not None:
        rows = [
            ("rows", f"{arrivals.rows:,} in {arrivals.seconds:,.0f} s"),
            ("rate", f"{arrivals.rate:,.4g}/s, {arrivals.peak_rate:,.4g}/s in the busiest minute"),
            ("burstiness", f"{arrivals.burstiness:.3g} (1 is random)"),
            ("quiet", f"{arrivals.quiet_ratio:.0%} of the minutes"),
        ]
        if arrivals.keys is not None:
            again = f"{arrivals.repeat_ratio or 0.0:.0%} of rows repeat an entity"
            rows.append(("keys", f"{arrivals.keys:,} distinct; {again}"))
        if arrivals.unreadable:
            rows.append(("left out", f"{arrivals.unreadable:,} lines without a time"))
        show("\n".join(columns(rows)), "")
    cells: dict[str, Column] = {
        "mode": lambda choice: Text(
            choice.mode, style="bold green" if choice.mode == plan.recommended else ""
        ),
        "fits": lambda choice: "yes" if choice.fits else "no",
        "cores": lambda choice: str(choice.cores),
        "per month": lambda choice: f"{choice.cost_per_month:,.2f}",
        "per million rows": lambda choice: (
            "-" if choice.cost_per_million is None else f"{choice.cost_per_million:,.3g}"
        ),
        "p99": lambda choice: duration_text(choice.latency_s),
    }
    show(rows_text(plan.options, cells), "")
    for choice in plan.options:
        show(f"{choice.mode}: " + "\n  ".join(choice.why))
    show("", *plan.notes)
    description = f"{needs.rate:,.4g} rows/s, {needs.peak_rate:,.4g} at the peak"
    verdict = plan.recommended or "none of them"
    show(Text(f"recommended for {needs.arrival} of {description}: {verdict}", style="bold"))
