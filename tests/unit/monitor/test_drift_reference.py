"""What a sketch of training data holds."""

import numpy as np

from headrace.core import Array, Datatype, ModelSignature, TensorSpec
from headrace.monitor.drift_reference import feature_reference, reference_of
from headrace.observe.feature_counts import MAX_TEXTS, FeatureKind
from headrace.observe.features import features_of


def test_bins_of_numbers_hold_about_as_many_values_each() -> None:
    one = feature_reference("x", "input", np.random.default_rng(1).normal(size=10_000))

    assert one.bins.kind is FeatureKind.NUMBERS
    assert len(one.bins.edges) == 19
    assert all(450 < count < 550 for count in one.counts.bins)
    assert one.counts.out_of_range == 0
    assert not one.bins.whole


def test_a_value_that_repeats_makes_fewer_bins() -> None:
    column = np.concatenate([np.zeros(900), np.random.default_rng(1).random(100)])

    one = feature_reference("x", "input", column)

    assert len(one.bins.edges) < 5
    assert sum(one.counts.bins) == 1000
    assert one.bins.edges == sorted(set(one.bins.edges))


def test_few_whole_numbers_are_categories_and_many_are_numbers() -> None:
    few = feature_reference("x", "input", np.array([1.0, 2.0, 7.0] * 50))
    many = feature_reference("x", "input", np.arange(500.0))

    assert (few.bins.kind, few.bins.categories) == (FeatureKind.VALUES, ["1", "2", "7"])
    assert (many.bins.kind, many.bins.whole) == (FeatureKind.NUMBERS, True)


def test_a_constant_has_one_category() -> None:
    one = feature_reference("x", "input", np.zeros(200))

    assert one.bins.categories == ["0"]
    assert one.counts.bins == [200, 0]


def test_of_texts_the_most_frequent_are_kept_and_the_rest_are_others() -> None:
    texts: Array = np.array([f"t{i % 80}" for i in range(800)] + [""], np.object_)

    one = feature_reference("t", "input", texts)

    assert len(one.bins.categories) == MAX_TEXTS
    assert (one.counts.bins[-1], one.counts.missing) == (300, 1)
    assert not one.bins.closed
    assert one.counts.out_of_range == 0


def test_missing_values_are_part_of_the_reference() -> None:
    one = feature_reference("x", "input", np.array([np.nan] * 50 + [0.1, 0.7, np.inf] * 50))

    assert (one.counts.missing, one.counts.non_finite, one.counts.valid) == (50, 50, 100)


def test_nothing_but_missing_values_makes_a_reference_of_nothing() -> None:
    one = feature_reference("x", "input", np.array([np.nan] * 10))

    assert (one.bins.edges, one.counts.bins, one.counts.valid) == ([], [0], 0)


def test_tensors_without_data_have_no_reference() -> None:
    specs = [TensorSpec(name=name, datatype=Datatype.FP32, shape=(-1, 2)) for name in ("a", "b")]
    features = features_of(ModelSignature(inputs=(specs[0],), outputs=(specs[1],), batched=True))

    made = reference_of(features, {"a": np.zeros((7, 2))}, source="data", at=5.0)

    assert [one.bins.name for one in made.features] == ["a[0]", "a[1]"]
    assert (made.rows, made.at, made.of("a[1]"), made.of("b[0]")) == (
        7,
        5.0,
        made.features[1],
        None,
    )
