"""Batches, waiting and replicas are drawn where they are known, each with its unit."""

from headrace.console.endpoint import load_charts, replicas_chart
from headrace.control.api.history import PointView


def point(at: float, **known: float | None) -> PointView:
    nothing: dict[str, float | None] = dict.fromkeys(
        ("requests_per_s", "errors_per_s", "rejections_per_s", "p50_s", "p95_s", "p99_s")
    )
    return PointView(at=at, **nothing, **known)


def test_each_chart_has_one_unit_and_says_what_it_is() -> None:
    points = [
        point(0.0, replicas_ready=2.0),
        point(10.0, batch_rows=3.5, queue_s=0.0021, in_flight=1.2, replicas_ready=2.5),
    ]
    batches, queue, in_flight = load_charts(points, 20.0)

    assert (batches.unit, queue.unit, in_flight.unit) == ("rows per batch", "ms", "requests")
    assert all(chart.hint for chart in (batches, queue, in_flight))
    assert queue.lines[0].last == "2.1 ms"
    assert batches.rows[0][1] == ("3.5",)


def test_of_somebody_else_s_server_nothing_is_drawn() -> None:
    points = [point(0.0), point(10.0)]

    assert load_charts(points, 20.0) == []
    assert replicas_chart(points, 20.0) is None


def test_replicas_have_whole_marks() -> None:
    chart = replicas_chart([point(0.0, replicas_ready=1.0), point(9.0, replicas_ready=3.0)], 20.0)

    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3"]


def test_idle_replicas_say_that_there_were_no_requests() -> None:
    batches, queue, in_flight = load_charts([point(0.0, replicas_ready=1.0, in_flight=0.0)], 9.0)

    assert batches.nothing == queue.nothing == "no requests in this period"
    assert in_flight.nothing == ""
