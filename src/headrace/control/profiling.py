"""Measurement of a model in a sandboxed process.

The process sends its results line by line, so that they remain whatever becomes of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.sandbox import Occasion, Sandbox
from headrace.control.sandboxed import Limits, SandboxedRun, error_of
from headrace.core.error_kind import UNDECODABLE
from headrace.optimize.profiling.measure import REQUEST
from headrace.optimize.profiling.messages import (
    Event,
    Failed,
    Measured,
    ProfileRequest,
    gathered,
)
from headrace.serving.memory import available_bytes

GRACE_S: Final = 60.0
"""Beyond its budget, for a model that loads slowly or whose last run takes long."""
FILE_BYTES: Final = 1 << 30
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_EVENTS: Final = 10_000
_OF_AVAILABLE: Final = 0.7
_WORKER: Final = "headrace.optimize.profiling.measure"


def measure(
    sandbox: Sandbox,
    request: ProfileRequest,
    on_event: Callable[[Event], None] = lambda _: None,
    *,
    grace_s: float = GRACE_S,
    memory_bytes: int | None = None,
    program: str = _WORKER,
) -> Measured:
    """What was measured until it was done, failed, or somebody pressed Ctrl-C.

    Args:
        on_event: Called with each event as it comes.
        grace_s: Time beyond the budget.
        memory_bytes: The most memory that it may take; None goes by what the machine has.

    Raises:
        UnsupportedModelError: Nothing could be measured; the message says why.
        CodeNotAllowedError: It would run code; nothing of it was run.
        FailedPreconditionError: A package is not installed.
    """
    path = Path(request.path)
    most = memory_bytes or int(available_bytes() * _OF_AVAILABLE)
    limits = Limits(
        timeout_s=request.budget_s + grace_s,
        timeout_reason=f"it took longer than its budget and {grace_s:g} s",
        memory_bytes=most,
    )
    events: list[Event] = []
    with SandboxedRun.beside_copy(path, sandbox, Occasion.PROFILE, file_bytes=FILE_BYTES) as (
        run,
        copy,
    ):
        request = msgspec.structs.replace(request, path=str(copy), memory_bytes=most)
        run.write_request(REQUEST, request)
        with run.started(program, reads_output=True) as running:
            rest = b""
            try:
                for part in running.watch(limits):
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        try:
                            event = msgspec.json.decode(line, type=Event)
                        except UNDECODABLE:
                            running.reason = "it said something that makes no sense"
                            break
                        events.append(event)
                        on_event(event)
                    if len(rest) > _MAX_LINE_BYTES or len(events) > _MAX_EVENTS:
                        running.reason = "it said too much"
            except KeyboardInterrupt:
                running.reason = "interrupted"
    failed = next((event for event in events if isinstance(event, Failed)), None)
    measured = gathered(events)
    if measured is not None and measured.complete:
        return measured
    if measured is None or not measured.cells:
        reason = running.reason or "it measured nothing"
        raise error_of(failed or Failed(error=reason), path, copy)
    stopped = failed.error.replace(str(copy), str(path)) if failed else running.reason
    if not stopped:
        return measured
    notes = (*measured.notes, f"stopped early: {stopped}")
    return msgspec.structs.replace(measured, notes=notes, complete=False)
