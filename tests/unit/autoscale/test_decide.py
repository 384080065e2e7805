import math
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest

from headrace.autoscale import ScaleReason, ScalerState, Signals, begin, decide, granted
from headrace.core.spec.scale import AutoscaleSpec, ScaleScheduleSpec
from tests.unit.autoscale.looks import T0, counts, follow, load, missing, play

WIDE = AutoscaleSpec(max_replicas=20)


def test_a_count_follows_the_load_and_says_by_which_numbers() -> None:
    last = play(WIDE, [70.0] * 120, replicas=4)[-1]

    assert last.replicas == 10
    assert last.needed == pytest.approx(10.0)
    assert last.numbers["arrivals"] == pytest.approx(70.0)
    assert last.numbers["target_utilisation"] == pytest.approx(0.7)
    assert "70 requests/s x 0.1 s of a copy that may be busy 70%" in last.message


def test_in_flight_per_replica_is_the_target_where_it_is_named() -> None:
    settings = AutoscaleSpec(max_replicas=20, target_in_flight=2.0)

    last = play(settings, [100.0] * 120, replicas=2)[-1]

    assert last.replicas == 5
    assert last.numbers["in_flight"] == pytest.approx(10.0)


def test_a_burst_is_answered_in_the_second_that_shows_it() -> None:
    calm = play(WIDE, [10.0] * 60, replicas=2)[-1]

    burst = play(WIDE, [100.0], state=calm.state)[-1]

    assert burst.replicas == 8, "one step goes to four times the ready copies"
    assert burst.reason is ScaleReason.BURST
    assert "one step goes to 8 at most" in burst.message


def test_a_burst_holds_what_it_needed_for_a_stable_window_and_the_delay() -> None:
    calm = play(WIDE, [10.0] * 60, replicas=2)[-1]

    after = counts(play(WIDE, [70.0] * 20 + [10.0] * 400, state=calm.state))

    shrinks = [second for second, (a, b) in enumerate(pairwise(after), 1) if b < a]
    assert after[19] == 9, "what the load needs at least"
    assert shrinks[0] >= 19 + WIDE.scale_down_delay_s
    assert after[-1] == 2


def test_a_step_down_halves_at_most_and_waits_a_stable_window_for_the_next() -> None:
    busy = play(WIDE, [110.0] * 120, replicas=16)[-1]

    after = counts(play(WIDE, [1.0] * 600, state=busy.state))

    steps = [second for second, (a, b) in enumerate(pairwise(after)) if b < a]
    assert all(b >= math.ceil(a / 2) for a, b in pairwise(after))
    assert all(later - earlier >= 60 for earlier, later in pairwise(steps))
    assert after[-1] == 1


def test_missing_metrics_keep_the_count() -> None:
    busy = play(WIDE, [70.0] * 300, replicas=10)[-1]

    lost = play(WIDE, [None] * 900, state=busy.state)

    assert set(counts(lost)) == {10}
    assert lost[-1].reason is ScaleReason.MISSING


def test_metrics_of_some_copies_only_can_add_but_not_take_away() -> None:
    calm = play(WIDE, [10.0] * 300, replicas=2)[-1]
    state = granted(calm.state, 10)

    last = follow(
        WIDE, lambda _s, _b: load(10.0, ready=10, is_partial=True), seconds=400, state=state
    )[-1]
    heavy = load(200.0, ready=10, is_partial=True)
    more = decide(last.state, heavy, WIDE, now=last.state.observed_at + 1.0)

    assert last.replicas == 10
    assert more.replicas > 10


def test_nothing_is_taken_away_before_it_was_watched_for_the_delay() -> None:
    after = counts(play(WIDE, [1.0] * 300, replicas=9))

    assert after[118] == 9
    assert after[119] == 5


