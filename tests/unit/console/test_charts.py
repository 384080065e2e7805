"""Pictures of numbers: everything stands inside, and what is shown is what is known."""

import re

from hypothesis import given
from hypothesis import strategies as st

from headrace.console.charts import HEIGHT, WIDTH, ChartLine, interval_of, line_chart, seconds_unit
from headrace.console.rollout import shares_of
from headrace.control.rollouts.status import MetricStatus
from headrace.core.charts import AxisScale, ages, elapsed, marks_between, marks_from_zero

NUMBERS = st.floats(min_value=1e-9, max_value=1e12)
ANY = st.floats(min_value=-1e6, max_value=1e6)


def metric(
    low: float | None, high: float | None, *, unit: str = "ratio difference", margin: float = 0.01
) -> MetricStatus:
    return MetricStatus(
        metric="errors",
        outcome="wait",
        reason="",
        unit=unit,
        baseline=0.0,
        candidate=0.01,
        effect=0.01,
        low=low,
        high=high,
        margin=margin,
        alpha=0.05,
        samples=(10, 10),
    )


@given(NUMBERS)
def test_marks_hold_the_data_and_are_few(most: float) -> None:
    marks = marks_from_zero(most)

    assert marks[0] == 0
    assert marks[-1] >= most * (1 - 1e-6)
    assert 2 <= len(marks) <= 6


def test_an_axis_of_nothing_is_one_of_one() -> None:
    assert marks_from_zero(0.0) == [0.0, 1.0]


@given(ANY, NUMBERS)
def test_marks_between_two_stand_between_them(low: float, width: float) -> None:
    high = low + max(width, abs(low) * 1e-6 + 1e-6)
    slack = (high - low) * 1e-6

    assert all(low - slack <= mark <= high + slack for mark in marks_between(low, high))


def test_ages_are_round_and_end_now() -> None:
    assert ages(3600.0) == [
        (0, "now"),
        (900, "-15 min"),
        (1800, "-30 min"),
        (2700, "-45 min"),
        (3600, "-1 h"),
    ]
    assert ages(86_400.0)[-1] == (86_400, "-24 h")


def test_times_since_a_start_are_round_and_few_for_seconds_and_for_months() -> None:
    assert elapsed(0.0) == [(0, "start")]
    assert [label for _, label in elapsed(45.0)] == ["start", "30 s"]
    assert [label for _, label in elapsed(330.0)] == ["start", "2 min", "4 min"]
    assert [label for _, label in elapsed(90_000.0)] == ["start", "12 h", "1 d"]
    assert [label for _, label in elapsed(80 * 86_400.0)] == [
        *("start", "20 d", "40 d", "60 d", "80 d")
    ]


def test_what_lies_outside_of_a_scale_stands_at_its_edge() -> None:
    scale = AxisScale(low=0.0, high=1.0, start=10.0, end=20.0)

    assert [scale.place(value) for value in (-5.0, 0.0, 0.5, 7.0)] == [10.0, 10.0, 15.0, 20.0]


@given(st.lists(st.none() | st.floats(min_value=0, max_value=1e9), min_size=1, max_size=30))
def test_a_line_stays_inside_and_leaves_gaps(values: list[float | None]) -> None:
    times = [float(i) for i in range(len(values))]
    chart = line_chart(
        id_="x",
        title="Requests",
        unit="1/s",
        times=times,
        lines=[ChartLine(name="all", values=values, look=1)],
        until=float(len(values)),
    )
    (line,) = chart.lines
    places = [float(text) for text in re.findall(r"[\d.]+", line.path)]

    assert len(places) == 2 * sum(value is not None for value in values)
    assert all(0 <= x <= WIDTH for x in places[::2])
    assert all(0 <= y <= HEIGHT for y in places[1::2])
    assert bool(chart.nothing) == all(value is None for value in values)
    assert len(chart.rows) <= 12


def test_a_picture_is_told_in_a_sentence_and_a_table_the_newest_first() -> None:
    chart = line_chart(
        id_="x",
        title="Latency",
        unit="ms",
        times=[0.0, 60.0],
        lines=[ChartLine(name="p99", values=[2.0, 4.0], look=1)],
        until=120.0,
    )

    assert chart.summary == "Latency in ms over 2 minutes: p99 from 2 to 4, last 4."
    assert chart.rows == ((60.0, ("4",)), (0.0, ("2",)))


def test_a_chart_of_no_time_at_all_is_empty() -> None:
    chart = line_chart(id_="x", title="T", unit="1/s", times=[], lines=[], until=5.0)

    assert chart.nothing
    assert chart.rows == ()


def test_times_get_the_unit_that_is_read_best() -> None:
    assert [seconds_unit(most)[0] for most in (5e-5, 5e-3, 5.0)] == ["µs", "ms", "s"]


# Evidence.


@given(ANY, st.floats(min_value=0, max_value=1e5), st.sampled_from(["times", "reward", "ratio"]))
def test_an_interval_stays_inside_and_in_order(low: float, width: float, unit: str) -> None:
    found = interval_of(metric(low, low + width, unit=unit))

    assert found is not None
    assert found.effect is not None
    assert found.margin is not None
    assert 0 <= found.low <= found.high <= WIDTH
    assert all(0 <= x <= WIDTH for x in (found.effect, found.neutral, found.margin))
    assert all(0 <= tick.at <= WIDTH for tick in found.ticks)


def test_a_bound_that_is_not_known_is_drawn_to_the_edge() -> None:
    found = interval_of(metric(None, 0.02))

    assert found is not None
    assert found.is_open_low
    assert not found.is_open_high
    assert "Between any and +2 points with 95 % confidence" in found.summary


def test_what_is_not_known_at_all_is_not_drawn() -> None:
    assert interval_of(metric(None, None)) is None


def test_less_reward_is_worse_and_more_errors_are() -> None:
    reward = interval_of(metric(-0.1, 0.1, unit="reward"))
    errors = interval_of(metric(-0.1, 0.1))

    assert reward is not None
    assert reward.worse is not None
    assert reward.worse[1] == reward.margin
    assert errors is not None
    assert errors.worse is not None
    assert errors.worse[0] == errors.margin


@given(st.lists(st.integers(min_value=0, max_value=100), max_size=6))
def test_shares_follow_each_other(weights: list[int]) -> None:
    shares = shares_of([(f"v{i}", weight, 1) for i, weight in enumerate(weights)])

    assert [share.start for share in shares] == [sum(weights[:i]) for i in range(len(weights))]
