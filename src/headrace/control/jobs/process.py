"""Process of a job's run: `headrace batch run` under the watchdog `job_watch.py`.

It is sandboxed like a replica; `cli/batch_confined.py` lists the paths that it may read and write.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.base.home import Home
from headrace.control.jobs import job_watch
from headrace.control.jobs.plan import Attempt, arguments_of, input_of, memory_limit_of
from headrace.control.local.sandbox import FIRST_UID, UIDS, Isolation, Sandbox, SandboxPurpose
from headrace.control.model.job_runs import JobRun
from headrace.core.confine import give_all
from headrace.core.processes import Child, lines, python_module
from headrace.jobs.messages import read_progress

_LOG: Final = logging.getLogger("headrace.control")
_WATCH: Final = Path(job_watch.__file__)
_TOO_MANY_ERRORS: Final = 4
_WRONG_ARGUMENTS: Final = 2
_SIGNALLED: Final = 128
_MESSAGE: Final = 2000


def lease_clock() -> float:
    """Return the seconds of the clock for leases, which continues while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def progress_of(run: JobRun) -> JobRun:
    """Return `run` with the progress in its output folder. Blocking."""
    progress = read_progress(Path(run.output))
    if progress is None or progress.run_id != run.id:
        return run
    return msgspec.structs.replace(
        run,
        rows=progress.rows,
        errors=progress.errors,
        shards=progress.shards,
        shards_done=progress.shards_done,
    )


@dataclass(slots=True)
class JobProcess:
    """Process of a run. `extend` extends its lease, `stop` asks it to exit."""

    child: Child
    name: str
    log: Path
    memory_limit: str = ""
    tidy: Callable[[], None] = lambda: None
    """Removes its files except its output. Blocking."""
    isolation: Callable[[], Isolation | None] = lambda: None
    """Returns its isolation; None while unknown."""
    _last: str = ""
    _is_reported: bool = False
    _reader: "asyncio.Task[None] | None" = None

    def extend(self, until: float) -> None:
        """Extend its lease to a time of `lease_clock`."""
        stdin = self.child.process.stdin
        assert stdin is not None
        if not stdin.is_closing():
            stdin.write(f"{until:.6f}\n".encode())

    def stop(self) -> None:
        """Ask it to exit; finished work stays. It is killed if it does not exit in time."""
        assert self.child.process.stdin is not None
        self.child.process.stdin.close()

    def kill(self) -> None:
        """Kill the watchdog and its command."""
        self.child.kill()

    async def wait(self) -> Attempt:
        """Wait for its end and return its outcome."""
        if self._reader is not None:
            await self._reader
        await self.child.process.wait()
        status = await self.child.close()
        self.log_isolation()
        await asyncio.to_thread(self.tidy)
        if status == 0:
            return Attempt(ok=True)
        if status == job_watch.INTERRUPTED or status < 0:
            return Attempt(interrupted=True, message="interrupted")
        if status == job_watch.TOO_LARGE:
            return Attempt(
                too_large=True,
                message=f"took more than {self.memory_limit} of memory (`memory_limit`) and was "
                "ended; allow more, or set lower `memory`, `workers` or `chunk_rows`",
            )
        message = self._last or f"ended with status {status}; see {self.log}"
        if status == _SIGNALLED + signal.SIGKILL:
            message = "was killed, probably because the machine ran out of memory"
        final = status in {_TOO_MANY_ERRORS, _WRONG_ARGUMENTS}
        return Attempt(final=final, message=message[:_MESSAGE])

    def log_isolation(self) -> None:
        """Log once why it is not fully isolated."""
        isolation = self.isolation()
        if isolation is not None and isolation.problems and not self._is_reported:
            self._is_reported = True
            reason = "; ".join(isolation.problems)
            _LOG.warning("a job is not isolated", extra={"run": self.name, "why": reason})

    def read(self) -> None:
        """Read its output."""
        self._reader = asyncio.create_task(self._read_log())

    async def _read_log(self) -> None:
        with self.log.open("ab") as log:
            self.log.chmod(0o600)
            async for line in lines(self.child.process.stderr):
                log.write(self.name.encode() + b": " + line + b"\n")
                log.flush()
                text = line.decode(errors="replace").strip()
                self._last = text.removeprefix("headrace: ") or self._last


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarter:
    """Starts runs of a home."""

    home: Path
    log: Path
    """Log file of their processes."""
    command: Callable[[JobRun], Sequence[str]] | None = None
    """Returns the command line of a run; None for `headrace batch run`."""
    sandbox: Sandbox | None = None
    """Sandbox of the processes; None starts them with all rights of this process."""
    _serials: set[int] = field(default_factory=set)
    """Serials of the users of current runs."""

    async def __call__(self, run: JobRun, until: float) -> JobProcess:
        """Start a run with a lease until a time of `lease_clock`.

        Raises:
            UnavailableError: The process cannot be started.
        """
        serial = (
            SandboxPurpose.SECOND_JOB if SandboxPurpose.JOB in self._serials else SandboxPurpose.JOB
        )
        memory_limit, most_bytes = memory_limit_of(run)
        confined = [] if self.sandbox is None else [f"--confined={serial}"]
        own = None if self.command is None else self.command(run)
        program = own or python_module("headrace.cli", *arguments_of(run, self.home))
        command = [*program, *confined]
        own_user = None if self.sandbox is None else self.sandbox.user(serial)
        user = -1 if own_user is None else own_user
        watched = [sys.executable, "-I", "-S", str(_WATCH), str(most_bytes), str(user), *command]
        self._tidy(run)
        environment = None
        if self.sandbox is not None:
            # With variables of its input, and of its model, which is resolved later.
            environment = self.sandbox.environment.of(input_of(run), parts=("endpoints",))
        child = await Child.start(watched, stdin=PIPE, environment=environment)
        pid = child.process.pid
        self._serials.add(serial)
        owner = _owner(Path(run.output))
        started = JobProcess(
            child,
            run.id,
            self.log,
            memory_limit=memory_limit,
            tidy=lambda: self._end(run, serial, owner),
            isolation=lambda: self._isolation(run, pid),
        )
        started.read()
        started.extend(until)
        _LOG.info("a job runs", extra={"run": run.id, "tries": run.tries, "pid": pid})
        return started

    def _isolation(self, run: JobRun, pid: int) -> Isolation | None:
        return None if self.sandbox is None else self.sandbox.isolation(report_name(run.id), pid)

    def _tidy(self, run: JobRun) -> None:
        if self.sandbox is not None:
            self.sandbox.forget(report_name(run.id))
        shutil.rmtree(Home(self.home).job_run(run.id), ignore_errors=True)

    def _end(self, run: JobRun, serial: int, owner: tuple[int, int]) -> None:
        """Remove all files but the output, and give that to its folder's owner."""
        self._serials.discard(serial)
        self._tidy(run)
        if self.sandbox is not None and not self.sandbox.kernel_features().user:
            with contextlib.suppress(OSError):  # it is missing, or chown is not allowed
                give_all(run.output, *owner, of=range(FIRST_UID, FIRST_UID + UIDS))


def _owner(folder: Path) -> tuple[int, int]:
    """Return user and group that own a run's output after its end."""
    with contextlib.suppress(OSError):
        info = folder.lstat()
        if info.st_uid not in range(FIRST_UID, FIRST_UID + UIDS):
            return info.st_uid, info.st_gid
    return os.getuid(), os.getgid()


def report_name(run_id: str) -> str:
    """Return the name of a run's isolation report, which differs from all replica names."""
    return f"job~{run_id}"
