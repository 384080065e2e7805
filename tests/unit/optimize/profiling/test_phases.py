import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.optimize.profiling.grid import Setting, cell_of
from headrace.optimize.profiling.messages import Cell, Round
from headrace.optimize.profiling.predict import LEAST_ROUNDS, Phases, find_phases, without_drift
from tests.unit.optimize.profiling.made import cell


def in_rounds(factors: list[float], *, noise: float = 0.0, rows: int = 1, seed: int = 1) -> Cell:
    """A cell that took so many times 10 ms a row in each round, of two seconds."""
    rng = random.Random(seed + rows)  # noqa: S311  # noise
    means = [0.010 * rows * factor * math.exp(rng.gauss(0.0, noise)) for factor in factors]
    found = cell_of(Setting(threads=1, runs=1, rows=rows, length=32), means, elapsed_s=1.0)
    rounds = tuple(Round(at_s=2.0 * at, mean_s=mean) for at, mean in enumerate(means))
    return msgspec.structs.replace(found, rounds=rounds)


DRIFT = [1.0, 1.2, 1.2, 0.8, 0.8, 1.0, 1.2, 0.8]


def test_phases_are_what_all_cells_of_a_round_have_in_common() -> None:
    found = find_phases([in_rounds(DRIFT), in_rounds(DRIFT, rows=4), cell(8)])

    assert found is not None
    assert found.factors == pytest.approx(DRIFT)
    assert found.each_s == pytest.approx(2.0)
    assert found.spread_ratio == pytest.approx(np.std(DRIFT))


def test_nothing_is_said_of_drift_without_some_rounds() -> None:
    assert find_phases([cell(1), cell(4)]) is None
    assert find_phases([in_rounds(DRIFT[: LEAST_ROUNDS - 1])]) is None


def test_a_run_that_was_held_up_is_not_a_phase() -> None:
    even = [1.0] * 12
    held = [*even[:5], 9.0, *even[6:]]

    found = find_phases([in_rounds(held), in_rounds(even, rows=2), in_rounds(even, rows=4)])

    assert found is not None
    assert found.factors == pytest.approx(even)


def test_what_is_chance_of_each_cell_is_taken_out() -> None:
    cells = [in_rounds([1.0] * 40, noise=0.05, rows=rows) for rows in (1, 2, 4, 8)]

    found = find_phases(cells)

    assert found is not None
    assert found.spread_ratio < 0.01


def test_the_longer_phases_last_the_less_is_known_of_the_next_stretch() -> None:
    short = [0.9, 1.1] * 16
    long = [0.9] * 8 + [1.1] * 8 + [0.9] * 8 + [1.1] * 8

    ratios = [found.next_ratio for one in (short, long) if (found := find_phases([in_rounds(one)]))]

    assert ratios[0] < 1.06
    assert ratios[1] > 1.2


def test_the_next_stretch_is_as_fast_as_was_said_in_95_of_100() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        values = rng.normal(size=70)  # two stretches with a gap between; phases of three rounds
        smooth = np.convolve(values, np.ones(3) / 3**0.5, mode="valid")
        factors = np.exp(0.1 * smooth)
        found = find_phases([in_rounds(list(factors[:30]))])
        assert found is not None
        ratio = factors[36:].mean() / factors[:30].mean()
        held += 1.0 / found.next_ratio <= ratio <= found.next_ratio

    assert held >= 0.93 * 300


def test_a_slower_machine_does_less_in_all_phases() -> None:
    phases = Phases(factors=(0.5, 2.0), each_s=1.0)

    assert phases.speed == pytest.approx(1.25)
    assert phases.times(2.0).speed == pytest.approx(0.625)


def test_runs_vary_less_in_a_phase_than_in_all_of_them() -> None:
    found = in_rounds(DRIFT)

    steady = without_drift(found, find_phases([found]))

    assert steady.samples_s == pytest.approx([found.mean_s] * len(DRIFT), rel=0.01)
    assert without_drift(cell(1), None) == cell(1)


@given(st.lists(st.lists(st.floats(1e-6, 100.0), min_size=12, max_size=12), min_size=1, max_size=5))
def test_whatever_was_measured_phases_are_finite_and_positive(times: list[list[float]]) -> None:
    found = find_phases([in_rounds(one, rows=rows) for rows, one in enumerate(times, start=1)])

    assert found is not None
    assert all(math.isfinite(one) and one > 0.0 for one in found.factors)
    assert np.mean(found.factors) == pytest.approx(1.0)
    assert 1.0 <= found.next_ratio <= 10.001
    assert found.speed >= 1.0 - 1e-9
