"""Figures as people read them: three digits that count, a unit, the interval beside them. Pure."""

import math
from collections.abc import Callable
from html import escape
from typing import Final

from headrace.optimize.report.data import CandidateReport, Evidence, Interval

NONE: Final = "-"
_UNITS_S: Final = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
_UNITS_BYTES: Final = ("B", "kB", "MB", "GB", "TB")
_THOUSAND: Final = 1000
_TINY: Final = 1e-12
_HUGE: Final = 1e15
_LEAST_P: Final = 0.001


def digits(value: float, count: int = 3) -> str:
    """A number with so many digits that count, written out: `4.71`, `14.6`, `1,280`."""
    if not math.isfinite(value):
        return "unbounded" if math.isinf(value) else NONE
    if abs(value) < _TINY:
        return "0"
    if abs(value) > _HUGE:
        return f"{value:.{count}g}"
    rounded = float(f"{value:.{count}g}")
    before = math.floor(math.log10(abs(rounded))) + 1
    return f"{rounded:,.{min(max(count - before, 0), 9)}f}"


def seconds(value: float | None, bounds: Interval | None = None) -> str:
    """A time in the unit that suits it: `4.71 ms`, with bounds `4.71 ms [4.66, 4.80]`."""
    if value is None:
        return NONE
    unit, size = unit_s(value)
    return f"{digits(value / size)} {unit}{_interval(bounds, lambda x: digits(x / size))}"


def unit_s(value: float) -> tuple[str, float]:
    """The unit that suits a time, and how many seconds it has."""
    rounded = abs(float(f"{value:.3g}"))
    return next(((unit, size) for unit, size in _UNITS_S if rounded >= size), _UNITS_S[-1])


def percent(ratio: float | None, bounds: Interval | None = None) -> str:
    """A share: `67.8 %`, with bounds `67.8 % [67.5, 68.1]`."""
    if ratio is None:
        return NONE
    return f"{digits(100 * ratio)} %{_interval(bounds, lambda x: digits(100 * x))}"


def size(count: float | None) -> str:
    """Bytes: `22.9 MB`."""
    if count is None:
        return NONE
    power = 0
    while abs(float(f"{count:.3g}")) >= _THOUSAND and power < len(_UNITS_BYTES) - 1:
        count, power = count / _THOUSAND, power + 1
    return f"{digits(count) if power else f'{count:.0f}'} {_UNITS_BYTES[power]}"


def rate(per_s: float | None) -> str:
    """Requests a second: `212/s`."""
    return NONE if per_s is None else f"{digits(per_s)}/s"


def cost(per_million: float | None) -> str:
    """What a million requests cost: `0.42`, in a currency that the user knows."""
    return NONE if per_million is None else digits(per_million)


def p_value(value: float | None) -> str:
    """`p = 0.03`."""
    if value is None:
        return ""
    return f"p < {_LEAST_P}" if value < _LEAST_P else f"p = {digits(value, 2)}"


def quality(candidate: CandidateReport, data: Evidence) -> str:
    """Its accuracy, or without labels how often it agrees with the baseline."""
    if not data.is_labelled:
        return percent(candidate.agreement_ratio)
    if candidate.accuracy is None:
        return NONE
    if not math.isfinite(candidate.accuracy):
        return NONE
    if not in_percent(data):
        return f"{candidate.accuracy:.4g}"
    return f"{100 * candidate.accuracy:.{_places(candidate.n or data.n)}f} %"


def loss(candidate: CandidateReport, data: Evidence) -> str:
    """What it lost against the baseline, in points or in the metric's unit: `0.04 [-0.4, 0.5]`."""
    value, bounds = candidate.accuracy_loss, candidate.accuracy_loss_ci
    if value is None:
        return NONE
    factor = 100 if in_percent(data) else 1
    places = _places(candidate.n or data.n) if in_percent(data) else 4

    def text(x: float) -> str:
        if not math.isfinite(x):
            return digits(x)
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
