"""`headrace plan mode`: cost and latency of a model online, in a stream and in jobs."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from headrace.cli.options import DEFAULT_HOME, CommandGroup, Home, Json, seconds
from headrace.cli.output import columns, progress, show, table, write_json
from headrace.cli.profile.capacity import capacity
from headrace.core.text import duration_text

if TYPE_CHECKING:
    from headrace.advise.arrivals import Arrivals
    from headrace.advise.mode import Arrival, Costs, ModePlan

app = CommandGroup(help="Plan before anything runs: in which mode, and on how many machines.")
_PEAK: Final = 3.0
"""The peak over the average, where nobody says what it is."""
app.command()(capacity)


@app.callback()
def _plan() -> None:
    """Plan before anything runs."""


@app.command()
def mode(
    *,
    arrival: Annotated[
        str,
        typer.Option(
            help="How rows come: `requests` (somebody asks and waits), `events` (something "
            "happens), `table` (they lie in files).",
            show_default="asked for on a terminal",
        ),
    ] = "",
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Rows a second on average.", show_default="from --log, else asked for"
        ),
    ] = None,
    rows_per_day: Annotated[
        float | None, typer.Option(min=0.0, help="The same as rows a day.")
    ] = None,
    peak_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Rows a second in the busiest minute.",
            show_default="from --log, else three times the average",
        ),
    ] = None,
    latency: Annotated[
        str,
        typer.Option(
            help="How long an answer may take at p99, from the request or the event: 50ms.",
            show_default="any time",
        ),
    ] = "",
    freshness: Annotated[
        str,
        typer.Option(
            help="How old what an answer is based on may be when it is used, such as 1h or 2d.",
            show_default="1d",
        ),
    ] = "",
    entities: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of how many things (customers, products) answers could be computed beforehand, "
            "where all inputs are known then.",
            show_default="they could not",
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="A sample of what comes, JSON lines or CSV with a time in each: rates and peaks "
            "are read from it.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    time_column: Annotated[
        str, typer.Option(help="Of --log.", show_default="timestamp, time, ts, ...")
    ] = "",
    key_column: Annotated[
        str,
        typer.Option(
            help="Of --log: by which rows are of the same thing; says how many there are."
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            help="A model that `headrace profile` has measured: a path or NAME[:VERSION]."
        ),
    ] = "",
    row_time: Annotated[
        str,
        typer.Option(
            help="Instead of --model: what a row takes alone on one core, such as 4ms.",
            show_default="from the profile",
        ),
    ] = "",
    batch_row_time: Annotated[
        str,
        typer.Option(
            help="The same of a row in a batch.",
            show_default="from the profile, else as --row-time",
        ),
    ] = "",
    cost_per_hour: Annotated[
        float, typer.Option(min=0.0, help="What a core costs an hour, in any currency.")
    ] = 0.05,
    home: Home = DEFAULT_HOME,
    json: Json = False,
) -> None:
    """Recommend online, streaming or batch, with the numbers and the cost behind it.

    Asks for what is missing on a terminal. Examples:

      headrace plan mode --arrival events --rate 200 --freshness 5s --row-time 2ms

      headrace plan mode --log requests.jsonl --key-column customer_id --model fraud
    """
    from headrace.advise.mode import Arrival, Needs, plan_mode

    found = _arrivals(log, time_column, key_column)
    is_asked = sys.stdin.isatty() and not json
    kind = _kind(arrival, Arrival, is_asked=is_asked)
    mean = _rate(rate, rows_per_day, found, is_asked=is_asked)
    peak = peak_rate if peak_rate is not None else found.peak_rate if found else _PEAK * mean
    if is_asked and kind == "requests" and not latency:
        latency = typer.prompt("How long may one who asks wait (p99)?", default="100ms", err=True)
    if is_asked and not freshness:
        freshness = typer.prompt(
            "How old may what an answer is based on be?", default="1d", err=True
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
    if json:
        write_json(_document(plan, found))
        return
    _show(plan, found)


def _arrivals(log: Path | None, time_column: str, key_column: str) -> "Arrivals | None":
    if log is None:
        return None
    from headrace.advise.arrivals import read_arrivals

    with progress(f"reading {log}"):
        return read_arrivals(log, time_column=time_column, key_column=key_column)


def _kind(said: str, kinds: "type[Arrival]", *, is_asked: bool) -> "Arrival":
    if not said and is_asked:
        said = typer.prompt(
            "How do rows come: requests (somebody waits), events, or a table?",
            default="requests",
            err=True,
        )
    try:
        return kinds(said.strip().lower())
    except ValueError:
        names = ", ".join(kinds)
        what = f"'{said}' is no way of arriving" if said else "how do rows come?"
        raise typer.BadParameter(f"{what}; say one of {names}", param_hint="--arrival") from None


def _rate(
    rate: float | None, rows_per_day: float | None, found: "Arrivals | None", *, is_asked: bool
) -> float:
    if rate is not None and rows_per_day is not None:
        raise typer.BadParameter("say it once: --rate or --rows-per-day", param_hint="--rate")
    if rate is not None:
        return rate
    if rows_per_day is not None:
        return rows_per_day / 86_400
    if found is not None:
        return found.rate
    if is_asked:
        asked: float = typer.prompt("How many rows a second, on average?", type=float, err=True)
        return asked
    raise typer.BadParameter(
        "how many rows come? say --rate, --rows-per-day, or give a --log", param_hint="--rate"
    )


def _costs(
    model: str,
    row_time: str,
    batch_row_time: str,
    *,
    cost_per_hour: float,
    home: Path,
    is_asked: bool,
) -> "Costs":
    from headrace.advise.mode import Costs

    if model and row_time:
        raise typer.BadParameter("say it once: --model or --row-time", param_hint="--model")
    if not model and not row_time and is_asked:
        row_time = typer.prompt("What does a row take on one core?", default="5ms", err=True)
    if row_time:
        row_s = seconds(row_time, "--row-time")
        batch_s = seconds(batch_row_time, "--batch-row-time") if batch_row_time else row_s
        return Costs(row_s=row_s, batch_row_s=batch_s, cost_per_hour=cost_per_hour)
    if not model:
        raise typer.BadParameter(
            "what does a row take? say --row-time, or name a --model that `headrace profile` "
            "has measured",
            param_hint="--model",
        )
    row_s, batch_s = _profiled(model, home)
    return Costs(row_s=row_s, batch_row_s=batch_s, cost_per_hour=cost_per_hour)


def _profiled(model: str, home: Path) -> tuple[float, float]:
    """What a row takes alone, and in the best batch, by the newest profile of a model."""
    from headrace.cli.profile.documents import newest_profile

    measured = newest_profile(model, home).measured
    length = measured.loaded.length
    cells = [
        cell
        for cell in measured.cells
        if cell.threads == 1 and cell.runs == 1 and cell.length == length
    ]
    alone = min(cells, key=lambda cell: cell.rows)
    return alone.mean_s / alone.rows, min(cell.mean_s / cell.rows for cell in cells)


def _document(plan: "ModePlan", found: "Arrivals | None") -> dict[str, object]:
    options = [
        {**asdict(option), "cost_per_million": option.cost_per_million} for option in plan.options
    ]
    return {**asdict(plan), "options": options, "log": None if found is None else asdict(found)}


def _show(plan: "ModePlan", found: "Arrivals | None") -> None:

    needs = plan.needs
    if found is not None:
        show("\n".join(columns(_of_log(found))), "")
    rows = [
        (
            Text(option.mode, style="bold green" if option.mode == plan.recommended else ""),
            "yes" if option.fits else "no",
            str(option.cores),
            f"{option.cost_per_month:,.2f}",
            "-" if option.cost_per_million is None else f"{option.cost_per_million:,.3g}",
            duration_text(option.latency_s),
        )
        for option in plan.options
    ]
    show(table(rows, "mode", "fits", "cores", "a month", "a million rows", "p99"), "")
    for option in plan.options:
        show(f"{option.mode}: " + "\n  ".join(option.why))
    show("", *plan.notes)
    what = f"{needs.rate:,.4g} rows/s, {needs.peak_rate:,.4g} at the peak"
    verdict = plan.recommended or "none of them"
    show(Text(f"recommended for {needs.arrival} of {what}: {verdict}", style="bold"))


def _of_log(found: "Arrivals") -> list[tuple[str, str]]:
    rows = [
        ("rows", f"{found.rows:,} in {found.seconds:,.0f} s"),
        ("rate", f"{found.rate:,.4g}/s, {found.peak_rate:,.4g}/s in the busiest minute"),
        ("burstiness", f"{found.burstiness:.3g} (1 is chance)"),
        ("quiet", f"{found.quiet_ratio:.0%} of the minutes"),
    ]
    if found.keys is not None:
        repeats = found.repeat_ratio or 0.0
        rows.append(("keys", f"{found.keys:,} different ones; {repeats:.0%} of rows came again"))
    if found.unreadable:
        rows.append(("left out", f"{found.unreadable:,} lines without a time"))
    return rows
