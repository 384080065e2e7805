"""Notifier that sends alerts, except silenced ones, to receivers in separate tasks."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.model.alerts import AlertNotice, NoticeKey, Silence
from headrace.control.model.audit_log import AuditEntry
from headrace.control.notify.messages import AlertGroups, AlertMessage
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
)
from headrace.core.spec.alerts import AlertsSpec, ReceiverSpec
from headrace.monitor.alert_state import Alert, AlertState

_LOG: Final = logging.getLogger("headrace.control")
_MAX_CONCURRENT: Final = 8
_RETRY_S: Final = 1.0
TEST_EVERY_S: Final = 30.0
"""Minimum seconds between test messages to one receiver."""


class Deliver(Protocol):
    """Function that sends a message to its receiver."""

    def __call__(
        self, message: AlertMessage, *, environment: Mapping[str, str], admin_url: str, now: float
    ) -> Awaitable[str]:
        """Send a message and return the receiver's answer.

        Raises:
            DeadlineExceededError: The receiver may have accepted the message.
            HeadraceError: The receiver did not accept it.
        """


def receiver_urls(spec: Mapping[str, Any]) -> list[str]:
    """Return the receivers' URLs as a spec document has them; they may name a secret."""
    settings = AlertsSpec.model_validate(spec.get("alerts") or {})
    ways = [
        way
        for receiver in settings.receivers
        if (way := receiver.webhook or receiver.slack) is not None
    ]
    return [way.url for way in ways if way.url is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverTest:
    """Outcome of a test message: the receiver's answer, or why it failed."""

    receiver: str
    ok: bool
    answer: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class Notifier:
    """Sends alerts to their receivers."""

    spec: Callable[[], Mapping[str, Any]]
    clock: Clock
    silences: Callable[[], Sequence[Silence]]
    """Returns the stored silences."""
    save: Callable[[Sequence[AlertNotice], Sequence[NoticeKey]], Awaitable[None]]
    """Stores changed notices and deletes removed ones."""
    environment: Mapping[str, str]
    """Environment at the start, before secrets were removed from it."""
    admin_url: str
    """Link to the console."""
    send: Deliver
    faults: Faults = field(default_factory=Faults)
    _outbox: AlertGroups = field(default_factory=AlertGroups)
    _alerts: Sequence[Alert] | None = None
    """None before the first read: an empty list would resolve all alerts."""
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT))
    _tested_at: dict[str, float] = field(default_factory=dict)
    """Monotonic time of each receiver's last test message."""

    def load(self, notices: Iterable[AlertNotice]) -> None:
        """Take the notices stored before a restart."""
        self._outbox.load(notices)

    def urls(self) -> list[str]:
        """Return the receivers' URLs in the current spec."""
        return receiver_urls(self.spec())

    def offer(self, alerts: Sequence[Alert]) -> None:
        """Take the current state of all alerts; due messages are sent soon."""
        self._alerts = alerts

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                messages: list[AlertMessage] = []
                with self.faults.contain(LOOP, "notifications"):
                    await self._save()
                    if self._alerts is not None:
                        messages = self._outbox.due(
                            self._alerts,
                            self._settings(),
                            silences=self.silences(),
                            now=self.clock.now(),
                        )
                        # Store before sending: after a SIGKILL these messages count as sent.
                        await self._save()
                # Send even if storing failed: an unsent due message would delay all later ones.
                for message in messages:
                    group.create_task(self._send(message))
                await asyncio.sleep(_RETRY_S)

    async def test(self, name: str = "") -> list[ReceiverTest]:
        """Send a test alert, firing and then resolved, to a receiver, or to all if `name` is empty.

        Raises:
            NotFoundError: The spec has no such receiver.
            OverloadedError: A receiver got a test message less than `TEST_EVERY_S` ago.
        """
        all_ = self._settings().receivers
        receivers = [receiver for receiver in all_ if name in {"", receiver.name}]
        if not receivers:
            there = ", ".join(receiver.name for receiver in all_) or "none"
            description = f"receiver '{name}'" if name else "receiver"
            raise NotFoundError(f"the spec has no {description} under 'alerts'; it has: {there}")
        now = self.clock.monotonic()
        tested_at = [self._tested_at[r.name] for r in receivers if r.name in self._tested_at]
        wait_s = max(tested_at, default=now - TEST_EVERY_S) + TEST_EVERY_S - now
        if wait_s > 0:
            message = f"a receiver gets a test message every {TEST_EVERY_S:g} s at most; wait"
            raise OverloadedError(message, retry_after_s=wait_s)
        self._tested_at |= {receiver.name: now for receiver in receivers}
        return await asyncio.gather(*map(self._test, receivers))

    async def _test(self, receiver: ReceiverSpec) -> ReceiverTest:
        started = self.clock.monotonic()
        alert = _trial(receiver, now=self.clock.now())
        over = msgspec.structs.replace(alert, state=AlertState.RESOLVED)
        answer = failure = ""
        for firing, resolved in (((alert,), ()), ((), (over,))):
            message = AlertMessage(receiver=receiver, endpoint="", firing=firing, resolved=resolved)
            try:
                answer = await self._deliver(message)
            except DeadlineExceededError as error:
                failure = failure or str(error)  # maybe received: send the end too
            except HeadraceError as error:
                failure = failure or str(error)
                break
        return ReceiverTest(
            receiver=receiver.name,
            ok=not failure,
            answer=failure or answer,
            seconds=self.clock.monotonic() - started,
        )

    async def _send(self, message: AlertMessage) -> None:
        extra = {"receiver": message.receiver.name}
        may_be_taken = True
        try:
            await self._deliver(message)
        except HeadraceError as error:
            may_be_taken = isinstance(error, DeadlineExceededError)
            extra["error"] = str(error)
            _LOG.warning("a receiver rejected an alert", extra=extra)
        except Exception:  # noqa: BLE001  # supervises a task: its bug must not end the control plane
            _LOG.exception("cannot notify a receiver", extra=extra)
        else:
            self._outbox.sent(message, now=self.clock.now())
            return await self._save()
        self._outbox.failed(message, may_be_taken=may_be_taken, now=self.clock.now())
        return await self._save()

    async def _deliver(self, message: AlertMessage) -> str:
        async with self._slots:
            return await self.send(
                message,
                environment=self.environment,
                admin_url=self.admin_url,
                now=self.clock.now(),
            )

    async def _save(self) -> None:
        notices, removed = self._outbox.take_unsaved()
        if not notices and not removed:
            return
        is_stored = False
        try:
            await self.save(notices, removed)
            is_stored = True
        except HeadraceError as error:
            # Sending matters more than storing: the next turn stores it.
            _LOG.error("cannot store the sent notifications", extra={"error": str(error)})
        finally:
            if not is_stored:
                self._outbox.put_back([*(notice.key for notice in notices), *removed])

    def _settings(self) -> AlertsSpec:
        return AlertsSpec.model_validate(self.spec().get("alerts") or {})


