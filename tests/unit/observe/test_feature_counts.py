"""How values are counted by bins, and that counts of parts are the counts of the whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from headrace.core import Array
from headrace.observe.features import (
    FeatureBins,
    FeatureKind,
    ValueCounts,
    count_column,
    count_columns,
)

NUMBERS = FeatureBins(
    name="x", role="input", kind=FeatureKind.NUMBERS, edges=[0.0, 1.0], low=-2.0, high=3.0
)
VALUES = FeatureBins(
    name="v", role="input", kind=FeatureKind.VALUES, categories=["1", "3"], whole=True, closed=True
)
TEXTS = FeatureBins(
    name="t", role="input", kind=FeatureKind.TEXTS, categories=["a", "b"], closed=True
)
tables = some.arrays(
    np.float64,
    st.tuples(st.integers(0, 20), st.just(6)),
    elements=st.one_of(
        st.floats(-4, 4), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0])
    ),
)


def test_a_value_on_an_edge_is_above_it() -> None:
    counts = count_column(np.array([-1.0, 0.0, 0.5, 1.0, 2.0]), NUMBERS)

    assert counts.bins == [1, 2, 2]
    assert (counts.rows, counts.valid, counts.out_of_range) == (5, 5, 0)


def test_what_is_wrong_with_numbers_is_counted_apart() -> None:
    column = np.array([math.nan, math.inf, -math.inf, -2.5, 3.5, 0.5])

    counts = count_column(column, NUMBERS)

    assert (counts.missing, counts.non_finite, counts.out_of_range) == (1, 2, 2)
    assert sum(counts.bins) == counts.valid == 3


def test_a_fraction_is_wrong_where_the_reference_had_whole_numbers() -> None:
    counts = count_column(np.array([1.0, 3.0, 2.0, 1.5]), VALUES)

    assert counts.bins == [1, 1, 2]
    assert (counts.not_whole, counts.out_of_range) == (1, 2)


def test_an_empty_text_is_missing_and_an_unknown_one_out_of_range() -> None:
    counts = count_column(np.array(["a", "", "c", "b", "a"], np.object_), TEXTS)

    assert counts.bins == [2, 1, 1]
    assert (counts.rows, counts.missing, counts.out_of_range) == (5, 1, 1)


@given(tables, tables)
def test_counts_of_parts_add_up_to_those_of_the_whole(one: Array, other: Array) -> None:
    bins = [NUMBERS] * 6
    whole = count_columns(np.concatenate([one, other]), bins)

    parts = zip(count_columns(one, bins), count_columns(other, bins), strict=True)

    if len(one) + len(other):
        assert [first.plus(second) for first, second in parts] == whole


@given(tables)
def test_many_features_are_counted_as_each_alone(table: Array) -> None:
    few = FeatureBins(name="few", role="input", kind=FeatureKind.NUMBERS, edges=[0.5])
    bins = [NUMBERS, few, VALUES, NUMBERS, few, NUMBERS]

    together = count_columns(table, [*bins[:2], NUMBERS, *bins[3:]])
    alone = [count_column(table[:, i], one) for i, one in enumerate(bins)]

    assert [together[i] for i in (0, 1, 3, 4, 5)] == [alone[i] for i in (0, 1, 3, 4, 5)]
    assert count_columns(table[:, 2:3], [VALUES]) == [alone[2]]


@pytest.mark.parametrize("bins", [NUMBERS, VALUES, TEXTS], ids=["numbers", "values", "texts"])
def test_nothing_is_counted_of_no_rows(bins: FeatureBins) -> None:
    counts = count_column(np.array([], object if bins is TEXTS else float), bins)

    assert counts.rows == sum(counts.bins) == 0
    assert ValueCounts().plus(counts).rows == 0
