"""Messages that are due to receivers, and when."""

from collections.abc import Sequence

import msgspec
import pytest

from headrace.control.model.alerts import AlertNotice, Silence
from headrace.control.notify.messages import AlertGroups, AlertMessage, due_alert
from headrace.core.spec.alerts import AlertsSpec
from headrace.monitor.alert_state import Alert, AlertState
from tests.unit.control.notify.alert_samples import (
    FIRING,
    OVER,
    STREAM,
    TICKET,
    settings,
    webhook,
)

OPS = settings(webhook())
START = FIRING.began
PENDING = msgspec.structs.replace(FIRING, state=AlertState.PENDING, began=0.0, since=START + 30)
AGAIN = msgspec.structs.replace(FIRING, began=START + 50, since=START + 50)
DAY_S = 86_400.0


def due(
    outbox: AlertGroups,
    alerts: Sequence[Alert],
    after_s: float,
    spec: AlertsSpec = OPS,
    *,
    silences: Sequence[Silence] = (),
) -> list[AlertMessage]:
    return outbox.due(alerts, spec, silences=silences, now=START + after_s)


def tell(outbox: AlertGroups, alerts: Sequence[Alert], after_s: float) -> AlertMessage:
    """The message that is due then, taken by its receiver."""
    (message,) = due(outbox, alerts, after_s)
    outbox.sent(message, now=START + after_s)
    return message


def refuse(
    outbox: AlertGroups, alerts: Sequence[Alert], after_s: float, *, may_be_taken: bool
) -> float:
    """The message that is due then is not taken; when it is tried again."""
    (message,) = due(outbox, alerts, after_s)
    return after_s + outbox.failed(message, may_be_taken=may_be_taken, now=START + after_s)


def restarted(outbox: AlertGroups) -> AlertGroups:
    """Another process' outbox, with what this one stored."""
    after = AlertGroups()
    after.load(outbox.take_unsaved()[0])
    return after


def silence(begins: float, ends: float, **matched: str) -> Silence:
    return Silence(id="a", begins=START + begins, ends=START + ends, **matched)


def notice(alert: Alert = FIRING, *, taken: bool = True) -> AlertNotice:
    return AlertNotice(receiver="ops", alert=alert, taken_at=START if taken else None)


@pytest.mark.parametrize(
    ("last", "alert", "is_routed", "expected"),
    [
        (None, None, True, None),
        (None, FIRING, True, AlertState.FIRING),
        (None, FIRING, False, None),
        (None, OVER, True, None),
        (None, PENDING, True, None),
        (notice(), FIRING, True, None),
        (notice(), FIRING, False, None),
        (notice(), AGAIN, True, AlertState.FIRING),
        (notice(), OVER, True, AlertState.RESOLVED),
        (notice(), OVER, False, AlertState.RESOLVED),
        (notice(), PENDING, True, AlertState.RESOLVED),
        (notice(), None, True, AlertState.RESOLVED),
        (notice(taken=False), FIRING, True, AlertState.FIRING),
        (notice(taken=False), FIRING, False, None),
        (notice(taken=False), OVER, True, AlertState.RESOLVED),
        (notice(taken=False), None, False, AlertState.RESOLVED),
    ],
)
def test_what_is_due_follows_from_the_last_message_and_the_present_state(
    last: AlertNotice | None,
    alert: Alert | None,
    is_routed: bool,  # noqa: FBT001  # pytest passes it by name
    expected: AlertState | None,
) -> None:
    item = due_alert(last, alert, is_routed=is_routed, now=START)

    assert (None if item is None else item.state) is expected


def test_what_is_new_waits_for_more_of_the_same_endpoint() -> None:
    outbox = AlertGroups()

    assert due(outbox, [FIRING], 0) == []
    assert due(outbox, [FIRING, TICKET], 9) == []
    (message,) = due(outbox, [FIRING, TICKET], 10)

    assert message.firing == (FIRING, TICKET)
    assert message.resolved == ()