def _trial(receiver: ReceiverSpec, *, now: float) -> Alert:
    """Return the alert of a test message."""
    return Alert(
        name="HeadraceTest",
        endpoint="",
        severity=receiver.severities[0],
        state=AlertState.FIRING,
        since=now,
        began=now,
        value=0.0,
        threshold=0.0,
        unit="",
        summary="this is a test message of `headrace alerts test`: nothing is wrong",
        action="Nothing: a message that this test is over follows.",
    )


LONGEST_S: Final = 90 * 86_400.0
"""Longest silence in seconds, so that none is forgotten."""
_MOST: Final = 1000
_ID_BYTES: Final = 4


def silence_missing(id_: str) -> NotFoundError:
    """Return the error for a silence that does not exist or that the caller may not see."""
    message = f"unknown silence '{id_[:100]}'; `headrace alerts silences` lists them"
    return NotFoundError(message)


@dataclass(slots=True, kw_only=True)
class Silences:
    """Reads and changes silences; `load` has to be called first."""

    store: Store
    clock: Clock
    _silences: dict[str, Silence] = field(default_factory=dict)

    def load(self, silences: Iterable[Silence]) -> None:
        """Take the stored silences."""
        self._silences = {silence.id: silence for silence in silences}

    def active(self) -> list[Silence]:
        """Return the silences that have not ended, by their end."""
        now = self.clock.now()
        left = [silence for silence in self._silences.values() if now < silence.ends]
        return sorted(left, key=lambda silence: (silence.ends, silence.id))

    def until(self, alert: Alert) -> float | None:
        """Return the end of the last silence that matches the alert now; None without any."""
        now = self.clock.now()
        matching = [s for s in self._silences.values() if s.silences(alert, now=now)]
        return max((silence.ends for silence in matching), default=None)

    def find(self, id_: str) -> Silence:
        """Return the active silence with this id.

        Raises:
            NotFoundError: No active silence has this id.
        """
        for silence in self.active():
            if silence.id == id_:
                return silence
        raise silence_missing(id_)

    async def add(self, silence: Silence, *, actor: str) -> Silence:
        """Store a silence that begins now under a new id, and return it as stored.

        Raises:
            InvalidArgumentError: Its end is in the past or too late.
            FailedPreconditionError: Too many silences are active.
        """
        now = self.clock.now()
        if not now < silence.ends <= now + LONGEST_S:
            days = LONGEST_S / 86_400.0
            message = f"a silence must end in the future and within {days:g} days"
            raise InvalidArgumentError(message)
        if len(self.active()) >= _MOST:
            message = f"there are {_MOST} silences; remove some: `headrace alerts unsilence`"
            raise FailedPreconditionError(message)
        stored = msgspec.structs.replace(
            silence, id=secrets.token_hex(_ID_BYTES), begins=now, created_by=actor
        )
        change = AuditEntry(
            at=now,
            actor=actor,
            action="silence.create",
            object=stored.id,
            after=msgspec.to_builtins(stored),
        )
        await self.store.alerts.add_silence(stored, changes=[change])
        self._silences = {silence.id: silence for silence in (*self.active(), stored)}
        return stored

    async def remove(self, silence: Silence, *, actor: str) -> None:
        """End a silence now."""
        change = AuditEntry(
            at=self.clock.now(),
            actor=actor,
            action="silence.remove",
            object=silence.id,
            before=msgspec.to_builtins(silence),
        )
        await self.store.alerts.remove_silence(silence.id, changes=[change])
        self._silences.pop(silence.id, None)
