"""Who sends messages to receivers, so that nobody else ever waits for them?"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from headrace.control.alert_memory import AlertMemory
from headrace.control.notify.outbox import Message, Outbox
from headrace.core import Clock, HeadraceError
from headrace.core.spec_alerts import AlertsSpec
from headrace.monitor.alert_state import Alert

_LOG: Final = logging.getLogger("headrace.control")
_AT_ONCE: Final = 8
_AGAIN_S: Final = 1.0


class Send(Protocol):
    """Brings a message to its receiver."""

    def __call__(
        self, message: Message, *, environment: Mapping[str, str], admin_url: str, now: float
    ) -> Awaitable[None]:
        """Return when it was taken; HeadraceError if it was not."""


def receiver_urls(spec: Mapping[str, Any]) -> list[str]:
    """Where receivers of a spec document are, as it says: such a URL may name a secret."""
    settings = AlertsSpec.model_validate(spec.get("alerts") or {})
    ways = [way for one in settings.receivers if (way := one.webhook or one.slack) is not None]
    return [way.url for way in ways if way.url is not None]


@dataclass(slots=True, kw_only=True)
class Notifier:
    """Tells receivers of alerts, in tasks of its own.

    `environment`: as it was at the start, before secrets were taken out of it. `admin_url`: where
    one sees more.
    """

    spec: Callable[[], Mapping[str, Any]]
    clock: Clock
    memory: AlertMemory
    environment: Mapping[str, str]
    admin_url: str
    send: Send
    _outbox: Outbox = field(default_factory=Outbox)
    _alerts: Sequence[Alert] = ()
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def load(self) -> None:
        """Go on with what receivers were told before a restart. Blocking."""
        self._outbox.load(self.memory.read().told)

    def urls(self) -> list[str]:
        """Where the receivers are, as the spec says now."""
        return receiver_urls(self.spec())

    def offer(self, alerts: Sequence[Alert]) -> None:
        """Take what is true now; what has to be told is told soon."""
        self._alerts = alerts

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                settings = AlertsSpec.model_validate(self.spec().get("alerts") or {})
                for message in self._outbox.due(self._alerts, settings, now=self.clock.now()):
                    group.create_task(self._send(message))
                await asyncio.sleep(_AGAIN_S)

    async def _send(self, message: Message) -> None:
        name = message.receiver.name
        try:
            async with self._asking:
                await self.send(
                    message,
                    environment=self.environment,
                    admin_url=self.admin_url,
                    now=self.clock.now(),
                )
        except (HeadraceError, TimeoutError) as error:
            delay_s = self._outbox.failed(message, now=self.clock.now())
            extra = {"receiver": name, "error": str(error), "again_in_s": f"{delay_s:g}"}
            _LOG.warning("a receiver did not take an alert", extra=extra)
        except Exception:  # noqa: BLE001  # supervises a task: its bug must not end the control plane
            delay_s = self._outbox.failed(message, now=self.clock.now())
            _LOG.exception("a receiver cannot be told", extra={"receiver": name})
        else:
            self._outbox.sent(message, now=self.clock.now())
            self.memory.write_told(self._outbox.told())
