"""What is kept of each metric's interval: few points, in order, from the first to the newest."""

import itertools
import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.outcomes import MetricVerdict, Outcome, RolloutVerdict
from headrace.rollout.sequences import FIRST_STEP_S, MAX_POINTS, Sequences

NUMBERS = st.none() | st.floats(width=32, min_value=-1e6, max_value=1e6)
PAUSES = st.lists(st.floats(min_value=-5.0, max_value=1e5), min_size=1, max_size=300)


def told(at: float, high: float | None = 0.1, **more: object) -> RolloutVerdict:
    metric = MetricVerdict(
        metric="errors",
        outcome=Outcome.WAIT,
        reason="",
        unit="ratio difference",
        effect=0.0,
        low=-0.1,
        high=high,
        margin=0.5,
    )
    changed = msgspec.structs.replace(metric, **more)
    return RolloutVerdict(outcome=Outcome.WAIT, at=at, metrics=(changed,))


def watched(times: list[float]) -> Sequences:
    """What is kept of judgements at `times`, the number of each of which is its upper bound."""
    found = Sequences.start()
    for number, at in enumerate(times):
        found.add(told(at, high=float(number)))
    return found


@given(PAUSES)
def test_points_are_few_and_in_order_and_span_the_whole_life(pauses: list[float]) -> None:
    times = [1.7e9]
    for pause in pauses:
        times.append(times[-1] + pause)
    found = watched(times)
    points = list(found.points(found.metrics[0]))
    at = [point.at for point in points]

    assert 1 <= len(points) <= MAX_POINTS
    assert at == sorted(set(at))
    assert at[0] == times[0]
    assert at[-1] == max(times)
    assert points[-1].high == len(times) - 1
    assert all(b - a >= found.step_s for a, b in itertools.pairwise(at[:-1]))


@given(st.integers(min_value=1, max_value=3000), st.sampled_from([0.25, 1.0, 1.01]))
def test_points_are_spread_evenly_over_a_rollout_that_is_watched_steadily(
    judgements: int, every_s: float
) -> None:
    found = watched([1e9 + i * every_s for i in range(judgements)])
    at = found.times.tolist()

    assert found.step_s <= max(FIRST_STEP_S, 4 * judgements * every_s / MAX_POINTS)
    assert all(b - a < found.step_s + every_s for a, b in itertools.pairwise(at))


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_what_is_not_known_stays_unknown_and_the_rest_has_six_digits(
    effect: float | None, low: float | None, high: float | None, margin: float | None
) -> None:
    found = Sequences.start()
    found.add(told(0.0))
    found.add(told(1.0, high, effect=effect, low=low, margin=margin))
    point = list(found.points(found.metrics[0]))[-1]

    for value, kept in zip(
        (effect, low, high, margin),
        (point.effect, point.low, point.high, point.margin),
        strict=True,
    ):
        assert (kept is None) is (value is None)
        assert value is None or math.isclose(kept or 0.0, value, rel_tol=1e-5)


def test_an_endless_bound_is_none() -> None:
    found = Sequences.start()
    found.add(told(0.0, math.inf, low=-math.inf, effect=math.nan, margin=1e300))
    found.add(told(1.0))

    (point,) = found.points(found.metrics[0])
    assert point.at == 1.0  # nothing was known before


def test_a_metric_that_waits_begins_with_its_first_numbers() -> None:
    found = Sequences.start()
    for at in range(3):
        found.add(told(float(at), None, low=None, effect=None, margin=None, unit=""))
    found.add(told(3.0))

    (metric,) = found.metrics
    assert [point.at for point in found.points(metric)] == [3.0]


def test_another_unit_is_another_sequence_and_neither_loses_its_points() -> None:
    found = Sequences.start()
    for at in range(4):
        found.add(told(float(at)))
    found.add(told(4.0, unit="ratio"))
    before, after = found.metrics

    assert (before.unit, after.unit) == ("ratio difference", "ratio")
    assert [point.high is not None for point in found.points(before)] == [True] * 4 + [False]
    assert [point.at for point in found.points(after)] == [4.0]


def test_a_clock_that_was_set_back_leads_not_back() -> None:
    found = watched([100.0, 101.0, 40.0, 41.0])
    points = list(found.points(found.metrics[0]))

    assert [(point.at, point.high) for point in points] == [(100.0, 0.0), (101.0, 3.0)]