def test_messages_are_of_one_endpoint_or_stream_also_after_a_restart() -> None:
    outbox = AlertGroups()
    other = msgspec.structs.replace(FIRING, endpoint="spam")
    alerts = [FIRING, STREAM, other]
    messages = due(outbox, alerts, 10)
    for message in messages:
        outbox.sent(message, now=START + 10)

    assert [(one.endpoint, one.stream) for one in messages] == [
        ("", "fraud"),
        ("fraud", ""),
        ("spam", ""),
    ]
    assert due(restarted(outbox), alerts, 20) == []


def test_a_firing_alert_is_repeated_only_after_its_time() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)

    assert due(outbox, [FIRING], 109) == []
    (again,) = due(outbox, [FIRING], 110)

    assert again.firing == (FIRING,)


def test_a_resolved_alert_is_told_once() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)

    over = tell(outbox, [OVER], 110)

    assert (over.firing, over.resolved) == ((), (OVER,))
    assert due(outbox, [OVER], 1000) == []


def test_an_alert_that_ended_before_it_was_told_is_not_told() -> None:
    outbox = AlertGroups()

    due(outbox, [FIRING], 0)

    assert due(outbox, [OVER], 5) == []
    assert due(outbox, [OVER], 500) == []


def test_an_alert_that_is_pending_again_when_the_message_is_due_is_resolved() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)

    assert due(outbox, [OVER], 105) == []
    message = tell(outbox, [PENDING], 120)

    assert [alert.name for alert in message.resolved] == [FIRING.name]
    assert due(outbox, [], 1000) == []


def test_an_alert_that_fires_again_is_news_and_is_resolved_once() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)

    message = tell(outbox, [AGAIN], 60)
    over = tell(outbox, [], 70)

    assert message.firing == (AGAIN,)
    assert [alert.began for alert in over.resolved] == [AGAIN.began]


def test_a_receiver_hears_of_its_severities_only() -> None:
    pages = settings(webhook(severities=["page"]), group_wait_s=0.0)

    (message,) = due(AlertGroups(), [FIRING, TICKET], 0, pages)

    assert message.firing == (FIRING,)
    assert due(AlertGroups(), [TICKET], 0, pages) == []


def test_a_receiver_that_takes_a_severity_no_more_is_told_the_end_of_what_it_was_told() -> None:
    outbox = AlertGroups()
    tell(outbox, [TICKET], 10)
    pages = settings(webhook(severities=["page"]), group_wait_s=0.0)

    assert due(outbox, [TICKET], 500, pages) == []
    (message,) = due(outbox, [], 510, pages)

    assert [alert.name for alert in message.resolved] == [TICKET.name]


def test_a_message_that_was_not_taken_is_tried_again_ever_later() -> None:
    outbox = AlertGroups()
    after_s, delays = 10.0, []

    for _ in range(10):
        again = refuse(outbox, [FIRING], after_s, may_be_taken=False)
        assert due(outbox, [FIRING], again - 0.1) == []
        delays.append(again - after_s)
        after_s = again

    assert delays[:4] == pytest.approx([2.0, 4.0, 8.0, 16.0])
    assert delays[-1] == pytest.approx(300.0)


def test_a_receiver_that_refused_an_alert_is_not_told_its_end() -> None:
    outbox = AlertGroups()

    again = refuse(outbox, [FIRING], 10, may_be_taken=False)

    assert due(outbox, [OVER], again + 400) == []
    assert outbox.take_unsaved() == ([], [("ops", FIRING.key)])


def test_a_receiver_that_may_have_taken_an_alert_is_told_its_end() -> None:
    outbox = AlertGroups()

    again = refuse(outbox, [FIRING], 10, may_be_taken=True)
    again = refuse(outbox, [FIRING], again, may_be_taken=False)
    (message,) = due(outbox, [OVER], again + 400)

    assert message.resolved == (OVER,)


