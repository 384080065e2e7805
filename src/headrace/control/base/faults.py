"""Containment of faults in loops over many objects: rollouts, endpoints, streams, jobs, views.

An exception while one object is processed becomes that object's fault. Its status says that it
waits and why, one event reports it, the log has the traceback, and the loop continues with the
next object. The fault ends with the first iteration that succeeds.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from headrace.control.model.records import Event
from headrace.core import Clock, ConflictError, HeadraceError, SystemClock

_LOG: Final = logging.getLogger("headrace.control")
_REPORT_INTERVAL_S: Final = 0.5
_QUIET_S: Final = 600.0
"""An object whose fault comes and goes is reported once in this time."""
_PACKAGE: Final = "headrace"
_NOT_OF_ENDPOINTS: Final = frozenset(
    {"loop", "replica", "pool", "stream", "job", "feature", "certificate"}
)
"""First words of kinds that belong to no endpoint."""
LOOP: Final = "loop"
"""Kind of a loop, for failures outside a single object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFault:
    """Reason why one object waits."""

    kind: str
    """Kind of the object: `rollout`, `autoscaling`, `drift`, `alerts`, `stream`, `job`..."""
    name: str
    message: str
    since: float
    """Seconds since 1970."""

    @property
    def endpoint(self) -> str:
        """Return the endpoint that the object is or belongs to; empty for none."""
        is_of_endpoint = self.kind.split()[0] not in _NOT_OF_ENDPOINTS
        return self.name if is_of_endpoint else ""


@dataclass(slots=True, kw_only=True)
class Faults:
    """Current faults of all objects; loops in other threads may share it."""

    clock: Clock = field(default_factory=SystemClock)
    _open: dict[tuple[str, str], ObjectFault] = field(default_factory=dict)
    _written: dict[tuple[str, str], ObjectFault] = field(default_factory=dict)
    """The last fault of each object that was written to the log and the events."""
    _events: list[Event] = field(default_factory=list)

    @contextlib.contextmanager
    def contain(self, kind: str, name: str) -> Iterator[None]:
        """Turn an exception in the block into a fault of this object; cancellation propagates.

        So does a `ConflictError`: another control plane writes to the same database, and the state
        of all objects in this one is out of date.
        """
        try:
            yield
        except ConflictError:
            raise
        except Exception as error:  # noqa: BLE001  # the task supervisor's edge
            self._begin(kind, name, error)
        else:
            if self._open:
                self._end(kind, name)

    def problem(self, kind: str, name: str) -> str:
        """Return why an object waits; empty if it does not."""
        fault = self._open.get((kind, name))
        return "" if fault is None else f"waits: {fault.message}"

    def current(self) -> tuple[ObjectFault, ...]:
        """Return all faults, sorted by kind and name."""
        return tuple(fault for _, fault in sorted(dict(self._open).items()))

    def keep_only(self, kind: str, names: Iterable[str]) -> None:
        """Delete the faults of removed objects."""
        if not self._open and not self._written:
            return
        removed = {key for key in (*list(self._open), *list(self._written)) if key[0] == kind}
        for key in removed - {(kind, name) for name in names}:
            self._open.pop(key, None)
            self._written.pop(key, None)

    async def run(self, emit: Callable[[Sequence[Event]], Awaitable[None]]) -> None:
        """Write events until cancelled."""
        while True:
            await asyncio.sleep(_REPORT_INTERVAL_S)
            events, self._events = self._events, []
            if events:
                with self.contain(LOOP, "events"):
                    await emit(events)

    def _begin(self, kind: str, name: str, error: Exception) -> None:
        key, now = (kind, name), self.clock.now()
        message = message_of(error)
        previous = self._open.get(key)
        is_same = previous is not None and previous.message == message
        fault = ObjectFault(
            kind=kind, name=name, message=message, since=previous.since if previous else now
        )
        self._open[key] = fault
        written = self._written.get(key)
        is_written = (
            written is not None
            and written.message == message
            and 0.0 <= now - written.since < _QUIET_S
        )
        if is_same or is_written:
            return
        self._written[key] = replace(fault, since=now)
        text = f"{kind} '{name}' waits: {message}"
        _LOG.error("%s", text, exc_info=error, extra={"kind": kind, "object": name})
        self._events.append(_event(fault, "Waits", text, now))

    def _end(self, kind: str, name: str) -> None:
        fault = self._open.pop((kind, name), None)
        if fault is None:
            return
        now = self.clock.now()
        text = f"{kind} '{name}' recovered after {max(now - fault.since, 0.0):.0f} s"
        _LOG.info("%s", text, extra={"kind": kind, "object": name})
        written = self._written.get((kind, name))
        if written is not None and written.since >= fault.since:
            self._events.append(_event(fault, "GoesOn", text, now))


async def write_events(
    emit: Callable[[Sequence[Event]], Awaitable[None]], events: Sequence[Event]
) -> None:
    """Emit events whose loss is harmless: a failed write is logged."""
    try:
        await emit(events)
    except HeadraceError as error:
        _LOG.error("cannot write an event", extra={"error": str(error)})


def message_of(error: Exception) -> str:
    """Return the text of an exception for a status.

    The message of a `HeadraceError` is shown. The text of other exceptions may contain caller data,
    so only their type and origin are shown; the log has the full text.
    """
    if isinstance(error, HeadraceError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if _PACKAGE in Path(frame.filename).parts] or frames
    location = ""
    if own_frames:
        file = "/".join(Path(own_frames[-1].filename).parts[-2:])
        location = f" in {file}, line {own_frames[-1].lineno}"
    return f"{type(error).__name__}{location}; the control plane's log has the traceback"


def _event(fault: ObjectFault, reason: str, message: str, timestamp: float) -> Event:
    return Event(
        at=timestamp,
        endpoint=fault.endpoint,
        kind="fault",
        reason=reason,
        message=message,
        data={"kind": fault.kind, "object": fault.name},
    )
