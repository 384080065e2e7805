"""What drifted is named first, with how sure that is; where nothing is watched nothing is said."""

from dataclasses import replace

import pytest

from headrace.console.endpoint import MOST, drift_of
from headrace.control.api.features import DriftView, ReferenceView
from headrace.control.telemetry.labels import LiveScore
from headrace.monitor.drift import FeatureReport, FeatureState

FEATURE = FeatureReport(
    name="x[3]",
    role="input",
    state=FeatureState.OK,
    rows=450,
    psi=0.02,
    js=0.01,
    ks=0.05,
    ks_low=0.0,
    ks_high=0.2,
    evidence=0.9,
    needed=3.6,
    missing_ratio=0.0,
    out_of_range_ratio=0.0,
    type_violation_ratio=0.0,
    design_effect=1.0,
    since=None,
    why="",
    label="",
)
DRIFTED = replace(
    FEATURE, state=FeatureState.DRIFTED, evidence=9.2, label="amount", why="24 % below 0.4"
)
REFERENCE = ReferenceView(
    source="data",
    rows=9,
    at=None,
    collected_rows=0,
    window_rows=0,
    covers_s=None,
    is_hourly=False,
)


def found(
    *features: FeatureReport, state: str = "ok", live: tuple[LiveScore, ...] = ()
) -> DriftView:
    return DriftView(
        endpoint="fraud",
        version="3",
        state=state,
        reference=REFERENCE,
        features=list(features),
        live=list(live),
    )


@pytest.mark.parametrize("nothing", [None, found(state="off")])
def test_where_nothing_is_watched_there_is_no_section(nothing: DriftView | None) -> None:
    assert drift_of(nothing) is None


def test_evidence_is_drawn_against_what_is_needed() -> None:
    shown = drift_of(found(DRIFTED, FEATURE, replace(FEATURE, needed=0.0), state="drifted"))

    assert shown is not None
    assert [row.filled for row in shown.rows] == [100.0, 25.0, 0.0]
    assert [row.word for row in shown.rows] == ["drifted", "no drift", "no drift"]
    assert shown.rows[0].name == "x[3] (amount)"
    assert (shown.drifted, shown.waiting, shown.more) == ("x[3] (amount)", "", 0)


def test_many_features_are_counted_and_not_all_shown() -> None:
    shown = drift_of(found(*[DRIFTED] * 7, *[FEATURE] * 60, state="drifted"))

    assert shown is not None
    assert (len(shown.rows), shown.more) == (MOST, 67 - MOST)
    assert shown.drifted.endswith("x[3] (amount) and 2 more")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (None, "No replica has reported"),
        (replace(REFERENCE, collected_rows=1200, window_rows=2000), "1,200 of 2,000"),
        (REFERENCE, "Not enough rows"),
    ],
)
def test_what_is_waited_for_is_said(reference: ReferenceView | None, said: str) -> None:
    shown = drift_of(replace(found(state="collecting"), reference=reference))

    assert shown is not None
    assert said in shown.waiting


def test_live_accuracy_is_told_where_labels_came() -> None:
    hour = LiveScore(seconds=3600, rows=210, accuracy=0.94, mean_error=None)
    day = LiveScore(seconds=86_400, rows=5310, accuracy=None, mean_error=0.125)
    shown = drift_of(found(FEATURE, live=(hour, day, replace(hour, rows=0))))

    assert shown is not None
    assert shown.live == [
        "94 % correct, of 210 labelled answers of the last 1 h",
        "0.125 off on average, of 5,310 labelled answers of the last 1 d",
    ]
