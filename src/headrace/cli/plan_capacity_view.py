"""What does a plan of capacity look like? Tables, JSON, a drawing, and a part of a spec."""

# ruff: noqa: PLC0415  # matplotlib is an extra, and slow to import

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from headrace.advise.capacity.documents import Asked, Autoscaling, CapacityPlan, Month, Option
from headrace.advise.capacity.limits import grouped
from headrace.cli.output import show, table, write_json
from headrace.cli.plan_capacity_asked import Target


def show_plan(plan: CapacityPlan, asked: Asked, target: Target, *, is_assumed: bool) -> None:
    """For people.

    Args:
        is_assumed: Nobody named a type of node, nor what it costs.
    """
    show(_options(plan), "")
    best = next((one for one in plan.options if one.node.name == plan.recommended), None)
    for option in plan.options if best is None else (best,):
        show(f"{option.node.name}: " + "\n  ".join(option.why))
    if best is not None:
        show("\n  ".join(("", *_details(best, asked))).lstrip("\n"))
    if len(plan.months) > 1:
        show("", _months(plan.months))
    if plan.autoscale is not None:
        show("", "\n".join(spec_lines(plan.autoscale, asked, target)))
    lines = [*plan.notes, *(f"assumed: {one}" for one in plan.assumptions)]
    if is_assumed:
        lines.insert(0, "nodes and their cost are made up; name yours with --node")
    show("", *lines)
    what = f"{grouped(plan.peak_rate)} requests/s at the peak, {grouped(plan.mean_rate)} on average"
    verdict = "none of them" if best is None else f"{best.nodes:,} x {best.node.name}"
    show(Text(f"recommended for {what}: {verdict}", style="bold"))


def write(plan: CapacityPlan, asked: Asked, target: Target) -> None:
    """For programs."""
    write_json(document(plan, asked, target))


def document(plan: CapacityPlan, asked: Asked, target: Target) -> dict[str, object]:
    """The plan, what it was made from, and the figures it rests on."""
    options = [
        {**asdict(option), "usable_cores": option.node.usable_cores} for option in plan.options
    ]
    promise = asked.promise
    return {
        "asked": {
            "p99_s": promise.p99_s,
            "burstiness": promise.burstiness,
            "balancing": promise.balancing,
            "headroom": asdict(asked.headroom),
            "replica": asdict(asked.shape),
            "capacity_per_replica": asked.curve.capacity,
            "best_rows": asked.curve.best_rows,
            "runs_at_once": asked.curve.places,
            "endpoint": target.endpoint,
        },
        **{key: value for key, value in asdict(plan).items() if key != "options"},
        "options": options,
        "figures": [asdict(one) for one in asked.limits.all],
    }


def spec_lines(scaling: Autoscaling, asked: Asked, target: Target) -> list[str]:
    """The part of a spec that follows, for each cluster; the target follows from the SLO."""
    lines = [
        "endpoints:",
        f"  - name: {target.endpoint or 'NAME'}",
        "    autoscale:",
        f"      min_replicas: {scaling.min_replicas}",
        f"      max_replicas: {scaling.max_replicas}",
    ]
    if asked.promise.p99_s is not None:
        lines += ["    slo:", f"      latency_s: {asked.promise.p99_s:g}"]
    return lines


def draw(plan: CapacityPlan, path: Path) -> None:
    """Replicas and cost by month, with the load; of a plan without months, by type of node."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if len(plan.months) > 1:
        at = [one.month for one in plan.months]
        left.step(at, [one.replicas for one in plan.months], where="mid", label="replicas")
        left.step(at, [one.nodes for one in plan.months], where="mid", label="nodes")
        left.set(xlabel="month", ylabel="count", title=f"on {plan.recommended}")
        (cost,) = right.step(at, [one.cost_per_month for one in plan.months], where="mid")
        right.set(xlabel="month", ylabel="cost a month")
        load = right.twinx()
        (peak,) = load.plot(at, [one.peak_rate for one in plan.months], "k:")
        load.set(ylabel="requests/s at the peak")
        left.legend(fontsize="small")
        right.legend([cost, peak], ["cost", "requests/s"], fontsize="small", loc="lower right")
        for axes in (left, right, load):
            axes.set_ylim(bottom=0.0)  # what grows by a fifth is not to look as if it doubled
    else:
        fitting = [one for one in plan.options if one.fits]
        names = [one.node.name for one in fitting]
        left.bar(names, [one.replicas for one in fitting])
        left.set(ylabel="replicas", title=f"{grouped(plan.peak_rate)} requests/s at the peak")
        right.bar(names, [one.cost_per_month for one in fitting])
        right.set(ylabel="cost a month", title=f"{grouped(plan.mean_rate)} on average")
    figure.savefig(path, dpi=120)


def _options(plan: CapacityPlan) -> Text:
    is_told = not all(one.fits for one in plan.options)
    rows: list[Sequence[str | Text]] = [
        (
            Text(one.node.name, style="bold green" if one.node.name == plan.recommended else ""),
            *(["yes" if one.fits else "no"] if is_told else []),
            *_counts(one),
        )
        for one in plan.options
    ]
    heads = ("replicas", "nodes", "clusters", "gateways", "p99", "load", "a month", "a million")
    return table(rows, "node", *(["fits"] if is_told else []), *heads)


def _counts(one: Option) -> Sequence[str]:
    if one.need is None:
        return ("-",) * 8
    return (
        f"{one.replicas:,}",
        f"{one.nodes:,}",
        f"{one.clusters:,}",
        f"{one.need.gateways * one.clusters:,}",
        "-" if one.p99_s is None else f"{one.p99_s * 1e3:,.3g} ms",
        f"{one.load_ratio:.0%}",
        _cost(one.cost_per_month),
        f"{one.cost_per_million:,.3g}",
    )


def _cost(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000.0 else f"{amount:,.2f}"  # noqa: PLR2004  # cents of thousands say nothing


def _details(best: Option, asked: Asked) -> list[str]:
    lines = [
        f"{grouped(best.cores)} cores, {grouped(best.memory_bytes / 1e9)} GB"
        + (f", {best.gpus:,} GPUs" if best.gpus else "")
        + f"; up to {best.connections_per_gateway:,} connections from a gateway to replicas"
    ]
    if best.network_bits_per_s is not None:
        lines.append(f"{best.network_bits_per_s / 1e9:,.3g} Gbit/s between callers and gateways")
    if asked.forecast.curve.mean < asked.forecast.curve.peak:
        lines.append(f"{_cost(best.autoscaled_cost_per_month)} a month if nodes follow the load")
    return lines


def _months(months: Sequence[Month]) -> Text:
    shown = [one for one in months if one.month % max(1, len(months) // 12) == 0]
    rows = [
        (
            str(one.month),
            grouped(one.peak_rate),
            f"{one.replicas:,}",
            f"{one.nodes:,}",
            f"{one.clusters:,}",
            _cost(one.cost_per_month),
        )
        for one in shown
    ]
    return table(rows, "month", "peak requests/s", "replicas", "nodes", "clusters", "a month")
