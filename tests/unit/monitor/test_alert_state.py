"""How an alert begins, fires and ends."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.alert_state import (
    KEEP_RESOLVED_S,
    Alert,
    AlertReading,
    AlertState,
    Key,
    advance,
    changed,
)
from headrace.monitor.slo import ConditionReading

P99 = next(kind for kind in ALERTS if kind.name == "HeadraceLatencyP99")
KEY = (P99.name, "fraud")
BAD = ConditionReading(value=0.3, threshold=0.2, is_bad=True)
GOOD = ConditionReading(value=0.1, threshold=0.2, is_bad=False)


def finding(
    reading: ConditionReading | None,
    *,
    for_s: float = 10.0,
    keep_s: float = 0.0,
    kind: AlertKind = P99,
) -> AlertReading:
    return AlertReading(
        kind=kind,
        endpoint="fraud",
        reading=reading,
        for_s=for_s,
        keep_firing_for_s=keep_s,
        hold_s=60.0,
    )


def play(
    *looks: tuple[float, ConditionReading | None], for_s: float = 10.0, keep_s: float = 0.0
) -> dict[Key, Alert]:
    alerts: dict[Key, Alert] = {}
    for now, reading in looks:
        alerts = advance(alerts, [finding(reading, for_s=for_s, keep_s=keep_s)], now=now)
    return alerts


def state(alerts: dict[Key, Alert]) -> AlertState | None:
    return alerts[KEY].state if KEY in alerts else None


def test_an_alert_waits_for_its_time_before_it_fires() -> None:
    assert state(play((0, BAD))) is AlertState.PENDING
    assert state(play((0, BAD), (9, BAD))) is AlertState.PENDING
    fired = play((0, BAD), (9, BAD), (10, BAD))

    assert state(fired) is AlertState.FIRING
    assert fired[KEY].since == 10
    assert fired[KEY].summary == "p99 of fraud is 300 ms, above what is promised"


def test_an_alert_without_a_time_fires_at_once() -> None:
    assert state(play((0, BAD), for_s=0.0)) is AlertState.FIRING


def test_summary_says_what_the_reading_has_more_of() -> None:
    kind = next(kind for kind in ALERTS if kind.name == "HeadraceRowsDiffer")
    reading = ConditionReading(
        value=0.4, threshold=0, is_bad=True, detail="version 1: output 'y' differs"
    )
    [alert] = advance({}, [finding(reading, for_s=0.0, kind=kind)], now=0.0).values()

    assert alert.summary.endswith("other callers' rows: version 1: output 'y' differs")
    assert "{padding: {max_ratio: 1.0}}" in alert.action


def test_what_ends_in_time_never_fired() -> None:
    assert play((0, BAD), (5, GOOD)) == {}


def test_what_fired_is_told_as_over_for_a_while() -> None:
    over = play((0, BAD), (10, BAD), (20, GOOD))
    still = play((0, BAD), (10, BAD), (20, GOOD), (20 + KEEP_RESOLVED_S - 1, GOOD))
    gone = play((0, BAD), (10, BAD), (20, GOOD), (20 + KEEP_RESOLVED_S, GOOD))

    assert state(over) is AlertState.RESOLVED
    assert (over[KEY].since, over[KEY].began) == (20, 10)
    assert state(still) is AlertState.RESOLVED
    assert gone == {}


def test_what_comes_again_begins_again() -> None:
    again = play((0, BAD), (10, BAD), (20, GOOD), (30, BAD))
    fired = play((0, BAD), (10, BAD), (20, GOOD), (30, BAD), (40, BAD))

    assert state(again) is AlertState.PENDING
    assert fired[KEY].began == 40


def test_an_alert_fires_on_until_its_condition_did_not_hold_for_its_time() -> None:
    looks = ((0, BAD), (10, BAD), (20, GOOD), (45, BAD), (46, GOOD))

    kept = play(*looks, (74, GOOD), keep_s=30.0)
    over = play(*looks, (74, GOOD), (75, GOOD), keep_s=30.0)
    pending = play((0, BAD), (5, GOOD), keep_s=30.0)

    assert state(kept) is AlertState.FIRING
    assert kept[KEY].since == 10
    assert state(over) is AlertState.RESOLVED
    assert over[KEY].since == 75
    assert pending == {}


def test_an_alert_of_a_time_to_come_is_not_held_by_it() -> None:
    fired = play((1000, BAD), (1010, BAD), keep_s=30.0)

    after = advance(fired, [finding(GOOD, keep_s=30.0)], now=500)

    assert state(after) is AlertState.RESOLVED


def test_not_knowing_ends_nothing_at_once() -> None:
    held = play((0, BAD), (10, BAD), (69, None))
    over = play((0, BAD), (10, BAD), (70, None))

    assert state(held) is AlertState.FIRING
    assert state(over) is AlertState.RESOLVED
    assert play((0, None)) == {}


def test_an_alert_of_an_endpoint_that_is_gone_is_over() -> None:
    fired = play((0, BAD), (10, BAD))

    after = advance(fired, [], now=11)

    assert after[KEY].state is AlertState.RESOLVED
    assert advance(play((0, BAD)), [], now=1) == {}


def test_only_what_begins_to_fire_or_ends_is_news() -> None:
    pending = play((0, BAD))
    fired = advance(pending, [finding(BAD)], now=10)
    worse = ConditionReading(value=0.9, threshold=0.2, is_bad=True)
    still = advance(fired, [finding(worse)], now=11)
    over = advance(still, [finding(GOOD)], now=12)

    assert changed({}, pending) == []
    assert [a.state for a in changed(pending, fired)] == [AlertState.FIRING]
    assert changed(fired, still) == []
    assert still[KEY].value == 0.9
    assert [a.state for a in changed(still, over)] == [AlertState.RESOLVED]
    assert changed(over, {}) == []


@given(st.lists(st.tuples(st.floats(0.1, 20.0), st.sampled_from([BAD, GOOD, None]))))
def test_every_firing_is_followed_by_one_end(
    steps: list[tuple[float, ConditionReading | None]],
) -> None:
    alerts: dict[Key, Alert] = {}
    told: list[AlertState] = []
    now = 0.0

    for elapsed, reading in steps:
        now += elapsed
        after = advance(alerts, [finding(reading)], now=now)
        told += [alert.state for alert in changed(alerts, after)]
        alerts = after

    wanted = [AlertState.FIRING, AlertState.RESOLVED] * len(told)
    assert told == wanted[: len(told)]
