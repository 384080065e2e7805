"""Watchdog program that runs a command while its lease is extended; it imports no package.

    python -I -S job_watch.py MEMORY_BYTES USER COMMAND [ARGUMENT...]

Each line of standard input is a time of CLOCK_BOOTTIME in seconds until which the command may run.
At the last of these times it is killed, because another machine may then do its work. At the end of
the input it gets SIGTERM, and is killed if it does not exit. It is also killed if it and its
children use more than MEMORY_BYTES (0: no limit) of memory that no file backs. Once the command has
changed to USER (-1: no change), the watchdog changes to that user too.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

INTERRUPTED = 75
"""Exit status if the command was ended from outside."""
TOO_LARGE = 76
"""Exit status if it was killed because of its memory."""
GRACE_S = 10.0
FIRST_S = 30.0
"""Seconds to wait for the first line."""
_POLL_INTERVAL_S = 0.2
_SCAN_INTERVAL_S = 2.0
"""Interval of the memory check that includes its children, which is more expensive."""
_BEFORE_OTHERS = b"500"
"""oom_score_adj of jobs: the kernel kills a job before processes that answer requests."""
_OWN = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_SESSION = 3  # among the fields of /proc/<pid>/stat behind the command's closing parenthesis
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status, `INTERRUPTED` or `TOO_LARGE`."""
    most_bytes, user, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(INTERRUPTED)

    child = subprocess.Popen(  # noqa: S603  # from the control plane
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # this process has one thread
    )
    with contextlib.suppress(OSError), open(f"/proc/{child.pid}/oom_score_adj", "wb") as file:  # noqa: PTH123  # as below
        file.write(_BEFORE_OTHERS)
    ended_with = _watch(child, most_bytes, user)
    # Kill its children too. It was not waited for, so its pid is not reused yet.
    end_session(child.pid)
    status = child.wait()
    if ended_with is not None:
        return ended_with
    return status if status >= 0 else 128 - status


def _watch(child: "subprocess.Popen[bytes]", most_bytes: int, user: int) -> int | None:
    """Wait for the child; return our exit status if we ended it, else None."""
    deadline = _now() + FIRST_S
    ends_at: float | None = None
    look_at = _now() if most_bytes or user >= 0 else None
    around_at = _now()
    pidfd = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(0, select.POLLIN)
    buffer = b""
    while True:
        last = deadline if ends_at is None else min(deadline, ends_at)
        wake_at = last if look_at is None else min(last, look_at)
        ready = {descriptor for descriptor, _ in poll.poll(max(wake_at - _now(), 0.0) * 1000)}
        if pidfd in ready:
            return None if ends_at is None else INTERRUPTED
        now = _now()
        if not ready and now >= last:
            return INTERRUPTED
        if look_at is not None and now >= look_at:
            look_at = now + _POLL_INTERVAL_S
            is_around = now >= around_at
            around_at = now + _SCAN_INTERVAL_S if is_around else around_at
            pids = members(child.pid) if is_around else [child.pid]
            pids += [pid for pid in children(child.pid) if pid not in pids]
            if most_bytes and sum(map(own_bytes, pids)) > most_bytes:
                return TOO_LARGE
            if user >= 0 and f"\nUid:\t{user}\t".encode() in _read(f"/proc/{child.pid}/status"):
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                user = -1
                look_at = look_at if most_bytes else None
        if 0 not in ready:
            continue
        part = os.read(0, 4096)
        if not part:
            poll.unregister(0)
            ends_at = _now() + GRACE_S
            child.terminate()
            continue
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                deadline = float(line)


def end_session(session: int) -> None:
    """Kill all processes of a session whose leader was not waited for yet."""
    for pid in (session, *members(session)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """Return the pids of a session."""
    pids = []
    for name in os.listdir("/proc"):  # noqa: PTH208  # `pathlib` dominates the cost here
        if name.isdigit():
            stat = _read(f"/proc/{name}/stat")
            fields = stat[stat.rfind(b")") + 2 :].split()
            if len(fields) > _SESSION and int(fields[_SESSION]) == session:
                pids.append(int(name))
    return pids


def children(pid: int) -> list[int]:
    """Return the child pids of a process; a sandboxed program is a child of its launcher."""
    return [int(word) for word in _read(f"/proc/{pid}/task/{pid}/children").split()]


def own_bytes(pid: int) -> int:
    """Return a process's memory that no file backs, swap included; 0 once it is gone."""
    lines = _read(f"/proc/{pid}/status").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_OWN))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # as above
            return file.read()
    except OSError:
        return b""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
