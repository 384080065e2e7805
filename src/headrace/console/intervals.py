"""Evidence as a picture: each metric's interval, what is no difference, what is tolerated. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.console import words
from headrace.console.axes import Scale, Tick, marks_between
from headrace.console.documents import MetricStatus

WIDTH: Final = 480
HEIGHT: Final = 64
_EDGE: Final = 16
_ROOM: Final = 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One metric's picture: places are of a picture `WIDTH` wide; None where there is no such."""

    metric: MetricStatus
    title: str
    summary: str
    unit: str
    low: float
    high: float
    is_open_low: bool
    is_open_high: bool
    effect: float | None
    neutral: float
    margin: float | None
    worse: tuple[float, float] | None
    ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT


def interval_of(metric: MetricStatus) -> Interval | None:
    """The picture of a metric; None while nothing is known of it."""
    if metric.low is None and metric.high is None:
        return None
    neutral = 1.0 if metric.unit == "times" else 0.0
    # More reward is better, so what is tolerated lies below; all else is worse the higher it is.
    is_reward = metric.unit == "reward"
    margin = -metric.margin if is_reward and metric.margin is not None else metric.margin
    scale = _scale([metric.low, metric.high, metric.effect, neutral, margin])
    place = scale.place
    worse = None
    if margin is not None:
        edge = place(margin)
        worse = (scale.start, edge) if is_reward else (edge, scale.end)
    return Interval(
        metric=metric,
        title=f"{words.plain(metric.metric)}: how the new version differs",
        summary=_summary(metric),
        unit=_axis(metric.unit),
        low=scale.start if metric.low is None else place(metric.low),
        high=scale.end if metric.high is None else place(metric.high),
        is_open_low=metric.low is None,
        is_open_high=metric.high is None,
        effect=None if metric.effect is None else place(metric.effect),
        neutral=place(neutral),
        margin=None if margin is None else place(margin),
        worse=worse,
        ticks=tuple(
            Tick(place(mark), _label(mark, metric.unit))
            for mark in marks_between(scale.low, scale.high)
        ),
    )


def _scale(values: Sequence[float | None]) -> Scale:
    """A scale that holds all values, with a little room at both ends."""
    known = [value for value in values if value is not None]
    least, most = min(known), max(known)
    room = (most - least) * _ROOM or 1.0
    return Scale(low=least - room, high=most + room, start=_EDGE, end=WIDTH - _EDGE)


def _axis(unit: str) -> str:
    match unit:
        case "ratio difference":
            return "difference in percentage points"
        case "ratio":
            return "share in %"
        case "times":
            return "times the old version's"
        case _:
            return f"difference in {unit}" if unit else "difference"


def _label(mark: float, unit: str) -> str:
    scaled = 100 * mark if unit.startswith("ratio") else mark
    text = words.number(scaled)
    return f"{text}\u00d7" if unit == "times" else text


def _summary(metric: MetricStatus) -> str:
    low, high = words.bound(metric.low, metric.unit), words.bound(metric.high, metric.unit)
    tolerated = words.effect(metric.margin, metric.unit)
    confidence = words.percent(1 - metric.alpha)
    return (
        f"Between {low} and {high} with {confidence} confidence at all times at once; "
        f"{tolerated} tolerated; verdict: {words.plain(metric.outcome)}."
    )
