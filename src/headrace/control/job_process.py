"""How is a run of a job carried out beside the control plane? By `headrace batch run`, watched."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control import job_watch
from headrace.control.job_plan import Attempt, arguments_of
from headrace.control.job_records import JobRun
from headrace.control.process import python_module
from headrace.core import UnavailableError
from headrace.jobs.progress import read_progress

_LOG: Final = logging.getLogger("headrace.control")
_WATCH: Final = Path(job_watch.__file__)
_TOO_MANY_ERRORS: Final = 4
_WRONG_ARGUMENTS: Final = 2
_SIGNALLED: Final = 128
_LONGEST_LINE: Final = 1 << 20
_MESSAGE: Final = 2000


def lease_clock() -> float:
    """Seconds on the clock that leases are told in; it runs on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def progress_of(run: JobRun) -> JobRun:
    """`run` with what its output folder says is done. Blocking."""
    found = read_progress(Path(run.output))
    if found is None or found.run_id != run.id:
        return run
    return msgspec.structs.replace(
        run,
        rows=found.rows,
        errors=found.errors,
        shards=found.shards,
        shards_done=found.shards_done,
    )


@dataclass(slots=True)
class JobProcess:
    """A run under way. `extend` lets it go on, `stop` asks it to end."""

    process: Process
    name: str
    log: Path
    _last: str = ""
    _reader: "asyncio.Task[None] | None" = None

    def extend(self, until: float) -> None:
        """Let it run until a moment of `lease_clock`."""
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            self.process.stdin.write(f"{until:.6f}\n".encode())

    def stop(self) -> None:
        """Ask it to end; what is done stays. It is killed if it takes long."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """End it now."""
        # What it watches dies with it. By pid: `Process.kill` would poll, and take the status.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    async def wait(self) -> Attempt:
        """How it ended."""
        if self._reader is not None:
            await self._reader
        status = await self.process.wait()
        return self._attempt(status)

    def read(self) -> None:
        """Take what it says."""
        self._reader = asyncio.create_task(self._read_log())

    def _attempt(self, status: int) -> Attempt:
        if status == 0:
            return Attempt(ok=True)
        if status == job_watch.INTERRUPTED or status < 0:
            return Attempt(interrupted=True, message="interrupted")
        said = self._last or f"ended with status {status}; see {self.log}"
        if status == _SIGNALLED + signal.SIGKILL:
            said = "was killed; most likely it took more memory than there is"
        final = status in {_TOO_MANY_ERRORS, _WRONG_ARGUMENTS}
        return Attempt(final=final, message=said[:_MESSAGE])

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.log.open("ab") as log:
            self.log.chmod(0o600)
            async for line in _lines(self.process.stderr):
                log.write(self.name.encode() + b": " + line + b"\n")
                log.flush()
                text = line.decode(errors="replace").strip()
                self._last = text.removeprefix("headrace: ") or self._last


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        try:
            line = await reader.readline()
        except ValueError:  # longer than the reader takes; it goes on after it
            continue
        if not line:
            return
        if line.strip():
            yield line.rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarter:
    """Starts runs of a home. `log`: what their processes say goes there.

    `command`: what is run for one, if not `headrace batch run`.
    """

    home: Path
    log: Path
    command: Callable[[JobRun], Sequence[str]] | None = None

    async def __call__(self, run: JobRun, until: float) -> JobProcess:
        """Start one that may run until a moment of `lease_clock`.

        Raises:
            UnavailableError: No process can be started.
        """
        command = (
            python_module("headrace.cli", *arguments_of(run, self.home))
            if self.command is None
            else list(self.command(run))
        )
        watched = [sys.executable, "-I", "-S", str(_WATCH), *command]
        try:
            process = await asyncio.create_subprocess_exec(
                *watched,
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=PIPE,
                limit=_LONGEST_LINE,
                start_new_session=True,  # Ctrl-C is for who started us
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnavailableError(f"cannot start a process: {reason}") from error
        started = JobProcess(process, run.id, self.log)
        started.read()
        started.extend(until)
        _LOG.info("a job runs", extra={"run": run.id, "tries": run.tries, "pid": process.pid})
        return started
