"""Stored records of alerts, and messages that are due to receivers. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.model.alerts import AlertNotice, NoticeKey, Silence
from headrace.core.backoff import Backoff
from headrace.core.spec.alerts import AlertsSpec, ReceiverSpec
from headrace.monitor.alert_state import Alert, AlertState, Key

Subject = tuple[str, str]
"""An endpoint and a stream, of which one is empty; both are empty for the whole system."""
_RETRY: Final = Backoff(first_s=2.0, limit_s=300.0)
_FORGET_S: Final = 30 * 86_400.0
"""Seconds for which notices of a receiver are kept after the spec dropped it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertMessage:
    """Alerts of one endpoint or stream for one receiver: those that fire, and those resolved."""

    receiver: ReceiverSpec
    endpoint: str
    firing: tuple[Alert, ...]
    resolved: tuple[Alert, ...]
    stream: str = ""
    unsent: frozenset[Key] = frozenset()
    """Keys of alerts in `firing` that are new to this receiver."""

    @property
    def key(self) -> tuple[str, Subject]:
        """Identity of its group."""
        return self.receiver.name, (self.endpoint, self.stream)


def due_alert(
    notice: AlertNotice | None, alert: Alert | None, *, is_routed: bool, now: float
) -> Alert | None:
    """Return the alert as the next message must contain it; None if none is due.

    Args:
        notice: The newest firing message that the receiver accepted or may have accepted, and that
            no resolved message followed; None for none.
        alert: The current alert; None if it is neither pending, firing nor resolved.
        is_routed: Whether the receiver takes alerts of its severity, and no silence matches it.
    """
    if alert is not None and alert.state is AlertState.FIRING:
        is_known = notice is not None and notice.taken_at is not None
        is_same = notice is not None and notice.alert.began == alert.began
        return alert if is_routed and not (is_known and is_same) else None
    if notice is None:
        return None
    since = now if alert is None else alert.since
    return msgspec.structs.replace(notice.alert, state=AlertState.RESOLVED, since=since)


@dataclass(slots=True)
class _Attempts:
    """Attempts to send messages of one subject to one receiver."""

    failures: int = 0
    retry_at: float = 0.0
    is_under_way: bool = False


