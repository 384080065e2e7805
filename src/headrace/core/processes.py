"""Child processes: start, adoption, watching, signals and stop, and their data in /proc.

All of Headrace starts processes here, except for two programs that run in a bare interpreter and
import nothing of it: `confine.py` and `control/jobs/job_watch.py`.

A process is identified by its pid together with its start time, because the kernel reuses pids.
Signals go through a pidfd, which refers to one process for as long as it is open.
"""

import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from headrace.core.confine import effective
from headrace.core.errors import UnavailableError

PASSED_FD: Final = 3
"""Number of the descriptor that is passed to a child."""
HANDOVER_FD: Final = 4
"""Descriptor to which a sandbox's launcher writes the pid of the process that continues in a PID
namespace.
"""
_HANDOVER_S: Final = 10.0
_KILL_S: Final = 5.0
_CLOSE_S: Final = 1.0
"""Time that a process has to end after it closed its output or wrote its last line."""
_CHECK_S: Final = 0.25
_LONGEST_LINE_BYTES: Final = 1 << 20
_ERROR_LINES: Final = 100
_PAGE_BYTES: Final = resource.getpagesize()
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STATE, _USER_TICKS, _SYSTEM_TICKS, _START_TICKS = 0, 11, 12, 19
"""Fields of /proc/<pid>/stat behind the command's closing parenthesis; see proc_pid_stat(5)."""
_GONE_STATES: Final = (b"Z", b"X", b"x")
_RESET_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def _read(pid: int | str, name: str) -> bytes:
    """Return the content of a file in /proc/<pid>; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes] | None:
    # The command may contain spaces and parentheses; the fields after the last one are fixed.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return fields if len(fields) > _START_TICKS and fields[_STATE] not in _GONE_STATES else None


def start_ticks(pid: int) -> int | None:
    """Return the start time of `pid` in clock ticks since boot; None if it is not running."""
    stat = _stat(pid)
    return None if stat is None else int(stat[_START_TICKS])


def cpu_s(pid: int) -> float | None:
    """Return the CPU time that `pid` has used; None if it is not running."""
    stat = _stat(pid)
    if stat is None:
        return None
    return (int(stat[_USER_TICKS]) + int(stat[_SYSTEM_TICKS])) / _TICKS_PER_S


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of `pid`, None for this process; 0 if it is not running."""
    fields = _read("self" if pid is None else pid, "statm").split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0


def command_of(pid: int) -> Sequence[str]:
    """Return the command line of a process; empty if it is gone."""
    return _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]


def find_by_arguments(arguments: Sequence[str]) -> int | None:
    """Return the pid of this user's (root: any) process whose command ends in `arguments`."""
    ending = "".join(f"{argument}\0" for argument in arguments).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            is_readable = os.getuid() in {0, entry.stat().st_uid}
            if is_readable and (entry / "cmdline").read_bytes().endswith(ending):
                return int(entry.name)
    return None


_LISTENING: Final = "0A"
"""State of a listening socket in `/proc/net/tcp`."""


