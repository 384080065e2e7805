import pytest

from headrace.optimize.profiling.grid import FEW, Rounds, Setting, time_runs
from headrace.optimize.profiling.messages import Cell
from tests.unit.optimize.profiling.machine import Machine

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
        self.rounds = Rounds(self.before, total_s=total_s, clock=machine.clock, sleep=machine.sleep)

    def cells(self, rounds: int) -> dict[int, Cell]:
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