def test_a_break_in_watching_begins_the_delay_anew() -> None:
    calm = play(WIDE, [30.0] * 300, replicas=5)[-1]
    state = granted(calm.state, 9)

    late = decide(state, load(1.0, ready=9), WIDE, now=state.observed_at + 600.0)

    assert late.replicas == 9
    assert late.reason is ScaleReason.SETTLING
    assert "watched" in late.message


def test_copies_that_start_count_as_coming_however_long_the_queue_grows() -> None:
    settings = AutoscaleSpec(max_replicas=50, target_in_flight=2.0)

    def look(second: int, state: ScalerState) -> Signals:
        waiting = 2.0 + 10.0 * second
        return load(20.0, ready=1, starting=state.replicas - 1, in_flight=waiting)

    decisions = follow(settings, look, seconds=40, state=begin(1, now=T0))

    seen = counts(decisions)
    first = next(count for count in seen if count > 1)
    assert first <= 4
    assert seen[-1] == first, "the queue of a shortage is no reason for more"
    assert "are starting" in decisions[-1].message


def test_more_arrivals_are_a_reason_for_more_while_copies_start() -> None:
    settings = AutoscaleSpec(max_replicas=50, target_in_flight=2.0, max_scale_up_ratio=50.0)

    def look(second: int, state: ScalerState) -> Signals:
        rate = 40.0 if second < 5 else 160.0
        return load(rate, ready=2, starting=state.replicas - 2, in_flight=rate / 2.0)

    decisions = follow(settings, look, seconds=10, state=begin(2, now=T0))

    assert decisions[-1].replicas > 10


def late(_second: int, state: ScalerState) -> Signals:
    """Few requests, and a p99 that is too long all the same."""
    return load(5.0, ready=state.replicas, p99_s=0.2, run_s=0.01, service_s=0.01)


def test_a_p99_above_the_slo_adds_one_after_a_while_and_waits_for_it() -> None:
    settings = AutoscaleSpec(max_replicas=8, slo_latency_s=0.15)

    decisions = follow(settings, late, seconds=60, state=begin(2, now=T0))

    seen = counts(decisions)
    raised = [second for second, (a, b) in enumerate(pairwise(seen), 1) if b > a]
    assert raised[0] == 15, "two and a half panic windows"
    assert (seen[15], decisions[15].reason) == (3, ScaleReason.PRESSURE)
    assert raised[1] - raised[0] >= 27, "late requests of before must be gone first"


def test_nothing_is_taken_away_while_the_p99_is_above_the_slo() -> None:
    settings = AutoscaleSpec(max_replicas=4, slo_latency_s=0.15)

    last = follow(settings, late, seconds=600, state=begin(4, now=T0))[-1]

    assert last.replicas == 4
    assert "p99 200 ms above the SLO of 150 ms" in last.message


def test_a_long_wait_adds_half_of_the_copies() -> None:
    settings = AutoscaleSpec(max_replicas=20, target_queue_wait_s=0.01)

    def look(_second: int, state: ScalerState) -> Signals:
        return load(35.0, ready=state.replicas, queue_wait_s=0.5)

    last = follow(settings, look, seconds=20, state=begin(6, now=T0))[-1]

    assert last.replicas == 9
    assert last.state.limit == pytest.approx(35.0 / 6)


def test_a_count_that_was_too_small_is_not_tried_again_at_once() -> None:
    """Constant load, a model of the load that is wrong: two are too few, whatever it says."""
    settings = AutoscaleSpec(max_replicas=20, target_queue_wait_s=0.05)

    def look(_second: int, state: ScalerState) -> Signals:
        wait = 0.2 if state.replicas < 3 else 0.01
        return load(10.0, ready=state.replicas, queue_wait_s=wait, service_s=0.01)

    seen = counts(follow(settings, look, seconds=1200, state=begin(2, now=T0)))

    assert [b - a for a, b in pairwise(seen) if a != b] == [1]