def port_user(port: int) -> str:
    """Return name and pid of the process that listens on a TCP port of this machine.

    Empty if it belongs to another user, or cannot be found.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").iterdir() if sockets else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                if any(str(file.readlink()) in sockets for file in (entry / "fd").iterdir()):
                    return f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
    return ""


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def end_with_parent() -> None:
    """Send SIGTERM to this process when the other end of `PASSED_FD` closes.

    The parent holds that end of a pipe; the kernel closes it however the parent ends.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(PASSED_FD, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


@dataclass(slots=True, kw_only=True)
class Process:
    """Process that this one started or adopted; `close` releases its descriptor."""

    pid: int
    start_ticks: int
    exit_status: int | None = None
    """Exit status of an ended child, or minus the signal's number."""
    _pidfd: int

    @classmethod
    def adopt(cls, pid: int, ticks: int) -> "Process | None":
        """Return the process `pid` if it is still the one that started at `ticks`."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # Checked after the descriptor is open, which fixes the process that has the pid now.
        if start_ticks(pid) != ticks:
            os.close(pidfd)
            return None
        return cls(pid=pid, start_ticks=ticks, _pidfd=pidfd)

    @classmethod
    def spawn(
        cls,
        arguments: Sequence[str],
        *,
        log: Path | None,
        output: int | None = None,
        pass_fd: int | None = None,
        environment: Mapping[str, str] | None = None,
        launcher: bool = False,
    ) -> "Process":
        """Start `arguments` in a new session, so that it outlives this process.

        Args:
            arguments: The program's absolute path, then its arguments.
            log: File to which its standard output and error are appended; None inherits this
                process's.
            output: Descriptor for its standard output instead.
            pass_fd: Descriptor that it gets as number 3.
            environment: Its environment; None inherits this process's.
            launcher: `arguments` are a sandbox's command, which may hand over to a child of this
                process. That child is then returned, after about 15 ms.

        Raises:
            OSError: It could not be started.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        reader, writer = os.pipe() if launcher else (-1, -1)
        actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        if log is not None:
            actions.append((os.POSIX_SPAWN_OPEN, 2, str(log), flags, 0o600))
            actions.append((os.POSIX_SPAWN_DUP2, 2, 1))
        if output is not None:
            actions.append((os.POSIX_SPAWN_DUP2, output, 1))
        if pass_fd is not None:
            actions.append((os.POSIX_SPAWN_DUP2, pass_fd, PASSED_FD))
        if launcher:
            actions.append((os.POSIX_SPAWN_DUP2, writer, HANDOVER_FD))
        try:
            pid = os.posix_spawn(
                arguments[0],
                list(arguments),
                os.environ if environment is None else environment,
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=_RESET_SIGNALS,
            )
        except OSError:
            if launcher:
                os.close(reader)
            raise
        finally:
            if launcher:
                os.close(writer)
        if launcher:
            pid = _handed_over(reader, pid)
        pidfd = os.pidfd_open(pid)
        # A child keeps its pid until it is reaped, so even an ended one has an entry; otherwise -1.
        ticks = start_ticks(pid)
        return cls(pid=pid, start_ticks=-1 if ticks is None else ticks, _pidfd=pidfd)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to exactly this process; no effect if it is gone.

        SIGTERM kills a process that does not handle it, including the first one of a PID namespace.
        """
        if signum == signal.SIGTERM:
            signum = signal.Signals(effective(signum, self.pid))
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signum)

    def is_running(self) -> bool:
        """Whether it is running; an ended child is reaped."""
        return self._reap() is None and start_ticks(self.pid) == self.start_ticks

    async def wait(self) -> int | None:
        """Wait for the end; return the exit status, negative for a signal, None if not a child.

        Cancel-safe; may be called repeatedly and by several tasks.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        pidfd = os.dup(self._pidfd)
        loop.add_reader(pidfd, _resolve, ended)
        try:
            await ended
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._reap()

    def wait_blocking(self, timeout_s: float | None = None) -> bool:
        """Wait at most `timeout_s` (None: forever) and return whether it has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        has_ended = bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
        if has_ended:
            self._reap()
        return has_ended

    async def end(self, *, within_s: float) -> bool:
        """Send SIGTERM, then SIGKILL after `within_s`; return whether SIGTERM was enough."""
        for signum, patience_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, _KILL_S)):
            self.send(signum)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.wait()
                return signum == signal.SIGTERM
        return False

    def end_blocking(self, *, within_s: float, first: signal.Signals = signal.SIGTERM) -> None:
        """End the process as `end` does, without an event loop; `first` requests the end."""
        for signum, patience_s in ((first, within_s), (signal.SIGKILL, _KILL_S)):
            self.send(signum)
            if self.wait_blocking(patience_s):
                return

    def _reap(self) -> int | None:
        if self.exit_status is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.exit_status = os.waitstatus_to_exitcode(status) if pid else None
        return self.exit_status

    def close(self) -> None:
        """Stop watching; the process continues."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _handed_over(reader: int, launcher: int) -> int:
    """Return the pid to which a launcher handed over; its pid if it continued or ended itself.

    Raises:
        OSError: It did neither in time and was killed.
    """
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        if not poll.poll(_HANDOVER_S * 1000):
            os.kill(launcher, signal.SIGKILL)
            os.waitpid(launcher, 0)
            raise TimeoutError(f"the sandbox did not start within {_HANDOVER_S:g} s")
        pid = os.read(reader, 16)
    finally:
        os.close(reader)
    if not pid:
        return launcher
    os.waitpid(launcher, 0)
    return int(pid)


def fork(work: Callable[[], None]) -> int:
    """Return the pid of a fork that does `work` and exits; the fork does not return from here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def output_of(command: Sequence[str], *, timeout_s: float) -> bytes:
    """Return what `command` prints. Blocking.

    Raises:
        OSError: It cannot be started.
        subprocess.SubprocessError: It failed, or took too long.
    """
    return subprocess.run(  # noqa: S603  # a Headrace program
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=True
    ).stdout


class Child:
    """A child process with pipes, in a new session. `async with` kills it at the end of the block.

    Signals go through a pidfd: `asyncio`'s own `kill` polls the child, and so may take the exit
    status from the watcher that waits for it.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:  # it ended immediately
            self._pidfd = -1

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        stdin: int = DEVNULL,
        stdout: int = DEVNULL,
        stderr: int = PIPE,
        environment: Mapping[str, str] | None = None,
    ) -> "Child":
        """Start `command`.

        Raises:
            UnavailableError: It cannot be started.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                limit=_LONGEST_LINE_BYTES,
                start_new_session=True,  # Ctrl-C must reach only the process that started this one
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnavailableError(f"cannot start a process: {reason}") from error
        return cls(process)

    def kill(self) -> None:
        """Kill it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> int:
        """Kill it if it is running; return its exit status."""
        try:
            self.kill()
            await self.process.communicate()  # reads the rest, which closes the pipes
        finally:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        return await self.process.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Exceeded(StrEnum):
    """Limit that `run` enforced by ending a process."""

    TIME = "time"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExit:
    """Result of a process that `run` ran."""

    status: int
    exceeded: Exceeded | None = None
    error: str = ""
    """The last lines of its standard error, unless that went to a log."""


