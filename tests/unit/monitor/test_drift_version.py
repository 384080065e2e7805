"""The first rows become the reference where none was given, and all of it survives a restart."""

import msgspec
import numpy as np

from headrace.core.spec.observe import DriftSpec
from headrace.monitor.drift import FeatureState
from headrace.monitor.drift_reference import DriftReference, feature_reference
from headrace.monitor.drift_version import Collected, StoredDrift, VersionDrift, inputs_only
from headrace.observe.features import FeatureValues, ValueCounts, count_columns
from tests.unit.monitor.streams import normal


def values(name: str, *numbers: float | str | None, role: str = "input") -> FeatureValues:
    return FeatureValues(name=name, role=role, values=list(numbers))


def window(rows: int = 200, reference: DriftReference | None = None) -> VersionDrift:
    stored = StoredDrift(reference=reference or DriftReference())
    return VersionDrift(settings=DriftSpec(window_rows=rows), stored=stored)


def counted(one: VersionDrift, shift: float = 0.0, rows: int = 300) -> list[ValueCounts]:
    return count_columns(normal(rows, len(one.bins), 7) + shift, one.bins)


def given(*names: str) -> DriftReference:
    features = [feature_reference(name, "input", normal(2000, 1, 3)[:, 0]) for name in names]
    return DriftReference(features=features, source="data", rows=2000, created_at=1.0)


def test_the_first_rows_are_the_reference_when_there_are_enough() -> None:
    one = window(200)
    one.add([], [values("x", *normal(150)[:, 0])], now=1.0)
    assert (one.collected_rows, one.bins) == (150, [])
    key = one.key

    one.add([], [values("x", *normal(150)[:, 0])], now=2.0)

    assert one.collected_rows == 0
    assert (one.reference.source, one.reference.rows, one.reference.created_at) == (
        "window",
        200,
        2.0,
    )
    assert one.reference.features[0].counts.rows == 200
    assert one.key != key


def test_null_is_missing_and_infinite_numbers_are_texts() -> None:
    one = window(4)

    one.add([], [values("x", 0.5, None, "inf", "-inf")], now=1.0)

    counts = one.reference.features[0].counts
    assert (counts.missing, counts.non_finite, counts.valid) == (1, 2, 1)


def test_texts_become_categories() -> None:
    one = window(4)

    one.add([], [FeatureValues(name="t", role="input", is_text=True, values=["a", "b"] * 2)], now=1)

    assert one.bins[0].categories == ["a", "b"]


def test_a_feature_without_a_reference_is_collecting_while_others_are_judged() -> None:
    one = window(200, reference=given("x"))

    changes = one.add(counted(one, 3.0), [values("y", 0.1, 0.2, role="output")], now=5.0)

    assert [(c.name, c.state) for c in changes] == [("x", FeatureState.DRIFTED)]
    assert [(r.name, r.role, r.rows) for r in one.reports()][1] == ("y", "output", 2)


def test_what_was_counted_stays_when_more_features_get_their_reference() -> None:
    one = window(2, reference=given("x"))
    one.add(counted(one), [], now=5.0)

    one.add(counted(one), [values("y", 0.1, 0.2, role="output")], now=6.0)
    one.add(counted(one), [], now=7.0)

    assert [bins.name for bins in one.bins] == ["x", "y"]
    assert [report.rows for report in one.reports()] == [900, 300]
    assert (one.reference.source, one.reference.rows) == ("data", 2000)


def test_a_window_that_takes_two_days_knows_their_hours() -> None:
    one, short = window(200), window(200)
    for hour in range(50):
        one.add([], [values("x", *normal(4, 1, hour)[:, 0])], now=hour * 3600.0)
        short.add([], [values("x", *normal(4, 1, hour)[:, 0])], now=hour * 60.0)

    assert (one.reference.is_hourly, one.reference.covers_s) == (True, 49 * 3600.0)
    assert [sum(hour) for hour in one.reference.features[0].hours][:3] == [12, 12, 8]
    assert (short.reference.is_hourly, short.reference.covers_s) == (False, 49 * 60.0)


def test_a_window_that_an_older_version_began_has_no_times() -> None:
    one = window(4)
    one.stored = StoredDrift(
        collected={"x": Collected(role="input", is_text=False, values=[0.1, 0.2])}
    )

    one.add([], [values("x", 0.3, 0.4)], now=9.0)

    assert one.reference.features[0].counts.rows == 4
    assert (one.reference.features[0].effect, one.reference.is_hourly) == (0.0, False)


def test_values_of_what_has_a_reference_are_not_kept() -> None:
    one = window(5, reference=given("x"))

    one.add([], [values("x", 0.1)], now=5.0)

    assert one.keep().collected == {}


def test_everything_survives_as_json() -> None:
    one = window(200, reference=given("x"))
    one.add(counted(one, 3.0), [values("y", 0.5)], now=5.0)

    kept = msgspec.json.decode(msgspec.json.encode(one.keep()), type=StoredDrift)
    again = VersionDrift(settings=one.settings, stored=kept)

    assert again.key == one.key
    assert [(r.name, r.state, r.since) for r in again.reports()] == [
        ("x", FeatureState.DRIFTED, 5.0),
        ("y", FeatureState.COLLECTING, None),
    ]


def test_another_version_goes_on_with_the_inputs() -> None:
    features = [
        feature_reference("x", "input", np.zeros(5)),
        feature_reference("y", "output", np.zeros(5)),
    ]

    kept = inputs_only(DriftReference(features=features))

    assert [one.bins.name for one in kept.features] == ["x"]


def test_collected_features_are_bounded() -> None:
    one = window(5)
    many = {f"x{i}": Collected(role="input", is_text=False, values=[1.0]) for i in range(160)}
    one.stored = StoredDrift(collected=many)

    one.add([], [values("more", 0.1)], now=1.0)

    assert "more" not in one.stored.collected
