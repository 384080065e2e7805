"""Process that materializes one view incrementally, and its progress messages.

`python -m headrace.features.materialize_process HOME VIEW`. It exits when its standard input
closes, as it does when the parent process ends. Rows written until then remain, and the next run
continues.
"""

import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import Code, HeadraceError
from headrace.features.applied import applied_definitions, online_store_url
from headrace.features.online.store import open_online_store


class MaterializeProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Number of entities written so far."""

    done: int
    entities: int


class MaterializeFinished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The run succeeded; fields as in `MaterializeReport`."""

    entities: int
    written: int
    newest_us: int | None
    """Microseconds since 1970."""


class MaterializeFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The run failed."""

    code: Code
    message: str


ProcessMessage = MaterializeProgress | MaterializeFinished | MaterializeFailed
"""A message, written as a line of JSON. The last message is not a progress message."""
_LOG: Final = logging.getLogger("headrace.features")
_NICER: Final = 10
_ORPHANED: Final = 4
"""The exit status after the parent process ended."""
_REPORT_INTERVAL_S: Final = 0.5


def main(arguments: list[str]) -> int:
    """Run the process; return its exit status."""
    home, view = arguments
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.nice(_NICER)  # requests come first
    try:
        finished = _run(Path(home), view)
    except HeadraceError as error:
        _report(MaterializeFailed(code=error.code, message=str(error)))
        return 1
    except Exception as error:  # noqa: BLE001  # a process's edge: its parent gets a line, the log the trace
        _LOG.exception("materializing failed")
        _report(MaterializeFailed(code=Code.INTERNAL, message=f"{type(error).__name__}: {error}"))
        return 1
    _report(finished)
    return 0


def _run(home: Path, name: str) -> MaterializeFinished:
    view = applied_definitions(home).view(name)
    # Imported last: invalid definitions then cost no import of Polars.
    from headrace.features.online_writers import materialize  # noqa: PLC0415

    reported_at = -_REPORT_INTERVAL_S

    def progress(done: int, entities: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= _REPORT_INTERVAL_S:
            reported_at = time.monotonic()
            _report(MaterializeProgress(done=done, entities=entities))

    store = open_online_store(online_store_url(home))
    try:
        now = datetime.now(UTC)
        report = materialize(view, store, until=now, incremental=True, progress=progress)
    finally:
        store.close()
    newest = report.newest
    return MaterializeFinished(
        entities=report.entities,
        written=report.written,
        newest_us=None if newest is None else round(newest.timestamp() * 1_000_000),
    )


def _report(message: ProcessMessage) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
