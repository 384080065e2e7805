"""Runs a command for as long as somebody says so; a program of its own that needs no package.

    python -I -S job_watch.py MEMORY_BYTES USER COMMAND [ARGUMENT...]

Standard input has lines, each a moment of CLOCK_BOOTTIME in seconds until which the command may
go on. At the last of them it is killed, for by then another machine may do its work. At the end of
the input it is asked to end (SIGTERM), and killed if it does not. It is killed too once it and what
it started hold more than MEMORY_BYTES (0: any number) that no file backs. Once the command has
become USER (-1: nobody else), this becomes that user too.
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
"""Exit status where the command was ended from outside."""
TOO_LARGE = 76
"""Exit status where it was ended because of its memory."""
GRACE_S = 10.0
FIRST_S = 30.0
"""How long the first line may take."""
_POLL_INTERVAL_S = 0.2
_SCAN_INTERVAL_S = 2.0
"""How often its memory is looked at, and that of all that it started: that costs more."""
_BEFORE_OTHERS = b"500"
"""A kernel without memory ends the job before it ends what answers requests."""
_OWN = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_SESSION = 3  # among the fields of /proc/<pid>/stat behind the command's closing parenthesis
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command; its exit status, or `INTERRUPTED`, or `TOO_LARGE`."""
    most_bytes, user, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(INTERRUPTED)

    child = subprocess.Popen(  # noqa: S603  # what the control plane says
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # this process has one thread
    )
    with contextlib.suppress(OSError), open(f"/proc/{child.pid}/oom_score_adj", "wb") as file:  # noqa: PTH123  # as below
        file.write(_BEFORE_OTHERS)
    ended_with = _watch(child, most_bytes, user)
    # What it started goes with it. It was not waited for, so the number is still its own.
    end_session(child.pid)
    status = child.wait()
    if ended_with is not None:
        return ended_with
    return status if status >= 0 else 128 - status


def _watch(child: "subprocess.Popen[bytes]", most_bytes: int, user: int) -> int | None:
    """Wait for the child; our exit status if it was ended by us."""
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
    """The processes of a session."""
    pids = []
    for name in os.listdir("/proc"):  # noqa: PTH208  # `pathlib` costs more than all else here
        if name.isdigit():
            stat = _read(f"/proc/{name}/stat")
            fields = stat[stat.rfind(b")") + 2 :].split()
            if len(fields) > _SESSION and int(fields[_SESSION]) == session:
                pids.append(int(name))
    return pids


def children(pid: int) -> list[int]:
    """The processes that a process started itself; a sandboxed program is its launcher's."""
    return [int(word) for word in _read(f"/proc/{pid}/task/{pid}/children").split()]


def own_bytes(pid: int) -> int:
    """Memory of a process that no file backs, in store or swapped out; 0 once it is gone."""
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
