"""Terminal text of an optimization report."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Final

from headrace.core.text import (
    NOTHING,
    bytes_text,
    duration_text,
    duration_unit,
    number_text,
    percent_text,
    printable,
)
from headrace.optimize.report.data import (
    CandidateReport,
    Interval,
    MeasurementSettings,
    OptimizeReport,
    QualityEvidence,
)

_MIN_P: Final = 0.001


def seconds(value: float | None, bounds: Interval | None = None) -> str:
    """Format a time in a suitable unit: `4.71 ms`, with bounds `4.71 ms [4.66, 4.8]`."""
    if value is None or bounds is None:
        return duration_text(value)
    _, size = duration_unit(value)
    return f"{duration_text(value)}{_interval(bounds, lambda x: number_text(x / size))}"


def percent(ratio: float | None, bounds: Interval | None = None) -> str:
    """Format a share: `67.8 %`, with bounds `67.8 % [67.5, 68.1]`."""
    return percent_text(ratio) + _interval(bounds, lambda x: number_text(100 * x))


def rate(per_s: float | None) -> str:
    """Format requests per second: `212/s`."""
    return NOTHING if per_s is None else f"{number_text(per_s)}/s"


def p_value(value: float | None) -> str:
    """Return a text such as `p = 0.03`."""
    if value is None:
        return ""
    return f"p < {_MIN_P}" if value < _MIN_P else f"p = {number_text(value, digits=2)}"


def quality(candidate: CandidateReport, data: QualityEvidence) -> str:
    """Format a candidate's metric score, or its agreement without labels."""
    if not data.is_labelled:
        return percent(candidate.agreement_ratio)
    if candidate.accuracy is None:
        return NOTHING
    if not math.isfinite(candidate.accuracy):
        return NOTHING
    if not in_percent(data):
        return f"{candidate.accuracy:.4g}"
    return f"{100 * candidate.accuracy:.{_places(candidate.n or data.n)}f} %"


def loss(candidate: CandidateReport, data: QualityEvidence) -> str:
    """Format the loss against the baseline, in points or the metric's unit: `0.04 [-0.4, 0.5]`."""
    value, bounds = candidate.accuracy_loss, candidate.accuracy_loss_ci
    if value is None:
        return NOTHING
    factor = 100 if in_percent(data) else 1
    locations = _places(candidate.n or data.n) if in_percent(data) else 4

    def text(x: float) -> str:
        if not math.isfinite(x):
            return number_text(x)
        rounded = round(factor * x, locations)
        return f"{rounded + 0.0:.{locations}f}"

    return text(value) + _interval(bounds, text)


def quality_head(data: QualityEvidence) -> str:
    """Return the column head of `quality`."""
    return data.metric if data.is_labelled else "agreement"


def loss_head(data: QualityEvidence) -> str:
    """Return the column head of `loss`."""
    return "loss, points" if in_percent(data) else "loss"


def in_percent(data: QualityEvidence) -> bool:
    """Return whether the metric is a share of examples, with differences in points."""
    return data.metric.lower().endswith("accuracy")


def markup(text: str) -> str:
    """Escape untrusted text for HTML."""
    return escape(printable(text))


def _places(n: int) -> int:
    """Return the decimals of a percentage that resolve one of `n` examples."""
    return min(max(math.ceil(math.log10(max(n, 1))) - 2, 1), 4)


def _interval(bounds: Interval | None, text: Callable[[float], str]) -> str:
    return "" if bounds is None else f" [{text(bounds[0])}, {text(bounds[1])}]"


_ALONE: Final = "one request at a time"


def headline(report: OptimizeReport) -> str:
    """Return the result in one line: `openvino-int8 takes 67.8 % less time than onnx-fp32`."""
    selected, baseline = report.chosen, report.baseline
    if not report.is_changed:
        return f"No candidate is better than {baseline.name}: keep it"
    return f"{selected.name} {_changed(report, None)}"


def gain(report: OptimizeReport) -> Iterator[str]:
    """Yield sentences about the time saved and the conditions."""
    selected, baseline, settings = report.chosen, report.baseline, report.settings
    if report.is_changed:
        yield f"{selected.name} {_changed(report, selected.cut_ci_ratio)}."
    else:
        yield f"{headline(report)}."
    if report.is_changed and selected.p50_s is not None:
        yield (
            f"Its median latency is {seconds(selected.p50_s, selected.p50_ci_s)}, "
            f"the baseline's {seconds(baseline.p50_s, baseline.p50_ci_s)} "
            f"({conditions(settings)}). Brackets are {sureness(settings)}."
        )
    if report.is_changed and selected.cold_cut_ratio is not None:
        yield (
            "With cold caches it takes "
            f"{less(selected.cold_cut_ratio, selected.cold_cut_ci_ratio)}."
        )
    for other in report.references:
        if other.p50_s and selected.p50_s is not None and other.name != selected.name:
            cut = 1 - selected.p50_s / other.p50_s
            yield (f"Against {other.name} ({seconds(other.p50_s)}) it takes {less(cut)}.")


