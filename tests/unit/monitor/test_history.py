"""Requests of the last day in bounded memory."""

import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.monitor import CounterTotals, RequestHistory
from headrace.monitor.history import (
    Bucket,
    RequestWindow,
    bucket_of,
    index_of,
    joined_bucket_of,
    joined_index,
)
from tests.unit.monitor.counted import Counted, envoy_bucket

_NOON = 1_800_000_000.0
_NOTHING = Counted()
_DAY_S = 24 * 3600


def _history() -> RequestHistory:
    history = RequestHistory()
    history.advance(_NOON)
    return history


def _after(step_s: float, totals: CounterTotals) -> RequestHistory:
    history = _history()
    history.add(_NOON + step_s, "fraud", "1", totals)
    return history


def test_a_window_has_what_was_counted_in_it() -> None:
    history = _history()
    history.add(_NOON + 1, "fraud", "1", Counted().after([0.01] * 4, errors=1, rejections=2))

    window = history.window("fraud", until=_NOON + 1, seconds=2)

    assert (window.requests, window.errors, window.rejections) == (4, 1, 2)
    assert window.requests_per_s == 2
    assert window.error_ratio == 0.25
    assert window.latency == {(0.01, 0.001): 4}


def test_a_window_before_or_after_is_empty() -> None:
    history = _after(1, Counted().after([0.01]))

    before = history.window("fraud", until=_NOON, seconds=60)
    after = history.window("fraud", until=_NOON + 90, seconds=60)

    assert (before.requests, after.requests) == (0, 0)
    assert before.quantile(0.99) is None
    assert before.error_ratio == 0


def test_an_unknown_endpoint_has_an_empty_window() -> None:
    assert _history().window("nobody", until=_NOON, seconds=60).requests == 0


def test_a_window_says_which_share_of_it_is_known() -> None:
    history = _history()
    history.advance(_NOON + 10)
    totals = Counted()
    for second in range(11, 41):
        totals = totals.after([0.01])
        history.add(_NOON + second, "fraud", "1", totals)
    again = RequestHistory()
    again.unpack(history.pack())

    for one in (history, again):
        half = one.window("fraud", until=_NOON + 40, seconds=60)
        whole = one.window("fraud", until=_NOON + 40, seconds=30)
        nothing = one.window("spam", until=_NOON + 40, seconds=30)
        assert (half.known_ratio, whole.known_ratio, nothing.known_ratio) == (0.5, 1.0, 0.0)


def test_what_was_counted_before_the_first_look_is_left_out() -> None:
    history = RequestHistory()
    begun = Counted().after([0.01] * 1000)
    history.add(_NOON, "fraud", "1", begun)
    history.add(_NOON + 1, "fraud", "1", begun.after([0.01]))

    assert history.window("fraud", until=_NOON + 1, seconds=60).requests == 1


def test_the_first_request_of_an_endpoint_counts_if_somebody_looked_before() -> None:
    history = _after(1, Counted().after([0.01]))

    assert history.window("fraud", until=_NOON + 1, seconds=60).requests == 1


def test_totals_of_another_epoch_were_counted_from_zero() -> None:
    history = _history()
    history.add(_NOON + 1, "fraud", "1", Counted().after([0.01] * 5), epoch="a")
    history.add(_NOON + 2, "fraud", "1", Counted().after([0.01] * 7), epoch="b")

    assert history.window("fraud", until=_NOON + 2, seconds=60).requests == 12


def test_totals_that_fell_were_counted_from_zero() -> None:
    history = _history()
    history.add(_NOON + 1, "fraud", "1", Counted().after([0.01] * 5))
    history.add(_NOON + 2, "fraud", "1", Counted().after([0.02] * 3))

    window = history.window("fraud", until=_NOON + 2, seconds=60)

    assert window.requests == 8
    assert sum(window.latency.values()) == 8


