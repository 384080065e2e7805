"""Measures a model in a process that it may spoil, confined as a conversion is.

What it says comes line by line, so that what was measured is kept whatever becomes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.confined import Bounds, Confined
from headrace.control.left_behind import error_of
from headrace.control.sandbox import Occasion, Sandbox
from headrace.optimize.profiling.messages import (
    Event,
    Failed,
    Measured,
    ProfileRequest,
    gathered,
)
from headrace.optimize.profiling.worker import REQUEST
from headrace.serving.memory import available_bytes

GRACE_S: Final = 60.0
"""Beyond its budget, for a model that loads slowly or whose last run takes long."""
FILE_BYTES: Final = 1 << 30
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_EVENTS: Final = 10_000
_OF_AVAILABLE: Final = 0.7
_WORKER: Final = "headrace.optimize.profiling.worker"

Hear = Callable[[Event], None]


@dataclass(slots=True, kw_only=True)
class ProfileApart:
    """Measures models in processes of their own.

    `sandbox`: how they are kept apart. `grace_s`: beyond the budget. `memory_bytes`: how much one
    may take; None goes by what the machine has.
    """

    sandbox: Sandbox
    grace_s: float = GRACE_S
    memory_bytes: int | None = None
    program: str = _WORKER

    @classmethod
    def of_home(cls, home: Path) -> "ProfileApart":
        """For a command; `home` is hidden from what is measured."""
        return cls(sandbox=Sandbox.of_home(home))

    def measure(self, request: ProfileRequest, hear: Hear = lambda _: None) -> Measured:
        """What was measured until it was done, failed, or somebody pressed Ctrl-C.

        Args:
            hear: Told everything as it comes.

        Raises:
            UnsupportedModelError: Nothing could be measured; the message says why.
            CodeNotAllowedError: It would run code; nothing of it was run.
            FailedPreconditionError: A package is not installed.
        """
        path = Path(request.path)
        most = self.memory_bytes or int(available_bytes() * _OF_AVAILABLE)
        heard = _Heard(hear=hear)
        with Confined.beside_copy(path, self.sandbox, Occasion.PROFILE, file_bytes=FILE_BYTES) as (
            place,
            copy,
        ):
            place.ask(REQUEST, msgspec.structs.replace(request, path=str(copy), memory_bytes=most))
            why = self._listen(place, heard, request.budget_s, most_bytes=most)
        failed = next((event for event in heard.events if isinstance(event, Failed)), None)
        measured = gathered(heard.events)
        if measured is not None and measured.complete:
            return measured
        if measured is None or not measured.cells:
            raise error_of(failed or Failed(error=why or "it measured nothing"), path, copy)
        stopped = failed.error.replace(str(copy), str(path)) if failed else why
        if not stopped:
            return measured
        notes = (*measured.notes, f"stopped early: {stopped}")
        return msgspec.structs.replace(measured, notes=notes, complete=False)

    def _listen(self, place: Confined, heard: "_Heard", budget_s: float, *, most_bytes: int) -> str:
        """Why the process had to be ended, or ended by itself before it was done."""
        bounds = Bounds(
            limit_s=budget_s + self.grace_s,
            too_long=f"it took longer than its budget and {self.grace_s:g} s",
            memory_bytes=most_bytes,
        )
        with place.started(self.program, is_heard=True) as running:
            try:
                for said in running.looks(bounds):
                    running.why = heard.take(said)
            except KeyboardInterrupt:
                running.why = "interrupted"
        return running.why


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What the process said so far; it may say anything."""

    hear: Hear
    events: list[Event] = field(default_factory=list)
    rest: bytes = b""

    def take(self, data: bytes) -> str:
        """Why it is to be listened to no longer; empty while it makes sense."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                event = msgspec.json.decode(line, type=Event)
            except msgspec.MsgspecError:
                return "it said something that makes no sense"
            self.events.append(event)
            self.hear(event)
        if len(self.rest) > _MAX_LINE_BYTES or len(self.events) > _MAX_EVENTS:
            return "it said too much"
        return ""
