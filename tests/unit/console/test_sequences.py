"""Evidence over time, drawn: what matters fills the picture, and what is not known is not drawn."""

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from headrace.console.charts import SEQUENCE_HEIGHT as HEIGHT
from headrace.console.charts import WIDTH, SequenceChart, charts_of
from headrace.control.rollouts.status import (
    IntervalPoint,
    MetricStatus,
    RolloutEvidence,
    SequenceView,
)

VALUE = st.none() | st.floats(min_value=-1e6, max_value=1e6)
UNITS = st.sampled_from(["ratio difference", "ratio", "times", "reward"])


def point(
    at: float,
    low: float | None,
    high: float | None,
    *,
    effect: float | None = 0.0,
    margin: float | None = 0.005,
) -> IntervalPoint:
    return IntervalPoint(at=at, effect=effect, low=low, high=high, margin=margin)


def told(*sequences: tuple[str, Sequence[IntervalPoint]]) -> RolloutEvidence:
    """What is told of the errors, in each unit."""
    metrics = tuple(
        SequenceView(metric="errors", unit=unit, points=tuple(points)) for unit, points in sequences
    )
    return RolloutEvidence(id="r1", endpoint="fraud", step_s=1.0, metrics=metrics)


def errors(unit: str = "ratio difference") -> MetricStatus:
    return MetricStatus(
        metric="errors",
        outcome="wait",
        reason="",
        unit=unit,
        baseline=0.0,
        candidate=0.0,
        effect=0.0,
        low=None,
        high=None,
        margin=0.005,
        alpha=0.05,
        samples=(10, 10),
    )


def drawn(*points: IntervalPoint, unit: str = "ratio difference") -> SequenceChart:
    (chart,) = charts_of(errors(unit), told((unit, points)))
    return chart


def places_of(path: str) -> list[tuple[float, float]]:
    found = re.findall(r"[ML](-?[\d.e+]+) (-?[\d.e+]+)", path)
    return [(float(x), float(y)) for x, y in found]


NARROWING = [point(1e9 + i, -0.5 / (i + 1), 0.5 / (i + 1)) for i in range(120)]


def test_a_band_that_narrows_has_a_place_for_each_time_and_ends_at_the_present() -> None:
    chart = drawn(*NARROWING)
    band = places_of(chart.band)

    assert len({x for x, _ in band}) == 120
    assert min(x for x, _ in band) == chart.left
    assert max(x for x, _ in band) == chart.right
    assert chart.now == (chart.right, chart.neutral)
    assert [tick.label for tick in chart.x_ticks] == ["start", "30 s", "1 min", "1.5 min"]
    assert chart.unit == "difference in percentage points"
    assert chart.band.endswith("Z")


def test_what_matters_now_fills_the_picture_however_wide_the_start_was() -> None:
    chart = drawn(*NARROWING)
    (_, margin), *_ = places_of(chart.margin)

    assert (chart.bottom - chart.top) / 8 < chart.neutral - margin
    assert max(abs(float(tick.label)) for tick in chart.y_ticks) <= 2
    assert min(y for _, y in places_of(chart.band)) < chart.top  # cut off by the frame


def test_the_margin_and_what_lies_beyond_it_reach_from_edge_to_edge() -> None:
    chart = drawn(*NARROWING)
    (left, y), (right, _) = places_of(chart.margin)

    assert (left, right) == (chart.left, chart.right)
    assert chart.worse == f"M{left:g} {y:g}L{right:g} {y:g}V{chart.top:g}H{left:g}Z"
    less = drawn(*NARROWING, unit="reward")
    assert f"V{less.bottom:g}H" in less.worse  # of a reward less is worse


def test_a_margin_that_moves_with_the_old_version_is_drawn_as_it_was() -> None:
    chart = drawn(
        *(point(float(i), 0.5, 3.0, effect=1.0, margin=1.5 + i % 2) for i in range(6)), unit="times"
    )

    assert len({y for _, y in places_of(chart.margin)}) == 2


def test_a_bound_that_is_not_known_leaves_the_band_open() -> None:
    chart = drawn(point(0.0, None, 0.01), point(1.0, -0.01, 0.01))
    band, bounds = places_of(chart.band), places_of(chart.bounds)

    assert max(y for _, y in band) > HEIGHT
    assert {y for _, y in bounds} == {min(y for _, y in band)}  # only the upper one has a line


def test_a_time_of_which_nothing_is_known_is_a_gap() -> None:
    known = [point(at, -0.01, 0.01) for at in (0.0, 1.0, 3.0, 4.0)]
    chart = drawn(*known[:2], point(2.0, None, None, effect=None), *known[2:])

    assert chart.band.count("M") == chart.band.count("Z") == 2
    assert chart.effect.count("M") == 2


def test_one_judgement_is_a_bar() -> None:
    chart = drawn(point(5.0, -0.01, 0.01))
    across = {x for x, _ in places_of(chart.band)}

    assert max(across) - min(across) == 3.0
    assert len(chart.rows) == 1


def test_without_an_interval_there_is_no_picture() -> None:
    assert charts_of(errors(), told(("ratio difference", [point(0.0, None, None)]))) == []
    assert charts_of(errors(), told()) == []


def test_a_metric_that_a_threshold_decided_has_a_picture_a_unit_the_present_one_first() -> None:
    share = [point(130.0, 0.02, 0.09, effect=0.05, margin=0.01)]
    now, before = charts_of(
        errors("ratio"), told(("ratio difference", NARROWING), ("ratio", share))
    )

    assert (now.unit, before.unit) == ("share in %", "difference in percentage points")
    assert now.id != before.id


def test_a_picture_is_told_in_a_sentence_and_a_table_the_newest_first() -> None:
    chart = drawn(*NARROWING)

    assert chart.summary == (
        "errors over time, 1 min 59 s: at first between -50 points and +50 points, at last "
        "between -0.417 points and +0.417 points; +0.5 points tolerated."
    )
    assert len(chart.rows) == 12
    assert chart.rows[0] == (
        NARROWING[-1].at,
        ("0 points", "-0.417 points", "+0.417 points", "+0.5 points"),
    )
    assert [at for at, _ in chart.rows] == sorted((at for at, _ in chart.rows), reverse=True)


@given(st.lists(st.tuples(VALUE, VALUE, VALUE, VALUE), min_size=1, max_size=8), UNITS)
def test_whatever_is_told_marks_stay_inside(
    rows: list[tuple[float | None, float | None, float | None, float | None]], unit: str
) -> None:
    points = [
        point(float(i), low, high, effect=effect, margin=margin)
        for i, (low, high, effect, margin) in enumerate(rows)
    ]

    for chart in charts_of(errors(unit), told((unit, points))):
        assert all(chart.top <= tick.at <= chart.bottom for tick in chart.y_ticks)
        assert all(chart.left <= tick.at <= chart.right for tick in chart.x_ticks)
        assert chart.top <= chart.neutral <= chart.bottom
        assert all(0 <= x <= WIDTH for x, _ in places_of(chart.band + chart.effect))
        if chart.now is not None:
            assert chart.top <= chart.now[1] <= chart.bottom
