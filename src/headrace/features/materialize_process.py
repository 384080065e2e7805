"""Process that materializes one view incrementally, and the lines in which it reports.

`python -m headrace.features.materialize_process HOME VIEW`. It ends when its standard input ends,
and so with the process that started it. Rows written by then stay, and the next run resumes there.
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
    """So many of all entities are written."""

    done: int
    entities: int


class MaterializeFinished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """It worked: as of `MaterializeReport`; `newest_us` in microseconds since 1970."""

    entities: int
    written: int
    newest_us: int | None


class MaterializeFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It did not."""

    code: Code
    message: str


ApartMessage = MaterializeProgress | MaterializeFinished | MaterializeFailed
"""A line, as JSON. The last one is no progress."""
_LOG: Final = logging.getLogger("headrace.features")
_NICER: Final = 10
_ORPHANED: Final = 4
"""The exit status when whoever started it is gone."""
_TELL_S: Final = 0.5


def main(arguments: list[str]) -> int:
    """Be the process; its exit status."""
    home, view = arguments
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.nice(_NICER)  # requests come first
    try:
        finished = _run(Path(home), view)
    except HeadraceError as error:
        _tell(MaterializeFailed(code=error.code, message=str(error)))
        return 1
    except Exception as error:  # noqa: BLE001  # a process's edge: its parent gets a line, the log the trace
        _LOG.exception("materializing failed")
        _tell(MaterializeFailed(code=Code.INTERNAL, message=f"{type(error).__name__}: {error}"))
        return 1
    _tell(finished)
    return 0


def _run(home: Path, name: str) -> MaterializeFinished:
    view = applied_definitions(home).view(name)
    # Loaded last: definitions that are wrong cost no table library.
    from headrace.features.online_writers import materialize  # noqa: PLC0415

    told_at = -_TELL_S

    def progress(done: int, entities: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_S:
            told_at = time.monotonic()
            _tell(MaterializeProgress(done=done, entities=entities))

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


def _tell(message: ApartMessage) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
