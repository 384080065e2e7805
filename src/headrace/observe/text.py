"""Metrics as lines of Prometheus' text format."""

from collections.abc import Iterator, Sequence

from headrace.observe.histogram import Histogram


def metric_head(name: str, kind: str, text: str) -> Iterator[str]:
    """What precedes a metric's samples."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def single(name: str, kind: str, text: str, labels: str, value: float) -> Iterator[str]:
    """A metric with one sample."""
    yield from metric_head(name, kind, text)
    yield f"{name}{{{labels}}} {value}"


def histogram_lines(
    name: str, text: str, histogram: Histogram, labels: str, places: Sequence[int]
) -> Iterator[str]:
    """A histogram with the bounds at `places` only."""
    yield from metric_head(name, "histogram", text)
    below = histogram.below(places)
    bounds = (*(histogram.bounds[place] for place in places), "+Inf")
    for bound, count in zip(bounds, below, strict=True):
        yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
    yield f"{name}_sum{{{labels}}} {histogram.sum}"
    yield f"{name}_count{{{labels}}} {below[-1]}"
