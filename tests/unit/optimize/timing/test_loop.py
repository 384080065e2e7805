"""Windows are long enough for what they hold, and the clock is read seldom enough."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.optimize.timing import TimingSettings
from headrace.optimize.timing.measure import (
    MAX_READINGS,
    call_latencies,
    cold_latencies,
    plan,
    trial_call_s,
)


class Ticking:
    """A clock that passes `read_s` at each reading, and calls that take `call_s`."""

    def __init__(self, call_s: float, read_s: float = 0.0) -> None:
        self.at, self.call_s, self.read_s, self.calls = 0.0, call_s, read_s, 0

    def now(self) -> float:
        self.at += self.read_s
        return self.at

    def run(self) -> None:
        self.calls += 1
        self.at += self.call_s


def test_a_window_goes_on_until_its_end() -> None:
    ticking = Ticking(0.25)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, least=1, calls=1)

    assert latencies == [0.25] * 4


def test_a_slow_contender_gets_its_least_readings_beyond_the_end() -> None:
    ticking = Ticking(2.0)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, least=3, calls=1)

    assert latencies == [2.0] * 3


def test_nothing_is_called_again_once_time_is_up() -> None:
    ticking = Ticking(2.0)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, least=3, calls=1, until=3.0)

    assert latencies == [2.0] * 2


def test_readings_are_means_of_their_calls() -> None:
    ticking = Ticking(0.125)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, least=1, calls=4)

    assert latencies == [0.125, 0.125]
    assert ticking.calls == 8


def test_driving_out_caches_is_not_part_of_a_call() -> None:
    ticking = Ticking(0.25)

    def evict() -> None:
        ticking.at += 1.0

    latencies = cold_latencies(ticking.run, evict=evict, now=ticking.now, end=5.0, least=1)

    assert latencies == [0.25] * 4


def test_the_first_call_does_not_count_in_a_trial() -> None:
    ticking = Ticking(9.0)

    def run() -> None:
        ticking.run()
        ticking.call_s = 0.01

    assert trial_call_s(run, now=ticking.now, warmup_s=0.1, until=math.inf) == pytest.approx(0.01)


def test_the_first_call_counts_where_there_is_time_for_no_other() -> None:
    ticking = Ticking(9.0)

    assert trial_call_s(ticking.run, now=ticking.now, warmup_s=0.1, until=5.0) == 9.0
    assert ticking.calls == 1


@given(st.floats(1e-8, 10.0), st.floats(1e-8, 1e-6))
def test_reading_the_clock_takes_less_than_a_hundredth_of_what_is_read(
    call_s: float, read_s: float
) -> None:
    assume(call_s >= read_s / 10)  # calling a function takes as long as that
    ticking = Ticking(call_s, read_s)
    made = plan(call_s + read_s, overhead_s=read_s, settings=TimingSettings())

    calls = made.calls_per_reading

    first = call_latencies(ticking.run, now=ticking.now, end=0.0, least=1, calls=min(calls, 1000))

    assert made.window_s / (calls * call_s) <= MAX_READINGS
    if calls <= 1000:
        assert first == [pytest.approx(call_s, rel=0.01)]


def test_slow_contenders_get_three_calls_and_very_slow_ones_one() -> None:
    settings = TimingSettings(window_s=0.15)

    assert plan(0.2, overhead_s=1e-7, settings=settings).least_readings == 3
    assert plan(2.0, overhead_s=1e-7, settings=settings).least_readings == 1


def test_windows_are_shortened_where_time_is_short_but_not_below_what_tells_something() -> None:
    settings = TimingSettings(window_s=0.2)

    made = [plan(1e-3, overhead_s=1e-7, settings=settings, fit=fit) for fit in (9.0, 0.5, 0.01)]

    assert [one.window_s for one in made] == pytest.approx([0.2, 0.1, 0.03])


def test_cold_calls_are_timed_one_by_one() -> None:
    assert plan(1e-6, overhead_s=1e-7, settings=TimingSettings(cold=True)).calls_per_reading == 1


def test_a_window_takes_as_long_as_is_planned() -> None:
    made = plan(
        0.04, overhead_s=0.0, settings=TimingSettings(window_s=0.15, cold=True), between_s=0.06
    )

    assert made.whole_s == pytest.approx(3 * 0.1 + 0.04)
