"""Materialization of scheduled feature views into the online store, each in a child process.

The definitions last applied in the home are read every second. A view has one run at a time, and
runs continue after a restart.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.features.materialize_plan import (
    FeatureViewStatus,
    ViewPast,
    failed,
    is_due,
    past_of,
    succeeded,
    view_families,
    view_status,
)
from headrace.control.model.records import Event
from headrace.core import Clock, FailedPreconditionError, HeadraceError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.processes import Exceeded, python_module, run
from headrace.core.state_file import StateFile
from headrace.features import Definitions, FeatureView
from headrace.features.materialize_process import (
    MaterializeFailed,
    MaterializeFinished,
    MaterializeProgress,
    ProcessMessage,
)
from headrace.observe.metrics import Family

_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 1.0
_MAX_CONCURRENT: Final = 2

_THREADS: Final = "2"
"""Threads of the table library: requests need the other cores."""
_MIB: Final = 1 << 20

OnProgress = Callable[[MaterializeProgress], None]
_Signature = tuple[int, int, int] | None


async def materialize_view(
    view: FeatureView,
    on_progress: OnProgress,
    *,
    home: Path,
    log: Path,
    command: Sequence[str] | None = None,
) -> MaterializeFinished:
    """Run one incremental materialization in a child process, which is killed on cancellation.

    Args:
        log: File to which its standard error is appended.
        command: Command line; None for `headrace.features.materialize_process`.

    Raises:
        HeadraceError: The run failed, took too long or too much memory, or cannot be started.
    """
    schedule = view.schedule
    assert schedule is not None
    result: MaterializeFinished | MaterializeFailed | None = None

    def is_result(line: bytes) -> bool:
        nonlocal result
        try:
            message: ProcessMessage = msgspec.json.decode(line, type=ProcessMessage)
        except (ValueError, *UNDECODABLE):  # not written by our process
            return False
        if isinstance(message, MaterializeProgress):
            on_progress(message)
            return False
        result = message
        return True

    module = "headrace.features.materialize_process"
    ended = await run(
        command or python_module(module, str(home), view.name),
        timeout_s=schedule.timeout_s,
        memory_bytes=schedule.max_memory_bytes,
        environment={**os.environ, "POLARS_MAX_THREADS": _THREADS},
        log=log,
        on_line=is_result,
    )
    if ended.exceeded is Exceeded.TIME:
        limit = f"{schedule.timeout_s:g} s (`timeout_s`)"
        msg = f"exceeded {limit} and was stopped; the next run continues"
        raise FailedPreconditionError(msg)
    if ended.exceeded is Exceeded.MEMORY:
        limit = f"{schedule.max_memory_bytes // _MIB} MiB (`max_memory_bytes`)"
        raise FailedPreconditionError(f"exceeded the memory limit of {limit} and was stopped")
    if isinstance(result, MaterializeFailed):
        error = HeadraceError(result.message)
        error.code = result.code
        raise error
    if result is None:
        raise UnavailableError(f"its process exited with status {ended.status}; see {log}")
    return result


@dataclass(slots=True, kw_only=True)
class Materializer:
    """Materializes the views of one home."""

    path: Path
    """Path of the applied definitions."""
    read: Callable[[], Awaitable[Definitions]]
    """Reads the applied definitions."""
    work: Callable[[FeatureView, OnProgress], Awaitable[MaterializeFinished]]
    """Runs the materialization of a view."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    clock: Clock
    memory: StateFile[list[ViewPast]]
    faults: Faults = field(default_factory=Faults)
    definitions: Definitions | None = None
    problem: str = ""
    """Reason why the definitions cannot be read; the previous ones stay in force."""
    _pasts: dict[str, ViewPast] = field(default_factory=dict)
    _running: dict[str, MaterializeProgress] = field(default_factory=dict)
    _signature: _Signature = None
    _at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT))

    def load(self) -> None:
        """Load the results of runs before a restart. Blocking."""
        self._pasts = {past.view: past for past in self.memory.load() or ()}

    async def run(self) -> None:
        """Materialize due views until cancelled, which ends current runs."""
        async with asyncio.TaskGroup() as group:
            while True:
                with self.faults.contain(LOOP, "feature views"):
                    await self._detect_changes()
                    for view in self.due():
                        self._running[view.name] = MaterializeProgress(done=0, entities=0)
                        group.create_task(self._run(view))
                await asyncio.sleep(_POLL_INTERVAL_S)

    def due(self) -> list[FeatureView]:
        """Return the due views that do not run yet."""
        now, due = self.clock.now(), []
        for view in self._scheduled():
            if view.name in self._running or view.schedule is None:
                continue
            with self.faults.contain("feature schedule", view.name):
                if is_due(view.schedule, self._past(view), now):
                    due.append(view)
        for kind in ("feature view", "feature schedule"):
            self.faults.keep_only(kind, [view.name for view in self._scheduled()])
        return due

    def statuses(self) -> tuple[FeatureViewStatus, ...]:
        """Return the status of each applied view."""
        views = () if self.definitions is None else tuple(self.definitions.views.values())
        now = self.clock.now()
        return tuple(
            view_status(view, self._past(view), self._running.get(view.name), now=now)
            for view in views
        )

    def families(self) -> list[Family]:
        """Return the metrics of scheduled views."""
        pasts = [self._past(view) for view in self._scheduled()]
        return view_families(pasts, now=self.clock.now())

    def _scheduled(self) -> list[FeatureView]:
        views = () if self.definitions is None else self.definitions.views.values()
        return [view for view in views if view.schedule is not None]

    def _past(self, view: FeatureView) -> ViewPast:
        return past_of(view, self._pasts.get(view.name))

    async def _detect_changes(self) -> None:
        """Read the definitions if they changed."""
        signature = _signature_of(self.path)
        if signature == self._signature:
            return
        self._signature = signature
        if signature is None:
            self.definitions, self.problem = None, ""
            return
        try:
            self.definitions = await self.read()
        except HeadraceError as error:
            self.problem = str(error)
            _LOG.error("cannot read what features are applied", extra={"error": str(error)})
        else:
            self.problem = ""

    async def _run(self, view: FeatureView) -> None:
        with self.faults.contain("feature view", view.name):
            started, before = self.clock.now(), self._past(view)
            try:
                async with self._at_once:
                    started = self.clock.now()
                    done = await self.work(
                        view, lambda progress: self._running.update({view.name: progress})
                    )
            except HeadraceError as error:
                after = failed(before, str(error), started=started, now=self.clock.now())
            except Exception as error:
                # It counts as a failed run, so that the next one is delayed.
                message = f"{type(error).__name__}: {error}"
                self._pasts[view.name] = failed(
                    before, message, started=started, now=self.clock.now()
                )
                raise
            else:
                after = succeeded(before, done, started=started, now=self.clock.now())
            finally:
                self._running.pop(view.name, None)
            self._pasts[view.name] = after
            names = [other.name for other in self._scheduled()]
            self.memory.try_save([self._pasts[name] for name in names if name in self._pasts])
            await self._announce(before, after)

    async def _announce(self, before: ViewPast, after: ViewPast) -> None:
        event = _event(before, after)
        if event is None:
            return
        level = logging.ERROR if after.failures else logging.INFO
        _LOG.log(level, event.message, extra={"reason": event.reason, **event.data})
        await write_events(self.emit, [event])


def _event(before: ViewPast, after: ViewPast) -> Event | None:
    """Return the event of a run: the first run, or a change of its failure; else None."""
    name, written = after.view, {"entities": after.entities, "written": after.written}
    data = {"view": name, "failures": after.failures}
    if after.failures and before.message != after.message:
        reason = "MaterializeFailed"
        message = f"feature view '{name}' cannot be materialized: {after.message}"
    elif not after.failures and before.failures:
        reason, message = "MaterializeRecovered", f"feature view '{name}' is materialized again"
        data |= {**written, "failures": before.failures}
    elif not after.failures and before.succeeded_at is None:
        reason = "Materialized"
        message = f"feature view '{name}' is materialized: {after.written} entities"
        data |= written
    else:
        return None
    finished_at = after.failed_at or after.succeeded_at or 0.0
    return Event(
        at=finished_at, endpoint="", kind="features", reason=reason, message=message, data=data
    )


def _signature_of(path: Path) -> _Signature:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
