"""Which units stay, and how they make up for the others: checked against slow obvious versions."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array
from headrace.optimize.prune.selection import (
    ReaderWeight,
    fitted_weight,
    least_lossy,
)
from headrace.optimize.prune.ties import UnitLayout


def reading(
    x: Array, weight: Array, layout: UnitLayout | None = None, originals: Array | None = None
) -> ReaderWeight:
    y = x if originals is None else originals
    return ReaderWeight(
        weight=weight,
        layout=layout or UnitLayout(axis=0, units=x.shape[1]),
        own=x.T @ x / len(x),
        across=x.T @ y / len(x),
    )


def loss(x: Array, weight: Array, kept: Array, fitted: Array) -> float:
    return float(np.mean(np.sum((x @ weight - x[:, kept] @ fitted) ** 2, axis=1)))


@given(st.integers(0, 10_000))
def test_what_depends_on_others_is_dropped_at_no_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    free = rng.normal(size=(200, 5))
    x = np.column_stack([free, free @ rng.normal(size=(5, 3))])
    weight = rng.normal(size=(8, 4))
    one = reading(x, weight)

    kept = least_lossy([one], 5)
    assert loss(x, weight, kept, fitted_weight(one, kept)) < 1e-3 * np.mean(
        np.sum((x @ weight) ** 2, 1)
    )


@given(st.integers(0, 10_000))
def test_the_fit_is_no_worse_than_keeping_the_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 6)) @ rng.normal(size=(6, 6))
    weight = rng.normal(size=(6, 3))
    kept = np.array([0, 2, 5])
    one = reading(x, weight)

    assert (
        loss(x, weight, kept, fitted_weight(one, kept))
        <= loss(x, weight, kept, weight[kept]) + 1e-9
    )


def test_the_unit_that_goes_is_the_one_whose_best_fit_loses_least() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    weight = rng.normal(size=(5, 2))
    one = reading(x, weight)

    subsets = [np.array(subset) for subset in combinations(range(5), 4)]
    best = min(subsets, key=lambda kept: loss(x, weight, kept, fitted_weight(one, kept)))
    assert least_lossy([one], 4).tolist() == best.tolist()


def test_heads_are_taken_whole() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 6))
    x[:, 2:4] *= 0.01
    one = reading(x, rng.normal(size=(6, 2)), UnitLayout(axis=0, units=3, inner=2))

    assert least_lossy([one], 2).tolist() == [0, 2]


def test_a_unit_counts_with_all_that_read_it() -> None:
    x = np.eye(3) * [1.0, 1.0, 2.0]
    first = reading(x, np.array([[1.0], [0.0], [0.1]]))
    second = reading(x, np.array([[0.0], [3.0], [0.1]]))

    assert least_lossy([first], 1).tolist() == [0]
    assert least_lossy([first, second], 1).tolist() == [1]


def test_the_fit_is_towards_what_was_read_before_anything_was_pruned() -> None:
    rng = np.random.default_rng(5)
    before = rng.normal(size=(400, 4))
    weight = rng.normal(size=(4, 2))
    one = reading(before * 2, weight, originals=before)

    fitted = fitted_weight(one, np.arange(4))
    assert np.allclose(fitted, weight / 2, rtol=2e-2)


def test_no_examples_that_excite_a_layer_leave_its_weights_as_they_are() -> None:
    weight = np.ones((3, 2))
    one = reading(np.zeros((5, 3)), weight)

    assert np.allclose(fitted_weight(one, np.array([0, 2])), weight[[0, 2]])