def test_versions_are_told_apart_and_added_up() -> None:
    history = _after(1, Counted().after([0.01]))
    history.add(_NOON + 1, "fraud", "2", Counted().after([0.01] * 2))
    history.add(_NOON + 1, "fraud", "2~baseline", Counted().after([0.01] * 4))

    def requests(version: str) -> int:
        return history.window("fraud", until=_NOON + 1, seconds=60, version=version).requests

    assert history.versions("fraud") == ["1", "2", "2~baseline"]
    assert [requests(v) for v in ("", "1", "2", "2~baseline", "3")] == [7, 1, 6, 4, 0]


def test_what_came_while_nobody_looked_is_spread_over_that_time() -> None:
    history = _history()
    history.add(_NOON + 3600, "fraud", "1", Counted().after([0.01] * 3600))

    windows = history.series("fraud", since=_NOON, until=_NOON + 3600, points=60)

    assert sum(window.requests for window in windows) == 3600
    assert max(window.requests for window in windows) <= 120


def test_a_series_has_the_points_that_were_asked_for() -> None:
    history = _history()
    totals = Counted()
    for second in range(1, 601):
        totals = totals.after([0.01])
        history.add(_NOON + second, "fraud", "1", totals)

    windows = history.series("fraud", since=_NOON, until=_NOON + 600, points=120)

    assert len(windows) == 120
    assert {window.requests for window in windows} == {5}
    assert all(one.end == other.begin for one, other in pairwise(windows))


@pytest.mark.parametrize(("until", "ends"), [(599, 600), (605, 600), (608, 608), (620, 620)])
def test_a_series_ends_when_it_is_asked_for_unless_too_little_is_known(
    until: float, ends: float
) -> None:
    history = _history()
    totals = Counted()
    for second in range(1, 621):
        totals = totals.after([0.01])
        history.add(_NOON + second, "fraud", "1", totals)

    windows = history.series("fraud", since=_NOON, until=_NOON + until, points=31)

    assert windows[-1].end == _NOON + min(until, ends)
    assert windows[-1].requests_per_s == pytest.approx(1, abs=0.1)


def test_a_series_is_no_finer_than_what_is_kept() -> None:
    history = _history()
    history.advance(_NOON + _DAY_S)

    windows = history.series("fraud", since=_NOON, until=_NOON + 600, points=600)

    assert {window.duration_s for window in windows} == {60}


def test_what_is_a_day_old_is_forgotten() -> None:
    history = _after(1, Counted().after([0.01]))
    for hour in range(1, 27):
        history.advance(_NOON + hour * 3600)
        history.advance(_NOON + hour * 3600 + 61)

    assert history.window("fraud", until=_NOON + 27 * 3600, seconds=27 * 3600).requests == 0
    assert history.versions("fraud") == []
    assert history.size_bytes == 0


_STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.25, 1.0, 1.0, 1.0, 7.0, 30.0, 400.0, 5000.0]),
        st.lists(st.floats(1e-6, 100.0), max_size=8),
        st.integers(0, 3),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=60,
)


@given(steps=_STEPS)
def test_downsampling_keeps_every_sum(
    steps: list[tuple[float, list[float], int, int, bool]],
) -> None:
    history, at, totals, epoch = _history(), _NOON, Counted(), 0
    expected = Counted()
    for pause_s, latencies, errors, rejections, restarts in steps:
        if at + pause_s - _NOON > _DAY_S - 3600:
            break
        at += pause_s
        if restarts:
            totals, epoch = Counted(), epoch + 1
        if not latencies:
            errors = rejections = 0  # noqa: PLW2901  # an error is a request
        totals = totals.after(latencies, errors=errors, rejections=rejections)
        expected = expected.after(latencies, errors=errors, rejections=rejections)
        history.add(at, "fraud", "1", totals, epoch=str(epoch))

    window = history.window("fraud", until=at + 1, seconds=at + 61 - _NOON)

    assert (window.requests, window.errors, window.rejections) == (
        expected.requests,
        expected.errors,
        expected.rejections,
    )
    assert sum(window.latency.values()) == expected.requests


