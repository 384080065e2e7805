"""Load charts of an endpoint's replicas: batches, waiting, requests in flight, and their number.

Where no replica of ours said anything, as behind somebody else's server, there are no such charts.
"""

import math
from collections.abc import Sequence
from typing import Final

from headrace.console.charts import Chart, Line, line_chart, seconds_unit
from headrace.control.api.history import PointView
from headrace.core.text import duration_text

_MARKS: Final = 4


def load_charts(points: Sequence[PointView], now: float) -> list[Chart]:
    """Rows per batch, time in the queue and requests in flight; none if nothing is known."""
    if all(point.replicas_ready is None for point in points):
        return []
    times = [point.at for point in points]
    waits = [point.queue_s for point in points]
    unit, per_s = seconds_unit(max((wait for wait in waits if wait is not None), default=0.0))
    return [
        line_chart(
            id_="batches",
            title="Batches",
            unit="rows per batch",
            hint="how many rows the model runs at once, on average",
            times=times,
            lines=[Line(name="mean", values=[p.batch_rows for p in points], look=1)],
            until=now,
        ),
        line_chart(
            id_="queue",
            title="Queue",
            unit=unit,
            hint="how long a request waits for its batch, on average",
            times=times,
            lines=[
                Line(
                    name="mean",
                    values=[None if wait is None else wait * per_s for wait in waits],
                    look=1,
                    last=duration_text(next((w for w in reversed(waits) if w is not None), None)),
                )
            ],
            until=now,
        ),
        line_chart(
            id_="in-flight",
            title="In flight",
            unit="requests",
            hint="in all replicas at once, waiting or running, on average",
            nothing="no replica told",
            times=times,
            lines=[Line(name="mean", values=[p.in_flight for p in points], look=1)],
            until=now,
        ),
    ]


def replicas_chart(points: Sequence[PointView], now: float) -> Chart | None:
    """Ready replicas over time; None if nothing is known."""
    ready = [point.replicas_ready for point in points]
    most = max((value for value in ready if value is not None), default=None)
    if most is None:
        return None
    return line_chart(
        id_="ready",
        title="Ready over time",
        unit="replicas",
        times=[point.at for point in points],
        lines=[Line(name="ready", values=ready, look=1)],
        until=now,
        # Of three replicas no mark stands at two and a half.
        marks=min(max(math.ceil(most), 1), _MARKS),
    )
