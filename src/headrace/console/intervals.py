"""Evidence as a picture: each metric's interval, what is no difference, what is tolerated. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.console import words
from headrace.console.axes import Scale, Tick, marks_between
from headrace.console.documents import MetricStatus
from headrace.console.rulers import Ruler
from headrace.core.text import bound_text, effect_text, percent_text

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
    ruler = Ruler(unit=metric.unit)
    margin = ruler.tolerated(metric.margin)
    scale = _scale([metric.low, metric.high, metric.effect, ruler.neutral, margin])
    place = scale.place
    worse = None
    if margin is not None:
        edge = place(margin)
        worse = (scale.start, edge) if ruler.is_less_worse else (edge, scale.end)
    return Interval(
        metric=metric,
        title=f"{words.plain(metric.metric)}: how the new version differs",
        summary=_summary(metric),
        unit=ruler.name,
        low=scale.start if metric.low is None else place(metric.low),
        high=scale.end if metric.high is None else place(metric.high),
        is_open_low=metric.low is None,
        is_open_high=metric.high is None,
        effect=None if metric.effect is None else place(metric.effect),
        neutral=place(ruler.neutral),
        margin=None if margin is None else place(margin),
        worse=worse,
        ticks=tuple(
            Tick(place(mark), ruler.mark(mark)) for mark in marks_between(scale.low, scale.high)
        ),
    )


def _scale(values: Sequence[float | None]) -> Scale:
    """A scale that holds all values, with a little room at both ends."""
    known = [value for value in values if value is not None]
    least, most = min(known), max(known)
    room = (most - least) * _ROOM or 1.0
    return Scale(low=least - room, high=most + room, start=_EDGE, end=WIDTH - _EDGE)


def _summary(metric: MetricStatus) -> str:
    low, high = bound_text(metric.low, metric.unit), bound_text(metric.high, metric.unit)
    tolerated = effect_text(metric.margin, metric.unit)
    confidence = percent_text(1 - metric.alpha)
    return (
        f"Between {low} and {high} with {confidence} confidence at all times at once; "
        f"{tolerated} tolerated; verdict: {words.plain(metric.outcome)}."
    )
