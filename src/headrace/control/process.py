"""How are processes started that outlive this one, recognised later, and watched?

A process is known by its pid together with the time it started: a pid alone is used again.
"""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.serving.confine import effective

_STAT_STATE: Final = 0
_STAT_TIMES: Final = slice(11, 13)
_STAT_START_TICKS: Final = 19
"""Fields of /proc/<pid>/stat behind the command's closing parenthesis; see proc_pid_stat(5)."""

PASSED_FD: Final = 3
HANDOVER_FD: Final = 4
"""Where a sandbox's launcher writes the pid of the process that goes on in a PID namespace."""
_HANDOVER_S: Final = 10.0
_GONE_STATES: Final = frozenset("ZXx")
_RESET_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if nothing runs under it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command may hold spaces and parentheses; what follows the last one is fixed.
    fields = stat[stat.rfind(b")") + 2 :].split()
    if len(fields) <= _STAT_START_TICKS or fields[_STAT_STATE].decode() in _GONE_STATES:
        return None
    return int(fields[_STAT_START_TICKS])


def rss_bytes(pid: int) -> int | None:
    """Resident memory of `pid`; None if nothing runs under it."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float | None:
    """Processor time that `pid` has used; None if nothing runs under it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    user, system = stat[stat.rfind(b")") + 2 :].split()[_STAT_TIMES]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def find_by_arguments(arguments: Sequence[str]) -> int | None:
    """The pid of this user's process whose command line ends in `arguments`.

    Those of root may be anybody's.
    """
    wanted = "".join(f"{argument}\0" for argument in arguments).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            is_mine = os.getuid() in {0, entry.stat().st_uid}
            line = (entry / "cmdline").read_bytes() if is_mine else b""
        except OSError:
            continue  # it ended while we looked
        if line.endswith(wanted):
            return int(entry.name)
    return None


@dataclass(slots=True, kw_only=True)
class Process:
    """A process that this one started or adopted; `close` gives its descriptor back."""

    pid: int
    start_ticks: int
    _pidfd: int

    @classmethod
    def adopt(cls, pid: int, ticks: int) -> "Process | None":
        """The process `pid` if it is still the one that started at `ticks`."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # Checked after the descriptor is open: it pins whatever has the pid now.
        if start_ticks(pid) != ticks:
            os.close(pidfd)
            return None
        return cls(pid=pid, start_ticks=ticks, _pidfd=pidfd)

    @classmethod
    def spawn(
        cls,
        arguments: Sequence[str],
        *,
        log: Path,
        pass_fd: int | None = None,
        environment: Mapping[str, str] | None = None,
        launcher: bool = False,
    ) -> "Process":
        """Start `arguments` in a session of its own, so that it outlives this process.

        Args:
            arguments: The program's absolute path, then what it is told.
            log: Where its standard output and error are appended.
            pass_fd: A descriptor that it gets as number 3.
            environment: None for this process's.
            launcher: `arguments` are a sandbox's command, which may hand over to a child of this
                process. That one is then returned, after about 15 ms.

        Raises:
            OSError: It could not be started.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        reader, writer = os.pipe() if launcher else (-1, -1)
        pid = os.posix_spawn(
            arguments[0],
            list(arguments),
            os.environ if environment is None else environment,
            file_actions=[
                *([(os.POSIX_SPAWN_DUP2, writer, HANDOVER_FD)] if launcher else []),
                *([(os.POSIX_SPAWN_DUP2, pass_fd, PASSED_FD)] if pass_fd is not None else []),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=_RESET_SIGNALS,
        )
        if launcher:
            os.close(writer)
            pid = _handed_over(reader, pid)
        pidfd = os.pidfd_open(pid)
        # A child keeps its pid until it is waited for, so even a dead one has its entry; -1 then.
        ticks = start_ticks(pid)
        return cls(pid=pid, start_ticks=-1 if ticks is None else ticks, _pidfd=pidfd)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to exactly this process; nothing happens if it is gone.

        SIGTERM kills a process that does not handle it, also the first one of a PID namespace.
        """
        if signum == signal.SIGTERM:
            signum = signal.Signals(effective(signum, self.pid))
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return

    def is_running(self) -> bool:
        """Whether it lives; a child that ended is reaped."""
        self._reap()
        return start_ticks(self.pid) == self.start_ticks

    def poll(self) -> tuple[bool, int | None]:
        """Whether it lives, and its exit status if it ended just now; None where nobody can say."""
        code = self._reap()
        return code is None and start_ticks(self.pid) == self.start_ticks, code

    async def wait(self) -> int | None:
        """The exit status once it ended: negative for a signal, None if it is not our child.

        Cancel-safe; may be called again.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._pidfd, _set_done, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._pidfd)
        return self._reap()

    def _reap(self) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        return os.waitstatus_to_exitcode(status) if pid else None

    def close(self) -> None:
        """Stop watching; the process goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _set_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _handed_over(reader: int, launcher: int) -> int:
    """The pid that a launcher handed over to; its own if it went on itself, or ended.

    Raises:
        OSError: It did neither in time; it was killed.
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


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
