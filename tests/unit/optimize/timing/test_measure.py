"""Windows of time and the contenders in them."""

import gc
import math
from collections import Counter
from collections.abc import Callable
from itertools import groupby

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing import (
    CallWindow,
    TimedCandidate,
    TimingSettings,
    failures,
    measure,
    summarize,
)
from headrace.optimize.timing.measure import (
    MAX_READINGS,
    call_latencies,
    cold_latencies,
    foreign_cores,
    foreign_limit_cores,
    plan,
    trial_call_s,
)
from tests.unit.optimize.timing.machine import QUIET, Machine, World

NAMES = ("a", "b", "c")


class Blind(Machine):
    def foreign_s(self) -> float | None:
        return None


def windows_of(
    machine: Machine,
    *candidates: TimedCandidate,
    until: float = math.inf,
    settings: TimingSettings | None = None,
    on_window: Callable[[CallWindow], None] | None = None,
) -> list[CallWindow]:
    return measure(
        candidates or [machine.candidate(name, 0.01) for name in NAMES],
        settings=settings or TimingSettings(blocks=8),
        until=until,
        clock=machine,
        cpu=machine,
        rng=np.random.default_rng(1),
        on_window=on_window,
    )


def test_each_block_has_a_window_of_each_contender() -> None:
    windows = windows_of(Machine(QUIET, 1))

    for block, group in groupby(windows, key=lambda window: window.block):
        assert {window.name for window in group} == set(NAMES)
        assert block < 8
    assert len(windows) == 8 * len(NAMES)


def test_the_order_is_drawn_anew_for_each_block() -> None:
    windows = windows_of(Machine(QUIET, 1), settings=TimingSettings(blocks=30))

    first = Counter(windows[i].name for i in range(0, len(windows), len(NAMES)))

    assert min(first[name] for name in NAMES) >= 5


def test_windows_are_quiet_on_a_quiet_machine() -> None:
    windows = windows_of(Machine(QUIET, 1))

    assert not any(window.disturbed for window in windows)
    assert all((window.foreign_cores or 0) < 0.1 for window in windows)


def test_disturbed_windows_are_kept_marked_and_made_again() -> None:
    machine = Machine(World(gap_s=1.5, burst_s=0.5, seen_ratio=1.0), 2)

    windows = windows_of(machine, settings=TimingSettings(blocks=20))

    disturbed = [window for window in windows if window.disturbed]
    quiet = Counter(window.name for window in windows if not window.disturbed)
    assert disturbed
    assert all((window.foreign_cores or 0) > 0.35 for window in disturbed)
    assert min(quiet[name] for name in NAMES) >= 20


def test_a_machine_that_is_never_quiet_is_not_waited_for() -> None:
    machine = Machine(World(gap_s=0.001, burst_s=5.0, seen_ratio=1.0), 2)

    windows = windows_of(machine, settings=TimingSettings(blocks=20))

    assert len(windows) <= 23 * len(NAMES)
    timings = summarize(windows, baseline="a", rng=np.random.default_rng(1))
    assert all(timing.disturbed for timing in timings.values())


def test_others_may_have_a_tenth_of_the_cores_that_are_left_on_a_large_machine() -> None:
    assert foreign_limit_cores(61) == 6.0
    assert foreign_limit_cores(2) == 0.35


def test_where_others_cannot_be_seen_nothing_is_marked() -> None:
    windows = windows_of(Blind(World(), 1))

    assert {window.foreign_cores for window in windows} == {None}
    assert not any(window.disturbed for window in windows)