def price(report: OptimizeReport) -> Iterator[str]:
    """Yield sentences about the quality loss and its detection limit."""
    selected, data = report.chosen, report.data
    if not data.is_labelled:
        if report.is_changed:
            agrees = percent(selected.agreement_ratio)
            yield f"Fidelity only: it gives the baseline's answer in {agrees} of the examples."
        yield data.why_weaker or ("Without labels, the loss of accuracy cannot be measured.")
        return
    if not report.is_changed:
        return
    n = selected.n or data.n
    sentence = f"On {n:,} labelled examples its {data.metric} is {quality(selected, data)}"
    sentence += f", the baseline's {quality(report.baseline, data)}"
    if selected.accuracy_loss is not None:
        unit = " points" if in_percent(data) else ""
        sentence += f": a loss of {loss(selected, data)}{unit}"
        bounds = selected.accuracy_loss_ci
        sentence += ", which may be none" if bounds and bounds[0] <= 0 <= bounds[1] else ""
    if selected.lost is not None and selected.gained is not None:
        sentence += f", {selected.lost:,} answers lost and {selected.gained:,} gained"
    if selected.p_value is not None:
        sentence += f" ({p_value(selected.p_value)})"
    yield f"{sentence}."
    if data.smallest_loss is not None:
        yield (
            f"The examples detect a loss of {points(data.smallest_loss, report)} or more; "
            f"the limit was {points(report.settings.max_loss, report)}."
        )


def unproved(report: OptimizeReport) -> Iterator[str]:
    """Yield the limits of the figures."""
    settings = report.settings
    features = ", ".join(report.processor.features) or "no relevant features"
    yield (
        f"The figures hold for {report.processor.name or 'this processor'} ({features}); on "
        "another processor the ranking and rounded answers may differ."
    )
    lengths = "" if settings.length is None else " and lengths"
    yield f"Other batch sizes{lengths} and concurrent requests were not measured."
    if any(candidate.disturbed for candidate in report.accepted()):
        yield (
            "Other processes used the CPU nearly all the time: times are those of a busy machine, "
            "while savings compare adjacent windows."
        )
    yield from report.notes


def less(cut: float, bounds: Interval | None = None) -> str:
    """Format a saving: `67.8 % [67.5, 68.1] less time`, or `more time` if negative."""
    if cut >= 0:
        return f"{percent(cut, bounds)} less time"
    more = None if bounds is None else (-bounds[1], -bounds[0])
    return f"{percent(-cut, more)} more time"


def conditions(settings: MeasurementSettings) -> str:
    """Return a text such as `1 thread, batch 1, length 128, one request at a time, hot caches`."""
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    length = [] if settings.length is None else [f"length {settings.length}"]
    at_once = "requests on all cores at once" if is_on_all_cores(settings) else _ALONE
    return ", ".join([threads, f"batch {settings.batch}", *length, at_once, "hot caches"])


def is_on_all_cores(settings: MeasurementSettings) -> bool:
    """Return whether concurrent requests were timed, so that times are per request."""
    return settings.target in {"throughput", "cost"}


def callers(settings: MeasurementSettings) -> str:
    """Return the load behind a request rate."""
    return "all cores" if is_on_all_cores(settings) else "one caller"


def sureness(settings: MeasurementSettings) -> str:
    """Return a text such as `95 % intervals, by 20 blocks`."""
    blocks = "" if settings.blocks is None else f", by {settings.blocks} blocks of turns"
    return f"{number_text(100 * settings.confidence)} % intervals{blocks}".replace(".0 %", " %")


def _changed(report: OptimizeReport, bounds: Interval | None) -> str:
    """Return how the chosen candidate differs, in the target first."""
    selected, baseline, target = report.chosen, report.baseline, report.settings.target
    cut = ""
    if selected.cut_ratio is not None:
        cut = f"takes {less(selected.cut_ratio, bounds)} than {baseline.name}"
    others = {
        "throughput": ("answers", rate, selected.throughput_per_s, baseline.throughput_per_s),
        "memory": ("needs", bytes_text, selected.memory_bytes, baseline.memory_bytes),
        "cost": ("costs", number_text, selected.cost_per_million, baseline.cost_per_million),
    }
    if target == "cost" and selected.cost_per_million is None:
        target = "throughput"  # the basis of the cost, whatever the price
    if target not in others:
        return cut or f"is chosen over {baseline.name}"
    verb, text, now, before = others[target]
    target_change = f"{verb} {text(now)} instead of {text(before)}"
    if target == "cost":
        target_change += " per million requests"
    return f"{target_change}, and {cut}" if cut else target_change


def points(ratio: float, report: OptimizeReport) -> str:
    """Format a difference of the metric: `0.46 points`."""
    if not in_percent(report.data):
        return f"{ratio:.2g}"
    return "1 point" if ratio == 0.01 else f"{100 * ratio:.2g} points"  # noqa: PLR2004  # one hundredth


WIDTH: Final = 100
_MIN_NAME: Final = 12
_CHOSEN: Final = "▸ "
_PLAIN: Final = str.maketrans({"▸": ">", "µ": "u", "…": "~"})


