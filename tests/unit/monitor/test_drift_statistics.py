"""Distances of distributions, and how far chance may take them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitor.drift_evidence import distances, fixed_band, uniform_band

counts = st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(any)


def test_equal_shares_are_no_distance_apart() -> None:
    found = distances([100, 200], [1000, 2000], ordered=True)

    assert found is not None
    assert found.psi == pytest.approx(0.0, abs=1e-4)
    assert found.js == pytest.approx(0.0, abs=1e-4)
    assert found.ks == 0.0


def test_known_distances() -> None:
    found = distances([500_000, 500_000], [800_000, 200_000], ordered=True)

    assert found is not None
    assert found.psi == pytest.approx(0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5), 1e-3)
    assert found.ks == pytest.approx(0.3)
    assert found.js == pytest.approx(0.0731, abs=1e-3)


def test_categories_have_no_order() -> None:
    line = distances([10, 0, 10], [0, 20, 0], ordered=True)
    categories = distances([10, 0, 10], [0, 20, 0], ordered=False)

    assert line is not None
    assert categories is not None
    assert (line.ks, categories.ks) == (0.5, 1.0)


def test_without_values_there_is_no_distance() -> None:
    assert distances([0, 0], [1, 2], ordered=True) is None
    assert distances([1, 2], [0, 0], ordered=True) is None


@given(counts, counts)
def test_distances_have_their_bounds(reference: list[int], live: list[int]) -> None:
    found = distances(reference, live, ordered=True)

    assert found is not None
    assert found.psi >= -1e-12
    assert -1e-12 <= found.js <= 1.0
    assert 0.0 <= found.ks <= 1.0


def test_bands_narrow_with_more_rows_and_the_one_for_many_looks_is_wider() -> None:
    assert fixed_band(0, 0.05) == uniform_band(0, 0.05) == 1.0
    assert uniform_band(10_000, 0.05) < uniform_band(1000, 0.05)
    assert fixed_band(1000, 0.05) < uniform_band(1000, 0.05)


@pytest.mark.slow
def test_the_band_for_many_looks_holds_at_every_look() -> None:
    random = np.random.default_rng(4)
    rows = np.arange(1, 1001)
    bounds = np.array([uniform_band(int(n), 0.05) for n in rows])
    left = 0
    for _ in range(200):
        values = random.random(1000)
        for edge in (0.1, 0.5, 0.9):
            if (np.abs(np.cumsum(values < edge) / rows - edge) > bounds).any():
                left += 1
                break

    assert left <= 10
