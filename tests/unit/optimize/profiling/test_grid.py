"""Timed settings, their order and their rounds."""

import itertools
import statistics
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import RuntimeFailedError
from headrace.optimize.profiling.grid import (
    FEW,
    KEPT,
    Rounds,
    best_rows,
    cell_of,
    doubling,
    is_worth_more,
    main_length,
    plan_of,
    remaining,
    time_runs,
    window_s,
)
from headrace.optimize.profiling.messages import GridCell, ProfileRequest, Setting
from tests.unit.optimize.profiling.machine import Machine
from tests.unit.optimize.profiling.made import cell


def request(**given_: object) -> ProfileRequest:
    return ProfileRequest(path="m", **given_)  # type: ignore[arg-type]  # named by the tests


@given(st.integers(1, 10_000))
def test_sizes_double_and_end_with_the_most(most: int) -> None:
    found = doubling(most)

    assert found[0] == 1
    assert found[-1] == most
    assert all(a < b <= 2 * a for a, b in pairwise(found))


def test_the_first_wanted_length_is_the_main_one_else_one_near_32() -> None:
    assert main_length((16, 32, 64), ()) == 32
    assert main_length((128, 256), ()) == 128
    assert main_length((16, 64), (64, 16)) == 64


def test_a_plan_leaves_out_what_the_model_cannot_do() -> None:
    plan = plan_of(request(cores=4), batched=False, concurrent=False, lengths=(0,), length=0)

    assert plan.rows == (1,)
    assert plan.runs == (1,)
    assert plan.threads == (1, 2, 4)
    assert plan.lengths == ()


def test_what_was_asked_for_is_measured_and_nothing_else() -> None:
    asked = request(cores=4, rows=(8, 1), threads=(1,), runs=(1, 3))

    plan = plan_of(asked, batched=True, concurrent=True, lengths=(16, 32), length=32)

    assert plan.rows == (1, 8)
    assert plan.runs == (1, 3)
    assert {setting.threads for setting in remaining(plan, (1, 8), 8, cores=4)} == {1}


def test_threads_times_runs_never_exceed_the_cores() -> None:
    plan = plan_of(request(cores=6), batched=True, concurrent=True, lengths=(0,), length=0)

    found = remaining(plan, (1, 2, 4), 2, cores=6)

    assert all(one.threads * one.runs <= 6 for one in found)
    assert len(set(found)) == len(found)


def test_long_inputs_come_last_as_they_take_the_longest() -> None:
    lengths = (256, 16, 32)
    plan = plan_of(request(cores=2), batched=True, concurrent=True, lengths=lengths, length=32)

    found = remaining(plan, (1, 2, 4), 4, cores=2)

    kinds = [(one.threads, one.length) for one in found]
    assert list(dict.fromkeys(kinds)) == [(1, 32), (2, 32), (1, 16), (1, 256)]


def test_a_batch_that_costs_each_row_more_ends_the_search() -> None:
    better = [cell(1, 0.010), cell(2, 0.016), cell(4, 0.028), cell(8, 0.050)]
    worse = [*better, cell(16, 0.16)]

    assert is_worth_more(better, budget_s=60.0)
    assert not is_worth_more(worse, budget_s=60.0)


def test_batches_that_gain_nothing_any_more_end_the_search() -> None:
    flat = [cell(rows, 0.010 * rows) for rows in (1, 2, 4, 8)]

    assert is_worth_more(flat[:3], budget_s=60.0)
    assert not is_worth_more(flat, budget_s=60.0)


def test_a_batch_that_would_take_much_of_the_time_is_not_tried() -> None:
    assert not is_worth_more([cell(1, 1.3)], budget_s=60.0)


def test_the_best_batch_is_the_smallest_that_is_nearly_the_best() -> None:
    assert best_rows([cell(1, 0.010), cell(4, 0.020), cell(8, 0.0396)]) == 4
    assert best_rows([]) == 1


def test_settings_share_the_time_that_is_left() -> None:
    assert window_s(left_s=10.0, settings_left=10) == 1.0
    assert window_s(left_s=100.0, settings_left=1) == 4.0
    assert window_s(left_s=-1.0, settings_left=3) > 0.0


ONE = Setting(threads=1, runs=1, rows=1, length=32)
TWO = Setting(threads=1, runs=1, rows=2, length=32)


class Measured:
    """Rounds over one row and two, on a machine."""

    def __init__(self, machine: Machine, *, total_s: float = 10.0) -> None:
        self.runs = {ONE: machine.run, TWO: lambda: machine.run(2)}
        self.before = {
            one: time_runs(run, one, seconds=1.0, clock=machine.clock)
            for one, run in self.runs.items()
        }
        before = list(self.before.values())
        self.rounds = Rounds(before, total_s=total_s, clock=machine.clock, sleep=machine.sleep)

    def cells(self, rounds: int) -> dict[int, GridCell]:
        for _ in range(rounds):
            self.rounds.measure(self.runs)
        return {cell.rows: cell for cell in self.rounds.cells()}


def test_each_round_measures_every_setting_and_keeps_its_mean() -> None:
    found = Measured(Machine(noise=0.0)).cells(5)

    assert [len(found[rows].rounds) for rows in (1, 2)] == [5, 5]
    assert [one.mean_s for one in found[2].rounds] == pytest.approx([0.020] * 5)
    assert found[2].mean_s == pytest.approx(0.020)
    assert found[2].rows_per_s == pytest.approx(100.0)
    times = [one.at_s for one in found[1].rounds]
    assert times == sorted(times)


