"""Alerts, what receivers were told of them, and silences, whatever database they are in."""

import msgspec

from headrace.control.model.alerts import AlertNotice, Silence
from headrace.control.model.audit_log import AuditEntry
from headrace.control.state import open_store
from headrace.control.state.store import Store
from tests.unit.control.notify.alert_samples import FIRING, OVER, STREAM, TICKET

TAKEN = AlertNotice(receiver="ops", alert=FIRING, taken_at=5.0)
MAYBE = AlertNotice(receiver="chat", alert=FIRING)
SILENCE = Silence(
    id="ab", begins=1.0, ends=9.0, endpoint="fraud", comment="für Ann", created_by="b"
)


def test_alerts_are_replaced_and_removed_by_their_key(store: Store) -> None:
    store.alerts.save_alerts.blocking([FIRING, TICKET, STREAM], [])
    store.alerts.save_alerts.blocking([OVER], [TICKET.key])

    stored = store.alerts.load.blocking().alerts

    assert sorted(stored, key=lambda alert: alert.name) == [OVER, STREAM]


def test_notices_are_of_one_receiver_and_alert(store: Store) -> None:
    store.alerts.save_notices.blocking(
        [TAKEN, MAYBE, msgspec.structs.replace(TAKEN, alert=STREAM)], []
    )
    taken = msgspec.structs.replace(MAYBE, taken_at=7.0)
    store.alerts.save_notices.blocking([taken], [("ops", FIRING.key), ("nobody", FIRING.key)])

    stored = {notice.key: notice for notice in store.alerts.load.blocking().notices}

    assert stored == {
        ("chat", FIRING.key): taken,
        ("ops", STREAM.key): msgspec.structs.replace(TAKEN, alert=STREAM),
    }


def test_a_silence_is_stored_with_its_entry_of_the_audit_log(store: Store) -> None:
    made = AuditEntry(at=1.0, actor="ann", action="silence.create", object="ab")
    store.alerts.add_silence.blocking(SILENCE, changes=[made])
    stored = store.alerts.load.blocking().silences
    store.alerts.remove_silence.blocking(
        "ab", changes=[msgspec.structs.replace(made, action="silence.remove")]
    )

    assert stored == (SILENCE,)
    assert store.alerts.load.blocking().silences == ()
    assert [entry.action for entry in store.trail.blocking()] == [
        "silence.create",
        "silence.remove",
    ]


def test_silences_that_ended_long_ago_are_forgotten(store: Store) -> None:
    later = msgspec.structs.replace(SILENCE, id="cd", ends=20.0)
    store.alerts.add_silence.blocking(SILENCE)
    store.alerts.add_silence.blocking(later)

    store.forget_before.blocking(10.0)

    assert store.alerts.load.blocking().silences == (later,)


def test_everything_is_there_when_the_store_is_opened_again(url: str) -> None:
    first = open_store(url)
    first.alerts.save_alerts.blocking([FIRING], [])
    first.alerts.save_notices.blocking([TAKEN], [])
    first.alerts.add_silence.blocking(SILENCE)
    first.close()

    again = open_store(url)
    stored = again.alerts.load.blocking()
    again.close()

    assert (stored.alerts, stored.notices, stored.silences) == ((FIRING,), (TAKEN,), (SILENCE,))
