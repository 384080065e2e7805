"""Which alerts were there before a restart, and who was told of them? One file."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.files import write_atomic
from headrace.monitor.alert_state import Alert

_LOG: Final = logging.getLogger("headrace.control")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver was told last of an endpoint, a stream, or the whole system.

    `firing`: when each alert began to fire, by its name. `at`: when it was told.
    """

    receiver: str
    endpoint: str
    firing: dict[str, float]
    at: float
    stream: str = ""


class StoredAlerts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything."""

    alerts: list[Alert] = []
    told: list[Told] = []


@dataclass(slots=True, kw_only=True)
class AlertMemory:
    """Keeps alerts at `path`; None forgets them. A loss costs a message too many."""

    path: Path | None
    _stored: StoredAlerts = field(default_factory=StoredAlerts)

    def read(self) -> StoredAlerts:
        """What was kept; nothing if there is no such file, or none that can be read."""
        if self.path is None:
            return self._stored
        try:
            self._stored = msgspec.json.decode(self.path.read_bytes(), type=StoredAlerts)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.warning("cannot read the alerts' memory", extra={"error": str(error)})
        return self._stored

    def write_alerts(self, alerts: Iterable[Alert]) -> None:
        """Keep these alerts; a full disk is no reason to stop looking."""
        self._write(msgspec.structs.replace(self._stored, alerts=list(alerts)))

    def write_told(self, told: Iterable[Told]) -> None:
        """Keep who was told of what."""
        self._write(msgspec.structs.replace(self._stored, told=list(told)))

    def _write(self, stored: StoredAlerts) -> None:
        self._stored = stored
        if self.path is None:
            return
        try:
            write_atomic(self.path, msgspec.json.encode(stored), durable=False)
        except OSError as error:
            _LOG.warning("cannot keep the alerts", extra={"error": str(error)})
