"""Reference of a model's features and the design effect of its rows."""

import msgspec
import numpy as np
import pytest

from headrace.core import Array, Datatype, ModelSignature, TensorSpec
from headrace.core.spec.observe import DriftSpec
from headrace.monitor.drift import DriftWatch, DriftWatchState
from headrace.monitor.drift_reference import (
    HOURS,
    DriftReference,
    effect_in_order,
    feature_reference,
    reference_of,
)
from headrace.observe.features import MAX_TEXTS, FeatureKind, features_of
from tests.unit.monitor.streams import (
    DAY_S,
    autoregressive,
    data_of,
    normal,
    rows_until_named,
    see,
    swing,
    window_of,
)


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

    made = reference_of(features, {"a": np.zeros((7, 2))}, source="data", created_at=5.0)

    assert [one.bins.name for one in made.features] == ["a[0]", "a[1]"]
    assert (made.rows, made.created_at, made.of("a[1]"), made.of("b[0]")) == (
        7,
        5.0,
        made.features[1],
        None,
    )


def effect_of(column: Array) -> float:
    times = np.arange(len(column)) / 25.0
    return feature_reference("x", "input", column, times=times).effect


def test_independent_rows_count_as_many_as_they_are() -> None:
    effects = [effect_of(normal(2000, 1, seed)[:, 0]) for seed in range(20)]

    assert np.median(effects) == pytest.approx(1.0, abs=0.1)
    assert max(effects) < 1.6


def test_rows_that_follow_each_other_count_as_fewer() -> None:
    """The mean of AR(1) rows varies like that of 1/19 of them; a share of them a little less."""
    effects = [
        effect_of(autoregressive(2000, 0.9, np.random.default_rng(seed))[:, 0])
        for seed in range(20)
    ]

    assert 6 < float(np.median(effects)) < 19


def test_a_row_that_comes_many_times_counts_as_one_row() -> None:
    column = np.repeat(normal(1000, 1, 3)[:, 0], 8)

    assert 5 < effect_of(column) < 9


def test_one_shift_of_the_level_counts_so_much_at_most() -> None:
    column = normal(8000, 1, 3)[:, 0]
    column[4000:] += 2.0

    assert effect_of(column) < 4


def test_constant_and_few_rows_have_no_effect() -> None:
    assert effect_of(np.zeros(500)) == 1.0
    assert effect_of(np.arange(20.0)) == 1.0
    assert effect_in_order(np.zeros((0, 3)), np.zeros(0)) == 1.0


def test_the_order_of_the_file_is_that_of_the_times() -> None:
    column = autoregressive(2000, 0.9, np.random.default_rng(1))[:, 0]
    order = np.random.default_rng(2).permutation(2000)

    shuffled = feature_reference("x", "input", column[order], times=order / 25.0)

    assert shuffled.effect == pytest.approx(effect_of(column))
    assert feature_reference("x", "input", column).effect == 0.0


def two_days(table: Array) -> DriftReference:
    return data_of(table, np.arange(len(table)) * 2 * DAY_S / len(table))


def test_two_days_of_rows_are_told_apart_by_the_hour_and_less_are_not() -> None:
    column = normal(4800, 1, 1)[:, 0]
    times = np.arange(4800.0) * 36.0

    hourly = feature_reference("x", "input", column, times=times)
    shorter = feature_reference("x", "input", column, times=np.arange(4800.0) * 30.0)

    assert len(hourly.hours) == HOURS
    assert np.array(hourly.hours).sum(axis=0).tolist() == hourly.counts.bins
    assert [sum(hour) for hour in hourly.hours] == [200] * HOURS
    assert shorter.hours == []
    assert shorter.counts == hourly.counts


def test_what_two_days_had_at_an_hour_is_no_drift_at_that_hour() -> None:
    """Streams that begin at different hours, with a reference of the same two days."""
    times = np.arange(20_000) * DAY_S / 10_000
    for seed in range(8):
        random = np.random.default_rng(seed)
        reference = two_days(random.normal(size=(20_000, 1)) + swing(times, 0.5))
        later = 5 * DAY_S + seed * DAY_S / 8 + times[:5000]
        live = random.normal(size=(5000, 1)) + swing(later, 0.5)

        assert rows_until_named(reference, live, later) is None


def test_what_one_hour_had_is_a_drift_at_another_hour() -> None:
    times = np.arange(20_000) * DAY_S / 10_000
    random = np.random.default_rng(1)
    reference = two_days(random.normal(size=(20_000, 1)) + swing(times, 2.0))
    noon, midnight = 5 * DAY_S + 12 * 3600 + times[:400], 5 * DAY_S + times[:400]
    live = random.normal(size=(400, 1)) + swing(noon, 2.0) + 2.0  # as it is at 6 in the morning

    assert rows_until_named(reference, live, noon) is not None
    assert rows_until_named(reference, live, midnight + 6 * 3600) is None


def test_hours_that_the_reference_has_not_are_not_judged() -> None:
    times = np.arange(0, 3 * DAY_S, 20.0)
    times = times[times % DAY_S < 12 * 3600]
    reference = data_of(normal(len(times), 1, 1), times)
    at_night = 9 * DAY_S + 18 * 3600 + np.arange(1000)
    at_day = 9 * DAY_S + 6 * 3600 + np.arange(1000)

    assert rows_until_named(reference, normal(1000, 1, 2) + 1.0, at_night) is None
    assert rows_until_named(reference, normal(1000, 1, 2) + 1.0, at_day) is not None


def test_counts_of_an_outage_have_no_hour() -> None:
    watch = DriftWatch(reference=two_days(normal(4800)), settings=DriftSpec())
    counts = [watch.reference.features[0].counts]

    watch.add(counts, now=1e9, age_s=7200.0)
    before = watch.memory.rows
    watch.add(counts, now=1e9, age_s=2.0)

    assert (before, watch.memory.rows) == (0, 4800)


def test_dependent_rows_are_not_named_and_a_shift_of_them_is() -> None:
    for seed in range(6):
        random = np.random.default_rng(seed)
        rows = autoregressive(7000, 0.9, random)

        assert rows_until_named(window_of(rows[:2000]), rows[2000:]) is None
        assert rows_until_named(data_of(random.normal(size=(10_000, 1))), rows[2000:] + 1.5)


def test_a_file_of_an_older_version_goes_on() -> None:
    """Blocks without hours, and references without hours, effects and spans of time."""
    watch = DriftWatch(reference=window_of(normal(2000)), settings=DriftSpec())
    see(watch, normal(3000, 1, 3))
    older = msgspec.to_builtins(watch.memory)
    for block in older["blocks"]:
        del block["hours"]
    reference = msgspec.to_builtins(watch.reference)
    del reference["covers_s"]
    for one in reference["features"]:
        del one["hours"], one["effect"]

    again = DriftWatch(
        reference=msgspec.convert(reference, DriftReference),
        settings=watch.settings,
        memory=msgspec.convert(older, DriftWatchState),
    )

    assert not see(again, normal(500, 1, 4))
    assert [one.name for one in see(again, normal(1500, 1, 5) + 2.0)] == ["x[0]"]
