"""Who has to be told what, and when? Pure: the caller brings the time, and says how it went."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.control.alert_memory import Told
from headrace.core.spec_alerts import AlertsSpec, ReceiverSpec
from headrace.monitor.alert_state import Alert, AlertState

Subject = tuple[str, str]
"""An endpoint and a stream, one of them empty; both for the whole system."""

_FIRST_RETRY_S: Final = 2.0
_LAST_RETRY_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What one receiver is told of one endpoint or stream: what fires, and what is over since."""

    receiver: ReceiverSpec
    endpoint: str
    firing: tuple[Alert, ...]
    resolved: tuple[Alert, ...]
    stream: str = ""

    @property
    def key(self) -> tuple[str, Subject]:
        """What tells its group from others."""
        return self.receiver.name, (self.endpoint, self.stream)


@dataclass(slots=True)
class _Group:
    """What a receiver knows of a subject; `firing`: when what it knows of began, by name."""

    firing: dict[str, float] = field(default_factory=dict)
    told_at: float = 0.0
    waits_since: float | None = None
    failures: int = 0
    retry_at: float = 0.0
    is_under_way: bool = False


@dataclass(slots=True)
class Outbox:
    """Groups alerts by receiver, and by endpoint or stream.

    A message goes out once something new waited for `group_wait_s`, and again every `repeat_s`
    while something fires. One that was not taken is tried again, later each time, with what is true
    then.
    """

    _groups: dict[tuple[str, Subject], _Group] = field(default_factory=dict)

    def load(self, told: Iterable[Told]) -> None:
        """Go on with what receivers were told before a restart."""
        for one in told:
            key = (one.receiver, (one.endpoint, one.stream))
            self._groups[key] = _Group(firing=dict(one.firing), told_at=one.at)

    def told(self) -> list[Told]:
        """What receivers know, to be kept."""
        return [
            Told(
                receiver=receiver,
                endpoint=endpoint,
                stream=stream,
                firing=group.firing,
                at=group.told_at,
            )
            for (receiver, (endpoint, stream)), group in self._groups.items()
            if group.firing
        ]

    def due(self, alerts: Sequence[Alert], settings: AlertsSpec, *, now: float) -> list[Message]:
        """The messages to send now; `sent` or `failed` has to be called for each."""
        messages: list[Message] = []
        known = {receiver.name for receiver in settings.receivers}
        for key in [key for key in self._groups if key[0] not in known]:
            del self._groups[key]
        for receiver in settings.receivers:
            mine = _by_subject(a for a in alerts if a.severity in receiver.severities)
            waiting = {subject for name, subject in self._groups if name == receiver.name}
            for subject in sorted(mine.keys() | waiting):
                message = self._message(receiver, subject, mine.get(subject, []), settings, now=now)
                if message is not None:
                    self._groups[message.key].is_under_way = True
                    messages.append(message)
        return messages

    def sent(self, message: Message, *, now: float) -> None:
        """Note that the receiver took it."""
        group = self._groups.get(message.key)
        if group is None:
            return
        if message.firing:
            firing = {alert.name: alert.began for alert in message.firing}
            self._groups[message.key] = _Group(firing=firing, told_at=now)
        else:
            del self._groups[message.key]

    def failed(self, message: Message, *, now: float) -> float:
        """Note that it was not taken; after how long it is tried again, in seconds."""
        group = self._groups.get(message.key, _Group())
        group.failures += 1
        delay_s = min(_FIRST_RETRY_S * 2.0 ** min(group.failures - 1, 10), _LAST_RETRY_S)
        group.retry_at, group.is_under_way = now + delay_s, False
        return delay_s

    def _message(
        self,
        receiver: ReceiverSpec,
        subject: Subject,
        alerts: list[Alert],
        settings: AlertsSpec,
        *,
        now: float,
    ) -> Message | None:
        key = (receiver.name, subject)
        firing = [alert for alert in alerts if alert.state is AlertState.FIRING]
        begun = {alert.name: alert.began for alert in firing}
        group = self._groups.get(key)
        if group is None:
            if not firing:
                return None
            group = self._groups[key] = _Group()
        if group.is_under_way:
            return None
        if begun == group.firing:
            group.waits_since = None
            is_due = bool(firing) and now - group.told_at >= settings.repeat_s
        else:
            if group.waits_since is None:
                group.waits_since = now
            is_due = now - group.waits_since >= settings.group_wait_s
        if not firing and not group.firing:
            del self._groups[key]  # over before anybody was told
            return None
        if not is_due or now < group.retry_at:
            return None
        over = [
            alert
            for alert in alerts
            if alert.state is AlertState.RESOLVED and alert.name in group.firing
        ]
        if not firing and not over:
            del self._groups[key]  # over for so long that nobody remembers what it was
            return None
        endpoint, stream = subject
        return Message(
            receiver=receiver,
            endpoint=endpoint,
            stream=stream,
            firing=tuple(firing),
            resolved=tuple(over),
        )


def _by_subject(alerts: Iterable[Alert]) -> dict[Subject, list[Alert]]:
    found: dict[Subject, list[Alert]] = {}
    for alert in alerts:
        found.setdefault((alert.endpoint, alert.stream), []).append(alert)
    return found
