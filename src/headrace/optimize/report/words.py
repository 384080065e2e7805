"""Figures of a report with the intervals beside them. Pure."""

import math
from collections.abc import Callable
from html import escape
from typing import Final

from headrace.core.text import NOTHING, duration_text, duration_unit, number_text, percent_text
from headrace.optimize.report.data import CandidateReport, Evidence, Interval

_LEAST_P: Final = 0.001


def seconds(value: float | None, bounds: Interval | None = None) -> str:
    """A time in the unit that suits it: `4.71 ms`, with bounds `4.71 ms [4.66, 4.8]`."""
    if value is None or bounds is None:
        return duration_text(value)
    _, size = duration_unit(value)
    return f"{duration_text(value)}{_interval(bounds, lambda x: number_text(x / size))}"


def percent(ratio: float | None, bounds: Interval | None = None) -> str:
    """A share: `67.8 %`, with bounds `67.8 % [67.5, 68.1]`."""
    return percent_text(ratio) + _interval(bounds, lambda x: number_text(100 * x))


def rate(per_s: float | None) -> str:
    """Requests a second: `212/s`."""
    return NOTHING if per_s is None else f"{number_text(per_s)}/s"


def p_value(value: float | None) -> str:
    """`p = 0.03`."""
    if value is None:
        return ""
    return f"p < {_LEAST_P}" if value < _LEAST_P else f"p = {number_text(value, digits=2)}"


def quality(candidate: CandidateReport, data: Evidence) -> str:
    """Its accuracy, or without labels how often it agrees with the baseline."""
    if not data.is_labelled:
        return percent(candidate.agreement_ratio)
    if candidate.accuracy is None:
        return NOTHING
    if not math.isfinite(candidate.accuracy):
        return NOTHING
    if not in_percent(data):
        return f"{candidate.accuracy:.4g}"
    return f"{100 * candidate.accuracy:.{_places(candidate.n or data.n)}f} %"


def loss(candidate: CandidateReport, data: Evidence) -> str:
    """What it lost against the baseline, in points or in the metric's unit: `0.04 [-0.4, 0.5]`."""
    value, bounds = candidate.accuracy_loss, candidate.accuracy_loss_ci
    if value is None:
        return NOTHING
    factor = 100 if in_percent(data) else 1
    places = _places(candidate.n or data.n) if in_percent(data) else 4

    def text(x: float) -> str:
        if not math.isfinite(x):
            return number_text(x)
        rounded = round(factor * x, places)
        return f"{rounded + 0.0:.{places}f}"

    return text(value) + _interval(bounds, text)


def quality_head(data: Evidence) -> str:
    """What `quality` shows."""
    return data.metric if data.is_labelled else "agreement"


def in_percent(data: Evidence) -> bool:
    """Whether the metric is a share of examples, so that differences are percentage points."""
    return data.metric.lower().endswith("accuracy")


def printable(text: str) -> str:
    """`text` on one line, with everything escaped that a terminal might take for a command."""
    return "".join(
        letter
        if letter.isprintable()
        else " "
        if letter.isspace()
        else letter.encode("unicode_escape").decode()
        for letter in text.encode("utf-8", "replace").decode()
    )


def markup(text: str) -> str:
    """Others' words as text of a page: no letter of them is taken for markup."""
    return escape(printable(text))


def _places(n: int) -> int:
    """Decimals of a percentage that show a single example of `n`."""
    return min(max(math.ceil(math.log10(max(n, 1))) - 2, 1), 4)


def _interval(bounds: Interval | None, text: Callable[[float], str]) -> str:
    return "" if bounds is None else f" [{text(bounds[0])}, {text(bounds[1])}]"