def test_idle_endpoints_sleep_and_wake_with_the_first_request() -> None:
    settings = AutoscaleSpec(min_replicas=0, max_replicas=4, idle_s=30.0)

    idle = play(settings, [1.0] * 10 + [0.0] * 40)
    asleep = idle[-1]
    held = Signals(observed_at=0.0, ready=0, held=3)
    woken = decide(asleep.state, held, settings, now=asleep.state.observed_at + 1.0)
    starting = Signals(observed_at=0.0, ready=0, starting=1, held=3)
    later = decide(woken.state, starting, settings, now=woken.state.observed_at + 1.0)

    assert idle[38].replicas == 1
    assert idle[41].replicas == 0
    assert asleep.reason is ScaleReason.IDLE
    assert (woken.replicas, woken.reason) == (1, ScaleReason.WOKEN)
    assert later.replicas == 1


def test_many_held_requests_wake_as_many_copies_as_they_need() -> None:
    settings = AutoscaleSpec(min_replicas=0, max_replicas=4, target_in_flight=5.0)

    woken = decide(
        begin(0, now=T0), Signals(observed_at=0.0, ready=0, held=12), settings, now=T0 + 1.0
    )

    assert woken.replicas == 3


def test_an_endpoint_whose_metrics_are_lost_does_not_fall_asleep() -> None:
    settings = AutoscaleSpec(min_replicas=0, idle_s=10.0)

    decisions = play(settings, [0.0] * 5 + [None] * 60)

    assert decisions[-1].replicas == 1


def test_the_schedule_raises_the_minimum_and_wakes() -> None:
    hint = ScaleScheduleSpec(cron="0 8 * * *", duration_s=3600.0, min_replicas=3)
    settings = AutoscaleSpec(min_replicas=0, max_replicas=8, schedule=(hint,))
    eight = datetime(2026, 11, 25, 8, tzinfo=UTC).timestamp()
    asleep = Signals(observed_at=0.0, ready=0)

    before = decide(begin(0, now=eight - 60.0), asleep, settings, now=eight - 1.0)
    after = decide(before.state, asleep, settings, now=eight)

    assert before.replicas == 0
    assert (after.replicas, after.reason) == (3, ScaleReason.SCHEDULE)


def test_bounds_win_at_once() -> None:
    grown = decide(begin(1, now=T0), missing(ready=1), AutoscaleSpec(min_replicas=3), now=T0 + 1.0)
    shrunk = decide(begin(9, now=T0), missing(ready=9), AutoscaleSpec(max_replicas=4), now=T0 + 1.0)
    full = play(AutoscaleSpec(max_replicas=3), [100.0] * 90, replicas=3)[-1]

    assert (grown.replicas, grown.reason) == (3, ScaleReason.MINIMUM)
    assert (shrunk.replicas, shrunk.reason) == (4, ScaleReason.MAXIMUM)
    assert (full.replicas, full.reason) == (3, ScaleReason.MAXIMUM)


def test_a_backlog_is_carried_off_besides_the_load() -> None:
    calm = play(WIDE, [35.0] * 60, replicas=5)[-1]

    with_queue = load(35.0, ready=5, in_flight=200.0)
    decision = decide(calm.state, with_queue, WIDE, now=calm.state.observed_at + 1.0)

    assert decision.replicas > calm.replicas


def test_a_clock_that_was_set_back_only_makes_it_wait() -> None:
    busy = play(WIDE, [70.0] * 60 + [10.0] * 100, replicas=10)[-1]

    back = decide(busy.state, load(10.0, ready=10), WIDE, now=T0 - 10_000.0)
    later = play(WIDE, [10.0] * 100, state=back.state)[-1]
    much_later = play(WIDE, [10.0] * 200, state=later.state)[-1]

    assert busy.replicas == later.replicas == 10
    assert much_later.replicas < 10


def test_a_state_survives_a_restart() -> None:
    decision = play(WIDE, [70.0] * 60 + [10.0] * 30, replicas=3)[-1]

    stored = msgspec.json.encode(decision.state)
    state = msgspec.json.decode(stored, type=type(decision.state))

    assert state == decision.state
    assert len(stored) < 10_000