def test_settings_see_the_same_phases_so_that_they_can_be_compared() -> None:
    machine = Machine(noise=0.0, drift=lambda at_s: 1.0 if int(at_s / 5.0) % 2 else 1.5)

    found = Measured(machine, total_s=60.0).cells(60)

    assert found[2].mean_s / found[1].mean_s == pytest.approx(2.0, rel=0.05)
    assert max(one.mean_s for one in found[1].rounds) == pytest.approx(0.015)
    assert min(one.mean_s for one in found[1].rounds) == pytest.approx(0.010)


def test_what_was_measured_before_counts_until_there_are_a_few_rounds() -> None:
    measured = Measured(Machine(noise=0.0, drift=lambda at_s: 1.0 if at_s < 2.1 else 2.0))

    first = measured.cells(1)[1]
    later = measured.cells(FEW)[1]

    assert len(first.samples_s) > first.count - measured.before[ONE].count
    assert first.count > measured.before[ONE].count
    assert later.mean_s == pytest.approx(0.020)


def test_runs_after_pauses_are_timed_by_the_length_of_the_pause() -> None:
    found = Measured(Machine(noise=0.0, cold=0.4, half_s=0.01)).cells(20)

    assert not found[2].paused  # a replica that idled begins with one row
    pauses = [one.pause_s for one in found[1].paused]
    assert pauses == pytest.approx([0.0025, 0.010, 0.040], rel=0.2)
    for one in found[1].paused:
        cold = 1.0 + 0.4 * one.pause_s / (one.pause_s + 0.01)
        assert one.mean_s == pytest.approx(0.010 * cold, rel=0.03)
        assert one.count == 40
    assert found[1].mean_s == pytest.approx(0.010)


@pytest.mark.parametrize(("row_s", "longest_s"), [(0.000_01, 0.002), (3.0, 0.2)])
def test_pauses_stay_short_whatever_a_run_takes(row_s: float, longest_s: float) -> None:
    (found, _) = Measured(Machine(row_s=row_s, noise=0.0)).cells(1).values()

    assert 0.0 < found.paused[0].pause_s < found.paused[-1].pause_s < longest_s


def test_how_long_a_round_takes_is_known_before_the_first_and_after_it() -> None:
    machine = Machine(noise=0.0)
    measured = Measured(machine)
    expected_s = measured.rounds.takes_s
    began = machine.now

    measured.cells(1)

    assert machine.now - began == pytest.approx(expected_s, rel=0.2)
    assert measured.rounds.takes_s == pytest.approx(machine.now - began)


def test_more_time_makes_longer_windows_not_endlessly_many_rounds() -> None:
    short, long = (Measured(Machine(), total_s=seconds).rounds for seconds in (10.0, 3_000.0))

    assert 20 < 3_000.0 / long.takes_s < 60
    assert long.takes_s > short.takes_s


def test_a_round_that_fails_leaves_no_part_of_it_behind() -> None:
    measured = Measured(Machine())
    measured.cells(2)
    measured.runs[TWO] = lambda: 1 / 0  # type: ignore[assignment]  # a model's error

    with pytest.raises(ZeroDivisionError):
        measured.rounds.measure(measured.runs)

    assert [len(cell.rounds) for cell in measured.rounds.cells()] == [2, 2]


ALONE = Setting(threads=1, runs=1, rows=4, length=0)


def test_each_run_is_timed_and_rows_are_counted() -> None:
    ticks = itertools.count()

    found = time_runs(lambda: None, ALONE, seconds=10.0, clock=lambda: float(next(ticks)))

    assert set(found.samples_s) == {1.0}
    assert found.count == 9
    assert found.rows_per_s == pytest.approx(9 * 4 / 11)


def test_a_few_runs_are_timed_however_long_they_take() -> None:
    ticks = itertools.count(step=100)

    found = time_runs(lambda: None, ALONE, seconds=1.0, clock=lambda: float(next(ticks)))

    assert found.count == 3
    assert found.p50_s == 100.0


def test_several_runs_at_once_come_from_as_many_threads() -> None:
    seen: set[int] = set()
    together = threading.Barrier(3, timeout=10.0)

    def run() -> None:
        seen.add(threading.get_ident())
        together.wait()  # goes on only once all three are here

    found = time_runs(run, Setting(threads=1, runs=3, rows=1, length=0), seconds=0.0)

    assert len(seen) == 3
    assert found.count == 3


@pytest.mark.parametrize("runs", [1, 2])
def test_a_failure_comes_back_from_whichever_thread(runs: int) -> None:
    def fail() -> None:
        raise RuntimeFailedError("no")

    with pytest.raises(RuntimeFailedError, match="no"):
        time_runs(fail, Setting(threads=1, runs=runs, rows=1, length=0), seconds=0.0)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=900))
def test_what_is_kept_has_the_mean_of_all(samples: list[float]) -> None:
    found = cell_of(ALONE, samples, elapsed_s=1.0)

    assert len(found.samples_s) <= KEPT
    assert list(found.samples_s) == sorted(found.samples_s)
    if len(samples) % KEPT == 0 or len(samples) < KEPT:
        compress_samples = statistics.fmean(found.samples_s)
        assert compress_samples == pytest.approx(statistics.fmean(samples), rel=1e-4, abs=1e-8)
    assert found.count == len(samples)
    assert min(samples) - 1e-8 <= found.mean_s <= max(samples) + 1e-8