async def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    on_line: Callable[[bytes], bool] | None = None,
) -> ProcessExit:
    """Run `command` until it ends or exceeds a limit. If cancelled, it is killed.

    Its standard input is a pipe that closes when this process ends.

    Args:
        log: File for its standard error; None keeps the last lines for `ProcessExit.error`.
        on_line: Gets each line of its standard output, except those longer than 1 MiB, and returns
            whether it was the last one.

    Raises:
        UnavailableError: It cannot be started.
    """
    child = await _start_logged(
        command, log, environment=environment, stdout=DEVNULL if on_line is None else PIPE
    )
    errors: deque[bytes] = deque(maxlen=_ERROR_LINES)

    async def read_errors() -> None:
        async for line in lines(child.process.stderr):
            errors.append(line)

    exceeded: Exceeded | None = None
    async with child:
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                reading = group.create_task(read_errors())
                growing = group.create_task(_kill_above(child, memory_bytes))
                async for line in lines(child.process.stdout):
                    if on_line is not None and on_line(line):
                        break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if on_line is None else _CLOSE_S):
                        await child.process.wait()
                child.kill()
                await reading
                exceeded = Exceeded.MEMORY if growing.done() else None
                growing.cancel()
        except TimeoutError:
            exceeded = Exceeded.TIME
    error = b"\n".join(errors).decode(errors="replace").strip()
    return ProcessExit(status=await child.process.wait(), exceeded=exceeded, error=error)


async def _start_logged(
    command: Sequence[str], log: Path | None, *, stdout: int, environment: Mapping[str, str] | None
) -> Child:
    stderr = PIPE
    try:
        if log is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            stderr = os.open(log, flags, 0o600)
        return await Child.start(
            command, stdin=PIPE, stdout=stdout, stderr=stderr, environment=environment
        )
    except OSError as error:
        raise UnavailableError(f"cannot write {log}: {error.strerror}") from error
    finally:
        if stderr != PIPE:
            os.close(stderr)


async def _kill_above(child: Child, memory_bytes: int | None) -> None:
    """Kill the process and return once it holds more than `memory_bytes`."""
    while memory_bytes is None or resident_bytes(child.process.pid) <= memory_bytes:  # noqa: ASYNC110  # the kernel gives no notice
        await asyncio.sleep(_CHECK_S)
    child.kill()


async def lines(reader: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """Yield non-empty lines without their ends; lines above the reader's limit are left out."""
    while reader is not None:
        try:
            line = await reader.readline()
        except ValueError:  # a line above the reader's limit; reading continues after it
            continue
        if not line:
            return
        if line.strip():
            yield line.rstrip()