def test_a_process_that_ends_while_it_sends_leaves_a_notice_to_the_next() -> None:
    outbox = AlertGroups()
    (message,) = due(outbox, [FIRING], 10)

    after = restarted(outbox)
    (again,) = due(after, [FIRING], 11)
    third = AlertGroups()
    third.load([notice(taken=False)])
    (over,) = due(third, [OVER], 400)

    assert after.take_unsaved() == ([], [])  # it is stored already
    assert message.firing == again.firing == (FIRING,)
    assert over.resolved == (OVER,)


def test_nothing_is_sent_twice_at_the_same_time() -> None:
    outbox = AlertGroups()

    assert len(due(outbox, [FIRING], 10)) == 1
    assert due(outbox, [FIRING], 11) == []


def test_a_restart_does_not_repeat_what_was_told() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)

    after = restarted(outbox)

    assert due(after, [FIRING], 20) == []
    assert tell(after, [OVER], 110).resolved == (OVER,)


def test_a_receiver_that_comes_back_is_told_the_end_of_what_it_was_told() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)

    assert due(outbox, [FIRING], 20, settings()) == []
    assert due(outbox, [], 30, settings()) == []
    (message,) = due(outbox, [], 40)

    assert [alert.name for alert in message.resolved] == [FIRING.name]


def test_receivers_that_are_gone_for_a_month_are_forgotten() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)
    outbox.take_unsaved()

    due(outbox, [], 31 * DAY_S, settings())

    assert outbox.take_unsaved() == ([], [("ops", FIRING.key)])
    assert due(outbox, [], 31 * DAY_S + 1) == []


def test_an_answer_of_a_receiver_that_is_gone_counts() -> None:
    outbox = AlertGroups()
    (message,) = due(outbox, [FIRING], 10)
    due(outbox, [FIRING], 11, settings())

    outbox.sent(message, now=START + 12)

    assert due(outbox, [FIRING], 13) == []
    assert len(due(outbox, [], 14)) == 1


def test_no_receiver_is_told_of_what_is_silenced_until_the_silence_ends() -> None:
    outbox = AlertGroups()
    quiet = [silence(0, 500, endpoint="fraud", severity="page")]

    (ticket,) = due(outbox, [FIRING, TICKET], 20, silences=quiet)
    outbox.sent(ticket, now=START + 20)
    assert due(outbox, [FIRING, TICKET], 119, silences=quiet) == []
    (both,) = due(outbox, [FIRING, TICKET], 500, silences=quiet)

    assert ticket.firing == (TICKET,)
    assert both.firing == (FIRING, TICKET)


def test_who_was_told_before_a_silence_is_told_the_end_in_it() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)
    quiet = [silence(20, 5000, alert=FIRING.name)]

    assert due(outbox, [FIRING], 400, silences=quiet) == []
    (message,) = due(outbox, [OVER], 410, silences=quiet)

    assert (message.firing, message.resolved) == ((), (OVER,))


def test_a_silence_matches_only_what_it_names() -> None:
    def quiet(**matched: str) -> bool:
        return due(AlertGroups(), [FIRING], 20, silences=[silence(0, 100, **matched)]) == []

    assert quiet()
    assert quiet(alert=FIRING.name, endpoint="fraud", severity="page")
    assert not quiet(alert=TICKET.name)
    assert not quiet(endpoint="spam")
    assert not quiet(stream="fraud")
    assert not quiet(severity="ticket")


def test_what_could_not_be_stored_is_stored_the_next_time() -> None:
    outbox = AlertGroups()
    tell(outbox, [FIRING], 10)
    notices, gone = outbox.take_unsaved()

    outbox.put_back(one.key for one in notices)

    assert gone == []
    assert outbox.take_unsaved() == (notices, [])
    assert outbox.take_unsaved() == ([], [])
