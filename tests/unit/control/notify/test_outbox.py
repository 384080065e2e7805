"""Who is told what, and when."""

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.notify.outbox import Message, Outbox
from headrace.core.spec_alerts import AlertsSpec
from headrace.monitor.alert_state import Alert
from tests.unit.control.notify.alert_samples import (
    FIRING,
    OVER,
    STREAM,
    TICKET,
    settings,
    webhook,
)

OPS = settings(webhook())


def due(
    outbox: Outbox, alerts: Sequence[Alert], now: float, spec: AlertsSpec = OPS
) -> list[Message]:
    return outbox.due(alerts, spec, now=now)


def told(outbox: Outbox, alerts: Sequence[Alert], at: float) -> Message:
    """The message that goes out after the wait, taken by its receiver."""
    due(outbox, alerts, at)
    (message,) = due(outbox, alerts, at + 10)
    outbox.sent(message, now=at + 10)
    return message


def test_what_is_new_waits_for_more_of_the_same_endpoint() -> None:
    outbox = Outbox()

    assert due(outbox, [FIRING], 0) == []
    assert due(outbox, [FIRING, TICKET], 9) == []
    (message,) = due(outbox, [FIRING, TICKET], 10)

    assert message.firing == (FIRING, TICKET)
    assert message.resolved == ()


def test_endpoints_are_told_apart() -> None:
    outbox = Outbox()
    other = msgspec.structs.replace(FIRING, endpoint="spam")

    due(outbox, [FIRING, other], 0)
    messages = due(outbox, [FIRING, other], 10)

    assert [message.endpoint for message in messages] == ["fraud", "spam"]


def test_a_stream_and_an_endpoint_of_one_name_are_told_apart_also_after_a_restart() -> None:
    outbox, later = Outbox(), Outbox()
    due(outbox, [FIRING, STREAM], 0)
    messages = due(outbox, [FIRING, STREAM], 10)
    for message in messages:
        outbox.sent(message, now=10)
    later.load(outbox.told())

    assert [(one.endpoint, one.stream) for one in messages] == [("", "fraud"), ("fraud", "")]
    assert due(later, [FIRING, STREAM], 20) == []
    assert later.told() == outbox.told()


def test_what_was_told_is_told_again_only_after_its_time() -> None:
    outbox = Outbox()
    told(outbox, [FIRING], 0)

    assert due(outbox, [FIRING], 109) == []
    (again,) = due(outbox, [FIRING], 110)

    assert again.firing == (FIRING,)


def test_what_is_over_is_told_once() -> None:
    outbox = Outbox()
    told(outbox, [FIRING], 0)

    over = told(outbox, [OVER], 20)

    assert (over.firing, over.resolved) == ((), (OVER,))
    assert due(outbox, [OVER], 1000) == []


def test_what_ended_before_anybody_heard_of_it_is_not_told() -> None:
    outbox = Outbox()

    due(outbox, [FIRING], 0)

    assert due(outbox, [OVER], 5) == []
    assert due(outbox, [OVER], 50) == []


def test_what_fired_again_meanwhile_is_news() -> None:
    outbox = Outbox()
    told(outbox, [FIRING], 0)
    again = msgspec.structs.replace(FIRING, began=FIRING.began + 50)

    message = told(outbox, [again], 60)

    assert message.firing == (again,)


def test_a_receiver_hears_of_its_severities_only() -> None:
    outbox = Outbox()
    pages = settings(webhook(severities=["page"]), group_wait_s=0.0)

    (message,) = due(outbox, [FIRING, TICKET], 0, pages)

    assert message.firing == (FIRING,)
    assert due(Outbox(), [TICKET], 0, pages) == []


def test_a_message_that_was_not_taken_is_tried_again_ever_later() -> None:
    outbox = Outbox()
    due(outbox, [FIRING], 0)
    now, delays = 10.0, []

    for _ in range(10):
        (message,) = due(outbox, [FIRING], now)
        delays.append(outbox.failed(message, now=now))
        assert due(outbox, [FIRING], now + delays[-1] - 0.1) == []
        now += delays[-1]

    assert delays[:4] == [2.0, 4.0, 8.0, 16.0]
    assert delays[-1] == 300.0


def test_nothing_is_sent_twice_at_the_same_time() -> None:
    outbox = Outbox()
    due(outbox, [FIRING], 0)

    assert len(due(outbox, [FIRING], 10)) == 1
    assert due(outbox, [FIRING], 11) == []


def test_a_restart_does_not_tell_everything_again() -> None:
    before, after = Outbox(), Outbox()
    told(before, [FIRING], 0)

    after.load(before.told())

    assert due(after, [FIRING], 20) == []
    over = told(after, [OVER], 30)
    assert over.resolved == (OVER,)


def test_receivers_that_are_gone_are_forgotten() -> None:
    outbox = Outbox()
    told(outbox, [FIRING], 0)

    assert due(outbox, [FIRING], 20, settings()) == []
    assert outbox.told() == []


def test_an_answer_for_a_receiver_that_is_gone_is_nothing() -> None:
    outbox = Outbox()
    due(outbox, [FIRING], 0)
    (message,) = due(outbox, [FIRING], 10)
    due(outbox, [FIRING], 11, settings())

    outbox.sent(message, now=12)

    assert outbox.told() == []


def test_what_is_over_for_too_long_is_let_go() -> None:
    outbox = Outbox()
    told(outbox, [FIRING], 0)
    due(outbox, [OVER], 20)

    assert due(outbox, [], 2000) == []
    assert outbox.told() == []


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.booleans(), st.booleans())))
def test_a_receiver_that_takes_everything_knows_the_truth_in_the_end(
    steps: list[tuple[float, bool, bool]],
) -> None:
    outbox, now, knows = Outbox(), 0.0, False

    def look(*, fires: bool, takes: bool) -> None:
        nonlocal knows
        for message in due(outbox, [FIRING if fires else OVER], now):
            if takes:
                outbox.sent(message, now=now)
                knows = bool(message.firing)
            else:
                outbox.failed(message, now=now)

    for elapsed, fires, takes in steps:
        now += elapsed
        look(fires=fires, takes=takes)
    last = steps[-1][1] if steps else False
    for _ in range(2):
        now += 400
        look(fires=last, takes=True)

    assert knows is last
