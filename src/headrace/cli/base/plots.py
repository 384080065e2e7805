"""Plots of loads, profiles and simulated rollouts, drawn by matplotlib of the extra `plot`."""

# ruff: noqa: PLC0415  # matplotlib is an extra, and slow to import

import importlib.util
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import typer

from headrace.core import FailedPreconditionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headrace.load import LoadResult
    from headrace.optimize.profiling.document import Profile
    from headrace.rollout.simulate import Result

PICTURES: Final = (".png", ".svg", ".pdf")
PAGES: Final = (".html", ".svg", ".png")
_MAX_BINS: Final = 120
_SLOWEST: Final = 400
_LONGEST_TITLE: Final = 140
_P50, _P99, _FAILED, _LIMIT = "#2f6690", "#b3123b", "#e08a00", "#5c636b"
_MILLI: Final = 1e3
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: #fff; color: #1c1e21;
  font: 16px/1.5 system-ui, sans-serif }}
svg {{ width: 100%; height: auto }} h1 {{ font-size: 1.3rem; overflow-wrap: anywhere }}
pre {{ overflow-x: auto; background: #f5f6f8; padding: 1rem; border-radius: 6px }}
</style></head><body><h1>{title}</h1>
{picture}
<pre>{text}</pre>
</body></html>
"""


def check_plot(path: Path, suffixes: Sequence[str] = PICTURES) -> None:
    """Refuse an impossible plot before the work is done.

    Raises:
        BadParameter: The file's name has another ending, or its folder is missing.
        FailedPreconditionError: matplotlib is not installed.
    """
    if path.suffix.lower() not in suffixes:
        msg = f"'{path}' has no supported extension: use {', '.join(suffixes)}"
        raise typer.BadParameter(msg, param_hint="--plot")
    if not path.absolute().parent.is_dir():
        msg = f"no directory '{path.parent}' for the plot"
        raise typer.BadParameter(msg, param_hint="--plot")
    if importlib.util.find_spec("matplotlib") is None:
        msg = "--plot needs matplotlib; install it with: pip install 'headrace[plot]'"
        raise FailedPreconditionError(msg)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_load(path: Path, results: "Sequence[LoadResult]", *, title: str) -> None:
    """Plot one run over time and by quantile; several by their rates.

    Args:
        title: Displayed as plain text.
    """
    shown = "".join(character if character.isprintable() else "?" for character in title)[
        :_LONGEST_TITLE
    ]
    if len(results) == 1:
        figure = _figure(11.0, 8.0)
        over_time, by_quantile = figure.subplots(2, 1)
        _draw_over_time(over_time, results[0])
        _draw_by_quantile(by_quantile, results[0])
    else:
        figure = _of_steps(results)
    figure.suptitle(shown, fontsize=11, parse_math=False)
    kind = path.suffix.lower()
    if kind == ".png":
        figure.savefig(path, dpi=120)
        return
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays searchable and accessible
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture = buffer.getvalue()
    if kind == ".svg":
        path.write_text(picture)
        return
    from headrace.cli.base.load_report import report, steps_report

    parts = report(results[0]) if len(results) == 1 else steps_report(results)
    text = "\n".join(part.plain for part in parts)
    inline = picture[picture.index("<svg") :]
    path.write_text(_PAGE.format(title=escape(shown), picture=inline, text=escape(text)))


def _draw_over_time(axes: "Axes", result: "LoadResult") -> None:
    """Plot p50 and p99 of each second, the slowest responses, and the times of failures."""
    sample = result.sample
    sent_at = sample.intended - result.plan.warm_up_s
    valid = sample.succeeded
    latency_ms = sample.latency_s[valid] * _MILLI
    slowest = np.argsort(latency_ms)[-_SLOWEST:]
    axes.plot(
        sent_at[valid][slowest],
        latency_ms[slowest],
        linestyle="none",
        marker=".",
        markersize=3,
        color="#9aa2ab",
        label=f"the slowest {len(slowest)}",
    )
    bins = max(1, min(round(result.seconds), _MAX_BINS))
    width = max(result.seconds, 0.1) / bins
    bin_of = np.clip((sent_at[valid] / width).astype(np.int64), 0, bins - 1)
    middle = (np.arange(bins, dtype=np.float64) + 0.5) * width
    for quantile, colour, label in ((0.5, _P50, "p50"), (0.99, _P99, "p99")):
        inside = (latency_ms[bin_of == i] for i in range(bins))
        # NaN for a bin without due requests.
        heights = [np.quantile(part, quantile) if len(part) else np.nan for part in inside]
        axes.plot(middle, heights, color=colour, label=label)
    failed = sent_at[~valid]
    if len(failed):
        axes.plot(
            failed[:: -(-len(failed) // 2000)],
            np.full(len(failed[:: -(-len(failed) // 2000)]), 0.98),
            linestyle="none",
            marker="|",
            color=_FAILED,
            transform=axes.get_xaxis_transform(),
            label=f"{len(failed):,} failed",
        )
    _draw_limits(axes, result)
    axes.set(xlabel="seconds", ylabel="latency from the intended time, ms")
    axes.set_xlim(0, max(result.seconds, 0.1))
    _finish(axes)


def _draw_by_quantile(axes: "Axes", result: "LoadResult") -> None:
    """Plot latency against the share of slower requests, with intervals where known."""
    from headrace.cli.base.load_report import quantile_name

    latency_ms = np.sort(result.sample.latency_s[result.sample.succeeded]) * _MILLI
    count = len(latency_ms)
    if count:
        ranks = np.unique(np.geomspace(1, count, 400).astype(np.int64))  # from the slowest
        axes.plot(count / ranks, latency_ms[count - ranks], color=_P50, drawstyle="steps-post")
    marks = []
    for quantile, interval in result.latency_s.items():
        if interval is None:
            continue
        position = 1 / (1 - quantile)
        marks.append((position, quantile_name(quantile)))
        if interval.low is not None and interval.high is not None:
            axes.plot(
                [position, position],
                [interval.low * _MILLI, interval.high * _MILLI],
                color=_P99,
                linewidth=2,
                marker="_",
                label=None if len(marks) > 1 else "95 % interval",
            )
    _draw_limits(axes, result)
    axes.set_xscale("log")
    axes.set_xticks([position for position, _ in marks], [name for _, name in marks])
    axes.minorticks_off()
    axes.set(xlabel="quantile", ylabel="latency, ms")
    axes.set_xlim(1, max(count, 1000))
    _finish(axes)


def _draw_limits(axes: "Axes", result: "LoadResult") -> None:
    for judgement in result.judgements:
        objective = judgement.objective
        if objective.quantile is not None:
            axes.axhline(
                objective.limit * _MILLI,
                color=_LIMIT,
                linestyle="--",
                linewidth=1,
                label=f"limit of {objective.name}",
            )


def _of_steps(results: "Sequence[LoadResult]") -> "Figure":
    """Plot p50 and p99 against the requested rate, and the achieved rate."""
    from headrace.cli.base.load_report import quantile_name

    figure = _figure(11.0, 5.0)
    latency, achieved = figure.subplots(1, 2)
    rates = [result.plan.rate_per_s for result in results]
    for quantile, colour in ((0.5, _P50), (0.99, _P99)):
        intervals = [
            (rate, interval)
            for rate, result in zip(rates, results, strict=True)
            if (interval := result.latency_s[quantile]) is not None
        ]
        latency.plot(
            [rate for rate, _ in intervals],
            [interval.value * _MILLI for _, interval in intervals],
            marker="o",
            color=colour,
            label=quantile_name(quantile),
        )
        for rate, interval in intervals:
            if interval.low is not None and interval.high is not None:
                bounds = [interval.low * _MILLI, interval.high * _MILLI]
                latency.plot([rate, rate], bounds, color=colour, marker="_", linewidth=1)
    _draw_limits(latency, results[0])
    latency.set_yscale("log")
    latency.set(xlabel="requests per second, offered", ylabel="latency, ms")
    achieved.plot(rates, rates, color=_LIMIT, linestyle="--", linewidth=1, label="as asked")
    achieved.plot(
        rates, [result.achieved_per_s for result in results], marker="o", color=_P50, label="good"
    )
    achieved.set(xlabel="requests per second, offered", ylabel="good answers per second")
    for axes in (latency, achieved):
        _finish(axes)
    return figure


def _finish(axes: "Axes") -> None:
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, loc="upper left", fontsize=8, frameon=False)


def draw_profile(path: Path, profile: "Profile") -> None:
    """Plot the predictions for one replica, and the measurements."""
    figure = _figure(12.0, 4.2)
    load, batch = figure.subplots(1, 2)
    curve = profile.prediction.curve
    rates = [point.rate for point in curve]
    for name, values in (
        ("p99", [point.p99_s for point in curve]),
        ("p95", [point.p95_s for point in curve]),
        ("p50", [point.p50_s for point in curve]),
    ):
        load.plot(rates, [value * 1e3 for value in values], marker="o", label=name)
    load.axvline(profile.prediction.capacity, linestyle=":", color="black", label="capacity")
    if profile.prediction.knee_rate is not None:
        load.axvline(profile.prediction.knee_rate, linestyle="--", color="grey", label="knee")
    load.set(xlabel="requests/s", ylabel="latency (ms)", yscale="log", title=profile.model)
    load.legend(fontsize="small")
    length = profile.measured.loaded.length
    cells = [cell for cell in profile.measured.cells if cell.length == length]
    for threads, runs in sorted({(cell.threads, cell.runs) for cell in cells}):
        line = sorted(
            (cell.rows, cell.rows_per_s)
            for cell in cells
            if (cell.threads, cell.runs) == (threads, runs)
        )
        label = f"{runs} at once, {threads} thread{'' if threads == 1 else 's'} each"
        batch.plot(*zip(*line, strict=True), marker="o", label=label)
    title = f"length {length}" if length else "measured"
    batch.set(xlabel="rows in a batch", ylabel="rows/s", title=title)
    batch.set_xscale("log", base=2)
    batch.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_rollouts(
    path: Path, results: "Sequence[Result]", *, alpha: float, duration_s: int
) -> None:
    """Plot the share of runs decided by each second, one panel per candidate."""
    columns = min(len(results), 2)
    rows = -(-len(results) // columns)
    figure = _figure(7.0 * columns, 3.6 * rows)
    for i, result in enumerate(results):
        axes = figure.add_subplot(rows, columns, i + 1)
        for times, label, colour in (
            (result.promoted_s, "promoted", "tab:green"),
            (result.rolled_back_s, "rolled back", "tab:red"),
            (result.naive_s, "z test of errors, read as often", "tab:gray"),
        ):
            shares = [rank / result.runs for rank in range(1, len(times) + 1)]
            last = shares[-1] if shares else 0.0
            axes.step(
                [0.0, *times, duration_s],
                [0.0, *shares, last],
                where="post",
                label=label,
                color=colour,
            )
        axes.axhline(alpha, linestyle=":", color="black", linewidth=1.0, label=f"alpha {alpha:g}")
        axes.set(
            title=result.candidate,
            xlabel="seconds watched",
            ylabel="share of runs",
            xlim=(0, duration_s),
            ylim=(0, 1.02),
        )
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)
