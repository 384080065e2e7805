"""Runs a command for as long as somebody says so; a program of its own that needs no package.

    python -I -S job_watch.py COMMAND [ARGUMENT...]

Standard input has lines, each a moment of CLOCK_BOOTTIME in seconds until which the command may
go on. At the last of them it is killed, for by then another machine may do its work. At the end of
the input it is asked to end (SIGTERM), and killed if it does not.
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
GRACE_S = 10.0
FIRST_S = 30.0
"""How long the first line may take."""
_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run `command`; its exit status, or `INTERRUPTED`."""
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
    is_over = _watch(child)
    status = child.wait()
    if is_over:
        return INTERRUPTED
    return status if status >= 0 else 128 - status


def _watch(child: "subprocess.Popen[bytes]") -> bool:
    """Wait for the child; whether it was ended by us."""
    deadline = _now() + FIRST_S
    ends_at: float | None = None
    pidfd = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(0, select.POLLIN)
    said = b""
    while True:
        last = deadline if ends_at is None else min(deadline, ends_at)
        ready = {descriptor for descriptor, _ in poll.poll(max(last - _now(), 0.0) * 1000)}
        if pidfd in ready:
            return ends_at is not None
        if not ready and _now() >= last:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            return True
        if 0 not in ready:
            continue
        part = os.read(0, 4096)
        if not part:
            poll.unregister(0)
            ends_at = _now() + GRACE_S
            child.terminate()
            continue
        *lines, said = (said + part).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                deadline = float(line)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