@given(steps=_STEPS)
def test_what_was_packed_goes_on_as_if_nothing_had_happened(
    steps: list[tuple[float, list[float], int, int, bool]],
) -> None:
    straight, stored, at, totals = _history(), _history(), _NOON, Counted()
    for pause_s, latencies, *_ in steps:
        at += pause_s
        totals = totals.after(latencies)
        straight.add(at, "fraud", "1", totals)
        stored.add(at, "fraud", "1", totals)
        again = RequestHistory()
        again.unpack(stored.pack())
        stored = again

    def counts(history: RequestHistory) -> list[tuple[int, int]]:
        windows = history.series("fraud", since=at - 3600, until=at + 60, points=100)
        return [(window.requests, sum(window.latency.values())) for window in windows]

    assert counts(stored) == counts(straight)
    assert stored.looked_at == straight.looked_at


@given(steps=_STEPS, share=st.floats(0, 1))
def test_two_windows_side_by_side_are_one(
    steps: list[tuple[float, list[float], int, int, bool]], share: float
) -> None:
    history, at, totals = _history(), _NOON, Counted()
    for pause_s, latencies, *_ in steps:
        at += pause_s
        totals = totals.after(latencies)
        history.add(at, "fraud", "1", totals)
    begin, end = _NOON + 3.5, at - 2.25
    middle = begin + (end - begin) * share

    def counts(begin: float, end: float) -> tuple[int, int]:
        window = history.window("fraud", until=end, seconds=end - begin)
        return window.requests, sum(window.latency.values())

    one, other, both = counts(begin, middle), counts(middle, end), counts(begin, end)
    assert (one[0] + other[0], one[1] + other[1]) == both


@pytest.mark.parametrize("data", [b"", b"\xc0", b"{}", b"\x83" * 40])
def test_a_file_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no history"):
        RequestHistory().unpack(data)


