"""What does the scaler know after a restart? What it knew before; it fits into one file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.autoscale import ScalerState
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.control")


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """`arms` by endpoint and arm; `totals`: copies that each endpoint needs as a whole."""

    arms: dict[str, dict[str, ScalerState]] = {}
    totals: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class ScalerMemory:
    """Keeps states at `path`; None forgets them. A loss costs some windows of watching, no more."""

    path: Path | None

    def read(self) -> Stored:
        """What was kept; nothing if there is no such file, or none that can be read."""
        if self.path is None:
            return Stored()
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Stored)
        except FileNotFoundError:
            return Stored()
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.warning("cannot read the scaler's memory", extra={"error": str(error)})
            return Stored()

    def write(
        self, states: Mapping[tuple[str, str], ScalerState], totals: Mapping[str, float]
    ) -> None:
        """Keep this; a full disk is no reason to stop scaling."""
        if self.path is None:
            return
        arms: dict[str, dict[str, ScalerState]] = {}
        for (endpoint, key), state in states.items():
            arms.setdefault(endpoint, {})[key] = state
        data = msgspec.json.encode(Stored(arms=arms, totals=dict(totals)))
        try:
            write_atomic(self.path, data, durable=False)
        except OSError as error:
            _LOG.warning("cannot keep the scaler's memory", extra={"error": str(error)})
