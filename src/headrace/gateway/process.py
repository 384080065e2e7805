"""One Envoy process: started so that it outlives us, recognised later, stopped by a deadline."""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

_PRIVATE: Final = 0o600
_KILL_S: Final = 5.0
_START_FIELD: Final = 19
"""Where /proc/PID/stat has the start time, counted after the name in parentheses."""


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a process: its number and when it started, in ticks since boot."""

    pid: int
    started: int


@dataclass(slots=True)
class Process:
    """A running process, child or not."""

    record: ProcessRecord
    exit_status: int | None = None
    """Once a child has ended: its status, or minus the signal's number."""

    @property
    def pid(self) -> int:
        """The process's number."""
        return self.record.pid

    def is_running(self) -> bool:
        """Whether the process lives; a dead child is reaped."""
        self._reap()
        return started_at(self.pid) == self.record.started

    async def wait(self) -> int | None:
        """Wait for the end; `exit_status`, None if it is not our child."""
        self._reap()
        # None also while its first thread is gone and others still end, so the kernel is asked.
        if self.exit_status is None and started_at(self.pid) in {None, self.record.started}:
            async with _ended(self.pid) as ended:
                await ended
            self._reap()
        return self.exit_status

    def _reap(self) -> None:
        if self.exit_status is None:
            self.exit_status = reap(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended and its number may be another's."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def end(self, *, within_s: float) -> None:
        """Ask it to end by SIGTERM, and make it end by SIGKILL after `within_s`."""
        for number, patience_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, _KILL_S)):
            self.signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.wait()
                return


def spawn(arguments: tuple[str, ...], *, log: Path) -> Process:
    """Start a process in a session of its own, with its output appended to `log`.

    A signal for us, as Ctrl-C in a terminal, does not reach it, and our end does not end it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        arguments[0],
        arguments,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, _PRIVATE),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
    with contextlib.suppress(OSError):  # it may have ended
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
    return Process(ProcessRecord(pid=pid, started=started_at(pid) or 0))


def started_at(pid: int) -> int | None:
    """When a living process started, in ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[_START_FIELD])


def command_of(pid: int) -> Sequence[str]:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return ()


def reap(pid: int) -> int | None:
    """The exit status of a child that ended; None if it runs or is no child of ours."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if ended else None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.asynccontextmanager
async def _ended(pid: int) -> AsyncIterator[asyncio.Future[None]]:
    """A future that is done once the process has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        future.set_result(None)
        yield future
        return
    loop.add_reader(descriptor, _resolve, future)
    try:
        yield future
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
