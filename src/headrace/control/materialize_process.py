"""How is a view materialized beside the control plane? In a process that is bounded and watched."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.process import python_module, rss_bytes
from headrace.core import Clock, FailedPreconditionError, HeadraceError, UnavailableError
from headrace.features import (
    ApartMessage,
    FeatureView,
    MaterializeFailed,
    MaterializeFinished,
    MaterializeProgress,
)

_LOOK_S: Final = 0.25
_END_S: Final = 1.0
"""How long a process that has said all, or closed its output, may take to end."""
_THREADS: Final = "2"
"""Of the table library: requests need the other cores."""
_MIB: Final = 1 << 20

OnProgress = Callable[[MaterializeProgress], None]


@dataclass(slots=True, kw_only=True)
class MaterializeApart:
    """Materializes views of a home. `log`: where what processes complain of goes.

    `command`: what is run for a view; None for `headrace.features.materialize_apart`.
    """

    home: Path
    log: Path
    clock: Clock
    command: Callable[[str], Sequence[str]] | None = None

    async def __call__(self, view: FeatureView, progress: OnProgress) -> MaterializeFinished:
        """One incremental run; what came of it. If it is cancelled, the process is killed.

        Raises:
            HeadraceError: It failed, took too long or too much memory, or cannot be started.
        """
        process = await self._start(view.name)
        pidfd = _pidfd_of(process)
        reasons: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                bound = group.create_task(self._bound(process, pidfd, view, reasons))
                message = await _listen(process, progress)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_S):
                        await process.wait()
                bound.cancel()
        finally:
            await _end(process, pidfd)
        if reasons:
            raise FailedPreconditionError(reasons[0])
        match message:
            case MaterializeFinished():
                return message
            case MaterializeFailed():
                error = HeadraceError(message.message)
                error.code = message.code
                raise error
            case _:
                status = process.returncode
                raise UnavailableError(f"its process ended with status {status}; see {self.log}")

    async def _start(self, name: str) -> Process:
        home = str(self.home.absolute())
        command = python_module("headrace.features.materialize_apart", home, name)
        if self.command is not None:
            command = list(self.command(name))
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                return await asyncio.create_subprocess_exec(
                    *command,
                    stdin=PIPE,  # its end tells the process that we are gone
                    stdout=PIPE,
                    stderr=log,
                    env={**os.environ, "POLARS_MAX_THREADS": _THREADS},
                    start_new_session=True,  # Ctrl-C is for who started us
                )
            finally:
                os.close(log)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnavailableError(f"cannot start a process: {reason}") from error

    async def _bound(
        self, process: Process, pidfd: int | None, view: FeatureView, reasons: list[str]
    ) -> None:
        """Kill the process when it takes too much, and say so."""
        schedule = view.schedule
        assert schedule is not None
        ends = self.clock.monotonic() + schedule.timeout_s
        while True:
            await asyncio.sleep(_LOOK_S)
            if self.clock.monotonic() >= ends:
                limit = f"{schedule.timeout_s:g} s (`timeout_s`)"
                reasons.append(f"took longer than {limit} and was ended; the next run goes on")
            elif (rss_bytes(process.pid) or 0) > schedule.max_memory_bytes:
                limit = f"{schedule.max_memory_bytes // _MIB} MiB (`max_memory_bytes`)"
                reasons.append(f"took more memory than {limit} and was ended")
            if reasons:
                _kill(pidfd)
                return


async def _listen(
    process: Process, progress: OnProgress
) -> MaterializeFinished | MaterializeFailed | None:
    """What the process said last; None if it ended without that."""
    assert process.stdout is not None
    decoder = msgspec.json.Decoder(ApartMessage)
    while True:
        try:
            line = await process.stdout.readline()
            if not line:
                return None
            message: ApartMessage = decoder.decode(line)
        except (ValueError, msgspec.MsgspecError):  # a line too long, or something else's
            continue
        if not isinstance(message, MaterializeProgress):
            return message
        progress(message)


def _pidfd_of(process: Process) -> int | None:
    """What names the process for as long as it is held; None if it ended already."""
    try:
        return os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None


async def _end(process: Process, pidfd: int | None) -> None:
    """Let the process end, and make it if it does not by itself."""
    try:
        if process.stdin is not None:
            process.stdin.close()
        _kill(pidfd)
        await process.wait()
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _kill(pidfd: int | None) -> None:
    # Not by `Process.kill`: that polls, and so takes the status away from asyncio's own watcher.
    if pidfd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