_LOADS: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "lognormal": lambda rng: rng.lognormal(np.log(0.012), 0.5, 20_000),
    "uniform": lambda rng: rng.uniform(0.001, 0.1, 20_000),
    "slow tail": lambda rng: rng.pareto(3.0, 20_000) * 0.002 + 0.001,
    "microseconds": lambda rng: rng.lognormal(np.log(80e-6), 0.3, 20_000),
    "seconds": lambda rng: rng.lognormal(np.log(8.0), 0.2, 20_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("load", _LOADS)
@pytest.mark.parametrize("age_s", [0, 3600, 10 * 3600])
def test_quantiles_are_within_five_percent(load: str, age_s: int) -> None:
    latencies = _LOADS[load](np.random.default_rng(7))
    history, totals = _history(), Counted()
    for second, part in enumerate(np.split(latencies, 100), start=1):
        totals = totals.after(part.tolist())
        history.add(_NOON + second, "fraud", "1", totals)
    for minute in range(0, age_s, 60):
        history.advance(_NOON + 200 + minute)

    window = history.window("fraud", until=_NOON + 180, seconds=240)

    assert window.requests == 20_000
    for q in (0.5, 0.9, 0.95, 0.99):
        assert window.quantile(q) == pytest.approx(float(np.quantile(latencies, q)), rel=0.05)


def test_idle_endpoints_cost_nearly_nothing() -> None:
    names = [f"endpoint-{number}" for number in range(2000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        history = _history()
        for second in range(1, 6):
            for name in names:
                history.add(_NOON + second, name, "1", _NOTHING)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert history.size_bytes == 0
    assert used / len(names) < 1200


@pytest.mark.slow
def test_a_busy_day_of_an_endpoint_takes_less_than_a_two_thousandth_of_the_bound() -> None:
    rng = np.random.default_rng(3)
    parts = [Counted().after(rng.lognormal(np.log(0.012), 0.5, 600).tolist()) for _ in range(20)]
    history, totals = _history(), Counted()
    for number in range(_DAY_S // 60):
        totals = totals.plus(parts[number % 20])
        history.add(_NOON + number * 60 + 4, "fraud", "1", totals)
        history.add(_NOON + number * 60 + 60, "fraud", "1", totals)

    assert history.window("fraud", until=_NOON + _DAY_S, seconds=_DAY_S).requests > 800_000
    assert history.size_bytes < 140_000


@pytest.mark.slow
def test_the_oldest_hours_go_when_there_is_too_much() -> None:
    history = RequestHistory(max_bytes=12_000)
    history.advance(_NOON)
    totals = Counted()
    for minute in range(1, 600):
        totals = totals.after([0.001 * (1 + number) for number in range(20)])
        history.add(_NOON + minute * 60, "fraud", "1", totals)

    now = _NOON + 600 * 60
    history.advance(now)

    assert history.size_bytes < 13_000
    assert history.window("fraud", until=now, seconds=1800).requests >= 28 * 20


def test_no_more_versions_are_kept_than_the_bound() -> None:
    history = RequestHistory(max_tracks=10)
    history.advance(_NOON)
    for second in range(1, 200):
        history.add(_NOON + second, "fraud", str(second), Counted().after([0.01]))
    history.advance(_NOON + 300)

    assert history.versions("fraud") == sorted(map(str, range(190, 200)))


_SECONDS = st.floats(1e-6, 1000.0)


@given(seconds=_SECONDS)
def test_a_bucket_keeps_its_bounds(seconds: float) -> None:
    bucket = envoy_bucket(seconds)

    assert bucket_of(index_of(bucket)) == bucket


@given(seconds=_SECONDS)
def test_a_joined_bucket_holds_the_bucket_and_is_about_a_tenth_wide(seconds: float) -> None:
    bucket = envoy_bucket(seconds)
    lower_s, width_s = joined_bucket_of(joined_index(index_of(bucket)))

    assert lower_s <= bucket[0]
    assert bucket[0] + bucket[1] <= lower_s + width_s + 1e-9
    assert width_s <= lower_s * 0.101


def test_joined_buckets_leave_no_gap() -> None:
    firsts = sorted({joined_index(index) for index in range(200, 500)})
    bounds = [joined_bucket_of(first) for first in firsts[1:-1]]

    for (lower_s, width_s), (following_s, _) in pairwise(bounds):
        assert abs(lower_s + width_s - following_s) < 1e-9 * following_s


def test_no_time_at_all_is_a_bucket() -> None:
    assert bucket_of(index_of((0.0, 0.0))) == (0.0, 0.0)
    assert joined_bucket_of(joined_index(0)) == (0.0, 0.0)


latencies_s = st.lists(st.floats(1e-5, 500.0), min_size=1, max_size=60)


@given(
    latencies_s,
    st.sampled_from([bucket_of, joined_bucket_of]),
    st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_within_five_percent_however_requests_lie_in_their_buckets(
    latencies: list[float], name: Callable[[int], Bucket], q: float
) -> None:
    counts: dict[tuple[float, float], int] = {}
    for latency in latencies:
        bucket = name(index_of((latency, 0.0)))
        counts[bucket] = counts.get(bucket, 0) + 1
    rank = max(q * len(latencies), 1e-9)
    true = next(
        value for place, value in enumerate(sorted(latencies), start=1) if place >= rank - 1e-9
    )

    found = RequestWindow(begin=0.0, end=1.0, latency=counts).quantile(q)

    assert found == pytest.approx(true, rel=0.0501)


def test_a_constant_latency_is_told_as_what_it_is() -> None:
    window = RequestWindow(begin=0.0, end=60.0, latency={(0.010, 0.001): 1000})

    shown = [window.quantile(q) for q in (0.5, 0.95, 0.99)]

    assert shown == pytest.approx([0.0102] * 3, rel=0.05)
