"""What is known of streams besides the spec, over restarts? One file: who is paused, and more."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.autoscale.stream import StreamScaleState
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.control")


class StreamOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a stream.

    `paused`: None for what the spec says; holds for as long as the spec says `spec_paused`.
    `workers`: how many the lag asked for last. `groups`: those that have states of windows here.
    """

    paused: bool | None = None
    spec_paused: bool = False
    workers: int | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamMemory:
    """Keeps orders by stream at `path`; None forgets them."""

    path: Path | None = None

    def read(self) -> dict[str, StreamOrders]:
        """What was kept; nothing if there is no such file, or none that can be read."""
        if self.path is None:
            return {}
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, StreamOrders])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.warning("cannot read what was ordered of streams", extra={"error": str(error)})
            return {}

    def write(self, orders: dict[str, StreamOrders]) -> None:
        """Keep these.

        Raises:
            OSError: The disk is full.
        """
        if self.path is not None:
            write_atomic(self.path, msgspec.json.encode(orders))


def begin(orders: StreamOrders | None, *, least: int) -> StreamScaleState:
    """What the scaling of a stream begins with: what it had come to, or the fewest workers."""
    known = None if orders is None else orders.workers
    return StreamScaleState(workers=least if known is None else max(known, least))