@dataclass(slots=True)
class AlertGroups:
    """Groups due alerts by receiver, and by endpoint or stream.

    A message is due once a change waited for `group_wait_s`, and every `repeat_s` while an alert
    fires. A message that was not accepted is retried with increasing delay and the current state.
    What `take_unsaved` returns must be stored before a message is sent and after its outcome.
    """

    _notices: dict[NoticeKey, AlertNotice] = field(default_factory=dict)
    _lines: dict[tuple[str, Subject], _Attempts] = field(default_factory=dict)
    _unsaved: set[NoticeKey] = field(default_factory=set)

    def load(self, notices: Iterable[AlertNotice]) -> None:
        """Take the notices stored before a restart."""
        self._notices = {notice.key: notice for notice in notices}

    def take_unsaved(self) -> tuple[list[AlertNotice], list[NoticeKey]]:
        """Return notices that changed since the last call, and the keys of removed ones."""
        unsaved, self._unsaved = self._unsaved, set()
        changed = [self._notices[key] for key in unsaved if key in self._notices]
        return changed, [key for key in unsaved if key not in self._notices]

    def put_back(self, keys: Iterable[NoticeKey]) -> None:
        """Count these as unsaved: they could not be stored."""
        self._unsaved.update(keys)

    def due(
        self,
        alerts: Sequence[Alert],
        settings: AlertsSpec,
        *,
        silences: Collection[Silence] = (),
        now: float,
    ) -> list[AlertMessage]:
        """Return the messages to send now; call `sent` or `failed` for each."""
        present = {alert.key: alert for alert in alerts}
        self._forget(settings, now)
        messages: list[AlertMessage] = []
        for receiver in settings.receivers:
            own = {key: n for (name, key), n in self._notices.items() if name == receiver.name}
            subjects: dict[Subject, list[Key]] = {}
            for key, alert in (present | {k: n.alert for k, n in own.items()}).items():
                subjects.setdefault((alert.endpoint, alert.stream), []).append(key)
            for subject in sorted(subjects):
                message = self._message(
                    receiver,
                    subject,
                    {key: (own.get(key), present.get(key)) for key in subjects[subject]},
                    settings,
                    silences,
                    now=now,
                )
                if message is not None:
                    self._lines.setdefault(message.key, _Attempts()).is_under_way = True
                    for alert in message.firing:
                        if alert.key not in own or own[alert.key].alert.began != alert.began:
                            self._put(AlertNotice(receiver=receiver.name, alert=alert))
                    messages.append(message)
        return messages

    def sent(self, message: AlertMessage, *, now: float) -> None:
        """Record that the receiver accepted the message."""
        self._lines.pop(message.key, None)
        for alert in message.firing:
            self._put(AlertNotice(receiver=message.receiver.name, alert=alert, taken_at=now))
        for alert in message.resolved:
            self._drop((message.receiver.name, alert.key))

    def failed(self, message: AlertMessage, *, may_be_taken: bool, now: float) -> float:
        """Record a failed message; return the seconds until its retry.

        Args:
            may_be_taken: Whether the receiver may have accepted it nevertheless.
        """
        if not may_be_taken:
            for key in message.unsent:
                self._drop((message.receiver.name, key))
        line = self._lines.setdefault(message.key, _Attempts())
        line.failures += 1
        delay_s = _RETRY.delay_s(line.failures)
        line.retry_at, line.is_under_way = now + delay_s, False
        return delay_s

    def _message(
        self,
        receiver: ReceiverSpec,
        subject: Subject,
        states: Mapping[Key, tuple[AlertNotice | None, Alert | None]],
        settings: AlertsSpec,
        silences: Collection[Silence],
        *,
        now: float,
    ) -> AlertMessage | None:
        line = self._lines.get((receiver.name, subject))
        if line is not None and (line.is_under_way or now < line.retry_at):
            return None
        firing: list[Alert] = []
        resolved: list[Alert] = []
        taken_at: list[float] = []
        is_due = False
        for notice, alert in states.values():
            is_routed = (
                alert is not None
                and alert.severity in receiver.severities
                and not any(silence.silences(alert, now=now) for silence in silences)
            )
            item = due_alert(notice, alert, is_routed=is_routed, now=now)
            if item is not None:
                # A time in the future was recorded before the clock was set back.
                waited = alert is None or not 0 <= now - item.since < settings.group_wait_s
                is_due = is_due or waited
                if item.state is AlertState.RESOLVED:
                    resolved.append(item)
            if alert is not None and alert.state is AlertState.FIRING and is_routed:
                firing.append(alert)
                if notice is not None and notice.taken_at is not None:
                    taken_at.append(notice.taken_at)
        is_due |= bool(taken_at) and not 0 <= now - min(taken_at) < settings.repeat_s
        if not is_due:
            if line is not None and not firing and not resolved:
                del self._lines[receiver.name, subject]  # the alert ended before it was sent
            return None
        endpoint, stream = subject
        return AlertMessage(
            receiver=receiver,
            endpoint=endpoint,
            stream=stream,
            firing=tuple(firing),
            resolved=tuple(resolved),
            unsent=frozenset(alert.key for alert in firing if states[alert.key][0] is None),
        )

    def _put(self, notice: AlertNotice) -> None:
        self._notices[notice.key] = notice
        self._unsaved.add(notice.key)

    def _drop(self, key: NoticeKey) -> None:
        if self._notices.pop(key, None) is not None:
            self._unsaved.add(key)

    def _forget(self, settings: AlertsSpec, now: float) -> None:
        """Drop notices of receivers that the spec has not named for `_FORGET_S`."""
        names = {receiver.name for receiver in settings.receivers}
        for key, notice in list(self._notices.items()):
            sent_at = notice.alert.began if notice.taken_at is None else notice.taken_at
            if notice.receiver not in names and now - sent_at > _FORGET_S:
                self._drop(key)
        for key, line in list(self._lines.items()):
            if key[0] not in names and not line.is_under_way:
                del self._lines[key]
