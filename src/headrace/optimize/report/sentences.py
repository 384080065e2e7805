"""The result in sentences: what was gained, against what, how surely, and at what cost."""

from collections.abc import Iterator
from typing import Final

from headrace.core.text import bytes_text, number_text
from headrace.optimize.report import words
from headrace.optimize.report.data import Circumstances, Interval, OptimizeReport

_ALONE: Final = "one request at a time"


def headline(report: OptimizeReport) -> str:
    """The result in one line: `openvino-int8 takes 67.8 % less time than onnxruntime-fp32`."""
    chosen, baseline = report.chosen, report.baseline
    if not report.is_changed:
        return f"Nothing that was tried is better than {baseline.name}: keep it"
    return f"{chosen.name} {_changed(report, None)}"


def gain(report: OptimizeReport) -> Iterator[str]:
    """What was gained in time, and in which circumstances."""
    chosen, baseline, settings = report.chosen, report.baseline, report.settings
    if report.is_changed:
        yield f"{chosen.name} {_changed(report, chosen.cut_ci_ratio)}."
    else:
        yield f"{headline(report)}."
    if report.is_changed and chosen.p50_s is not None:
        yield (
            f"Half of its answers take at most {words.seconds(chosen.p50_s, chosen.p50_ci_s)}, "
            f"those of the baseline {words.seconds(baseline.p50_s, baseline.p50_ci_s)} "
            f"({conditions(settings)}). Brackets are {sureness(settings)}."
        )
    if report.is_changed and chosen.cold_cut_ratio is not None:
        yield (
            "Where other work drives it out of the caches between calls, it takes "
            f"{less(chosen.cold_cut_ratio, chosen.cold_cut_ci_ratio)}."
        )
    for other in report.references:
        if other.p50_s and chosen.p50_s is not None and other.name != chosen.name:
            cut = 1 - chosen.p50_s / other.p50_s
            yield (f"Against {other.name} ({words.seconds(other.p50_s)}) it takes {less(cut)}.")


def price(report: OptimizeReport) -> Iterator[str]:
    """What it cost in answers, and how small a loss would have been seen."""
    chosen, data = report.chosen, report.data
    if not data.is_labelled:
        if report.is_changed:
            agrees = words.percent(chosen.agreement_ratio)
            yield f"Fidelity only: it gives the baseline's answer in {agrees} of the examples."
        yield data.why_weaker or (
            "Without labels nobody knows which of two answers that differ is right, "
            "so a loss of accuracy is not measured."
        )
        return
    if not report.is_changed:
        return
    n = chosen.n or data.n
    said = f"On {n:,} labelled examples its {data.metric} is {words.quality(chosen, data)}"
    said += f", the baseline's {words.quality(report.baseline, data)}"
    if chosen.accuracy_loss is not None:
        unit = " points" if words.in_percent(data) else ""
        said += f": a loss of {words.loss(chosen, data)}{unit}"
        bounds = chosen.accuracy_loss_ci
        said += ", which may be none" if bounds and bounds[0] <= 0 <= bounds[1] else ""
    if chosen.lost is not None and chosen.gained is not None:
        said += f", {chosen.lost:,} answers lost and {chosen.gained:,} gained"
    if chosen.p_value is not None:
        said += f" ({words.p_value(chosen.p_value)})"
    yield f"{said}."
    if data.smallest_loss is not None:
        yield (
            f"So many examples show a loss of {points(data.smallest_loss, report)} or more; "
            f"{points(report.settings.max_loss, report)} was tolerated."
        )


def unproved(report: OptimizeReport) -> Iterator[str]:
    """What these figures do not say."""
    settings = report.settings
    features = ", ".join(report.processor.features) or "no features that are known to matter"
    yield (
        f"All this holds for {report.processor.name or 'this processor'} ({features}); "
        "on another the order may be another, and so may rounded answers."
    )
    lengths = "" if settings.length is None else " and lengths"
    yield f"Other batch sizes{lengths}, and many requests at once, were not measured here."
    if any(one.disturbed for one in report.accepted()):
        yield (
            "Others used the processor nearly all the time: times are those of a busy machine, "
            "while cuts compare windows that lie side by side."
        )
    yield from report.notes


def less(cut: float, bounds: Interval | None = None) -> str:
    """`67.8 % [67.5, 68.1] less time`, and of what is slower, how much more."""
    if cut >= 0:
        return f"{words.percent(cut, bounds)} less time"
    more = None if bounds is None else (-bounds[1], -bounds[0])
    return f"{words.percent(-cut, more)} more time"


def conditions(settings: Circumstances) -> str:
    """`1 thread, batch 1, length 128, one request at a time, hot caches`."""
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    length = [] if settings.length is None else [f"length {settings.length}"]
    at_once = "requests on all cores at once" if is_on_all_cores(settings) else _ALONE
    return ", ".join([threads, f"batch {settings.batch}", *length, at_once, "hot caches"])


def is_on_all_cores(settings: Circumstances) -> bool:
    """Whether requests were timed side by side, and times are those of a request's share."""
    return settings.target in {"throughput", "cost"}


def callers(settings: Circumstances) -> str:
    """Who a rate of requests was answered to."""
    return "all cores" if is_on_all_cores(settings) else "one caller"


def sureness(settings: Circumstances) -> str:
    """`95 % intervals, by 20 blocks`."""
    blocks = "" if settings.blocks is None else f", by {settings.blocks} blocks of turns"
    return f"{number_text(100 * settings.confidence)} % intervals{blocks}".replace(".0 %", " %")


def _changed(report: OptimizeReport, bounds: Interval | None) -> str:
    """What is different with the chosen one, first in what was asked for."""
    chosen, baseline, target = report.chosen, report.baseline, report.settings.target
    cut = ""
    if chosen.cut_ratio is not None:
        cut = f"takes {less(chosen.cut_ratio, bounds)} than {baseline.name}"
    others = {
        "throughput": ("answers", words.rate, chosen.throughput_per_s, baseline.throughput_per_s),
        "memory": ("needs", bytes_text, chosen.memory_bytes, baseline.memory_bytes),
        "cost": ("costs", number_text, chosen.cost_per_million, baseline.cost_per_million),
    }
    if target == "cost" and chosen.cost_per_million is None:
        target = "throughput"  # which the cost is of, whatever the price
    if target not in others:
        return cut or f"is chosen over {baseline.name}"
    verb, text, now, before = others[target]
    wanted = f"{verb} {text(now)} instead of {text(before)}"
    if target == "cost":
        wanted += " per million requests"
    return f"{wanted}, and {cut}" if cut else wanted


def points(ratio: float, report: OptimizeReport) -> str:
    """A difference of the metric: `0.46 points`."""
    if not words.in_percent(report.data):
        return f"{ratio:.2g}"
    return "1 point" if ratio == 0.01 else f"{100 * ratio:.2g} points"  # noqa: PLR2004  # one hundredth