@given(st.floats(0.0, 8.0), st.floats(5e-3, 3.0), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_no_call_is_begun_that_is_known_to_end_too_late(
    time_s: float, call_s: float, seed: int
) -> None:
    machine = Machine(QUIET, seed)
    until = machine.at + time_s
    begun = []
    candidates = [machine.candidate(name, call_s) for name in NAMES]

    def watched(candidate: TimedCandidate) -> TimedCandidate:
        def run() -> None:
            begun.append(machine.at)
            candidate.run()

        return TimedCandidate(name=candidate.name, run=run)

    windows = windows_of(machine, *map(watched, candidates), until=until)

    assert all(at <= until for at in begun)
    assert machine.at <= until + 1.1 * call_s + 0.01
    if time_s > len(NAMES) * (8 * call_s + 0.4):
        assert Counter(window.block for window in windows)[0] == len(NAMES)


def test_windows_are_shortened_so_that_all_blocks_are_made_in_time() -> None:
    machine = Machine(QUIET, 1)

    windows = windows_of(machine, until=machine.at + 4.0, settings=TimingSettings(blocks=20))

    assert {window.block for window in windows} >= set(range(20))
    assert machine.at <= 1004.0 + 0.02


def test_no_time_gives_no_window() -> None:
    machine = Machine(QUIET, 1)

    assert windows_of(machine, until=machine.at) == []


@pytest.mark.parametrize("fails_at", [1, 2, 40])
def test_a_contender_that_raises_is_dropped_with_its_reason(fails_at: int) -> None:
    machine = Machine(QUIET, 1)
    calls = iter(range(1, 10_000))
    good = machine.candidate("good", 0.01)

    def run() -> None:
        good.run()
        if next(calls) == fails_at:
            raise ValueError("input 'x' has another shape")

    windows = windows_of(machine, good, TimedCandidate(name="bad", run=run))

    assert failures(windows) == {"bad": "ValueError: input 'x' has another shape"}
    assert next(calls) == fails_at + 1
    assert sum(window.name == "good" for window in windows) == 8
    assert list(summarize(windows, baseline="good", rng=np.random.default_rng(1))) == ["good"]


def test_where_all_are_dropped_their_reasons_are_left() -> None:
    def run() -> None:
        raise MemoryError

    windows = windows_of(Machine(QUIET, 1), TimedCandidate(name="bad", run=run))

    assert failures(windows) == {"bad": "MemoryError"}


def test_what_was_measured_before_an_interrupt_has_been_told() -> None:
    machine = Machine(QUIET, 1)
    told: list[CallWindow] = []
    good = machine.candidate("good", 0.01)

    def run() -> None:
        if len(told) == 9:
            raise KeyboardInterrupt
        good.run()

    with pytest.raises(KeyboardInterrupt):
        windows_of(
            machine, TimedCandidate(name="good", run=run), good_twin(good), on_window=told.append
        )

    assert len(told) == 9
    assert summarize(told, baseline="good", rng=np.random.default_rng(1))["twin"].blocks == 4
    assert gc.isenabled()


def test_what_goes_on_after_an_interrupt_has_blocks_of_its_own() -> None:
    machine = Machine(QUIET, 1)

    windows = measure(
        [machine.candidate(name, 0.01) for name in NAMES],
        settings=TimingSettings(blocks=3),
        until=math.inf,
        clock=machine,
        cpu=machine,
        rng=np.random.default_rng(1),
        first_block=7,
    )

    assert [window.block for window in windows] == [7, 7, 7, 8, 8, 8, 9, 9, 9]


def good_twin(candidate: TimedCandidate) -> TimedCandidate:
    return TimedCandidate(name="twin", run=candidate.run)


def test_python_does_not_collect_in_the_midst_of_a_window() -> None:
    machine = Machine(QUIET, 1)
    collecting = []

    def run() -> None:
        collecting.append(gc.isenabled())
        machine.at += 0.01

    windows_of(machine, TimedCandidate(name="a", run=run))

    assert not any(collecting)
    assert gc.isenabled()


def test_caches_are_driven_out_before_each_call_that_counts_where_asked_to() -> None:
    machine = Machine(QUIET, 1)
    evictions = []

    def evict() -> None:
        evictions.append(machine.at)
        machine.at += 0.03

    windows = measure(
        [machine.candidate("a", 0.01)],
        settings=TimingSettings(blocks=6, cold=True),
        until=math.inf,
        clock=machine,
        cpu=machine,
        rng=np.random.default_rng(1),
        evict=evict,
    )

    assert all(window.cold for window in windows)
    readings = sum(window.latencies_s.size for window in windows)
    assert len(evictions) == readings + 2  # before the first window it is timed itself
    assert np.median(windows[0].latencies_s) == pytest.approx(0.01, rel=0.1)


def test_windows_survive_a_journal() -> None:
    windows = windows_of(Machine(World(), 3))

    read = msgspec.json.decode(msgspec.json.encode(windows), type=list[CallWindow])

    assert read == windows
    assert read[0].latencies_s.dtype == np.float64


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_contenders_need_names_of_their_own(names: list[str]) -> None:
    machine = Machine(QUIET, 1)

    with pytest.raises(InvalidArgumentError, match="unique names"):
        measure(
            [machine.candidate(name, 0.01) for name in names],
            settings=TimingSettings(),
            until=math.inf,
            clock=machine,
            cpu=machine,
            rng=np.random.default_rng(1),
        )


def test_a_tick_more_or_less_is_no_foreign_load() -> None:
    assert foreign_cores(5.0, 5.01, 0.1) == pytest.approx(0.0)
    assert foreign_cores(5.0, 5.11, 0.1) == pytest.approx(1.0)
    assert foreign_cores(5.0, 4.0, 0.1) == 0.0
    assert foreign_cores(None, 4.0, 0.1) is None


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

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, minimum=1, calls=1)

    assert latencies == [0.25] * 4


def test_a_slow_contender_gets_its_least_readings_beyond_the_end() -> None:
    ticking = Ticking(2.0)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, minimum=3, calls=1)

    assert latencies == [2.0] * 3


def test_nothing_is_called_again_once_time_is_up() -> None:
    ticking = Ticking(2.0)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, minimum=3, calls=1, until=3.0)

    assert latencies == [2.0] * 2


def test_readings_are_means_of_their_calls() -> None:
    ticking = Ticking(0.125)

    latencies = call_latencies(ticking.run, now=ticking.now, end=1.0, minimum=1, calls=4)

    assert latencies == [0.125, 0.125]
    assert ticking.calls == 8


def test_driving_out_caches_is_not_part_of_a_call() -> None:
    ticking = Ticking(0.25)

    def evict() -> None:
        ticking.at += 1.0

    latencies = cold_latencies(ticking.run, evict=evict, now=ticking.now, end=5.0, minimum=1)

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

    first = call_latencies(ticking.run, now=ticking.now, end=0.0, minimum=1, calls=min(calls, 1000))

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