def text_report(report: OptimizeReport, *, encoding: str | None = "utf-8") -> str:
    """Render the report in lines of at most 100 columns, in characters of `encoding`.

    Control characters in names and errors are shown, not sent to the terminal.
    """
    lines = [
        *_wrapped(f"{report.model} ({report.model_class}), {_where(report)}"),
        "",
        *_candidates(report),
        "",
        *_before_and_after(report),
        *_rejected(report),
    ]
    for paragraph in (gain(report), price(report), unproved(report)):
        joined = " ".join(paragraph)
        lines += ["", *_wrapped(joined)] if joined else []
    text = "\n".join(lines)
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return text


def _where(report: OptimizeReport) -> str:
    processor = report.processor.name or "an unknown processor"
    return f"{conditions(report.settings)}, on {processor}"


def _candidates(report: OptimizeReport) -> Iterator[str]:
    data = report.data
    labelled = data.is_labelled
    is_priced = report.settings.target == "cost" and report.baseline.cost_per_million is not None
    first = "per million" if is_priced else "p50"
    head = ["", "candidate", first, "less time", quality_head(data)]
    rows = [[*head, loss_head(data)][: 6 if labelled else 5]]
    for candidate in report.accepted():
        is_baseline = candidate.name == report.baseline.name
        cut = "baseline" if is_baseline else percent(candidate.cut_ratio, candidate.cut_ci_ratio)
        mark = _CHOSEN if candidate.name == report.chosen.name else ""
        figure = seconds(candidate.p50_s, candidate.p50_ci_s)
        figure = number_text(candidate.cost_per_million) if is_priced else figure
        lost = NOTHING if is_baseline else loss(candidate, data)
        row = [mark, printable(candidate.name), figure, cut, quality(candidate, data), lost]
        rows.append(row[: len(rows[0])])
    yield from _table(rows)


def changes(report: OptimizeReport) -> list[tuple[str, str, str]]:
    """Return figures of the baseline and the chosen candidate, the most important first."""
    figures: dict[str, Callable[[CandidateReport], str]] = {
        "median latency": lambda candidate: seconds(candidate.p50_s),
        quality_head(report.data): lambda candidate: quality(candidate, report.data),
        "p99": lambda candidate: seconds(candidate.p99_s),
        "p50, cold caches": lambda candidate: seconds(candidate.cold_p50_s),
        callers(report.settings): lambda candidate: rate(candidate.throughput_per_s),
        "files": lambda candidate: bytes_text(candidate.size_bytes),
        "memory": lambda candidate: bytes_text(candidate.memory_bytes),
        "time to load": lambda candidate: seconds(candidate.load_s),
        "cost per million": lambda candidate: number_text(candidate.cost_per_million),
    }
    return [
        (name, figure(report.baseline), figure(report.chosen)) for name, figure in figures.items()
    ]


def _before_and_after(report: OptimizeReport) -> Iterator[str]:
    """Yield the figures that the candidate table omits."""
    measured = [change for change in changes(report)[2:] if change[1:] != (NOTHING, NOTHING)]
    if measured and report.is_changed:
        yield from _table([("", "", "baseline", "chosen"), *(("", *change) for change in measured)])


def _rejected(report: OptimizeReport) -> Iterator[str]:
    if not report.rejected:
        return
    yield ""
    yield "rejected"
    # Many candidates have no figures, for only a few reasons.
    lines: dict[str, list[str]] = {}
    for candidate in report.rejected:
        reason = f"{_figures(candidate, report)}{candidate.reason or 'unknown reason'}"
        lines.setdefault(reason, []).append(candidate.name)
    for reason, names in lines.items():
        yield from textwrap.wrap(
            printable(f"{', '.join(names)}: {reason}"),
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )


def _figures(candidate: CandidateReport, report: OptimizeReport) -> str:
    """Return a short summary of a rejected candidate's figures."""
    figures = [
        (candidate.p50_s, seconds(candidate.p50_s)),
        (candidate.cut_ratio, less(candidate.cut_ratio or 0.0)),
        (
            candidate.accuracy if report.data.is_labelled else candidate.agreement_ratio,
            f"{quality_head(report.data)} {quality(candidate, report.data)}",
        ),
    ]
    texts = [text for value, text in figures if value is not None]
    return f"{', '.join(texts)}; " if texts else ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield table rows: a mark, a possibly shortened name, figures."""
    names, *figures = ([max(map(len, column)) for column in zip(*rows, strict=True)])[1:]
    names = min(names, max(WIDTH - len(_CHOSEN) - sum(figures) - 2 * len(figures), _MIN_NAME))
    for mark, name, *rest in rows:
        cells = [name if len(name) <= names else f"{name[: names - 1]}…", *rest]
        row = (f"{cell:<{width}}" for cell, width in zip(cells, [names, *figures], strict=True))
        yield f"{mark:<{len(_CHOSEN)}}{'  '.join(row)}".rstrip()


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(printable(text), WIDTH)
