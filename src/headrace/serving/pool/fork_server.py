"""Fork server of load checks: `python -m headrace.serving.pool.fork_server FD`.

A check takes three processes, so that a model's code never runs without a limit: the fork server,
which only forks; a supervisor, which waits for the check and kills it at its deadline or when the
caller is gone; and the check itself, which runs the model's code.
"""

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from headrace.core.devices import Device
from headrace.core.processes import fork, resident_bytes
from headrace.runtimes.onnx import runtime as onnx  # noqa: F401  # imported before the forks, not by each
from headrace.scoring.loading import load_model
from headrace.serving.memory import memory_limit_bytes, private_bytes, size_bytes
from headrace.serving.pool.load_check import (
    MAX_MESSAGE_BYTES,
    TrialRequest,
    TrialResult,
    result_of,
)

IDLE_S: Final = 60.0
"""The fork server ends after this time without a check; its memory is worth more than a fast start.
"""
_REQUEST_S: Final = 10.0
_WARM_UP_S: Final = 0.1
_NICE: Final = 5
"""Low CPU priority: serving processes come first."""
_MIN_SIZE_BYTES: Final = 64 << 10
_POLL_S: Final = 0.05
_CPU_S: Final = 600


def main(arguments: list[str]) -> int:
    """Fork a supervisor for each socket that a client passes, until all clients are gone."""
    listener = socket.socket(fileno=int(arguments[0]))
    listener.settimeout(IDLE_S)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the exit status of supervisors is not needed
    gc.freeze()  # collections in the forks would copy every page
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(listener, 1, 1)
        except TimeoutError:
            return 0
        if not message:
            return 0
        fork(partial(_be_keeper, listener, fds[0]))
        os.close(fds[0])


def _be_keeper(listener: socket.socket, descriptor: int) -> None:
    """Run one check and send the caller its result; stop if the caller is gone."""
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with (
        contextlib.suppress(OSError, msgspec.MsgspecError),
        socket.socket(fileno=descriptor) as caller,
    ):
        caller.settimeout(_REQUEST_S)
        with caller.makefile("rb") as stream:
            request = msgspec.json.decode(stream.readline(MAX_MESSAGE_BYTES), type=TrialRequest)
        caller.sendall(msgspec.json.encode(_keep(caller, request)) + b"\n")


def _keep(caller: socket.socket, request: TrialRequest) -> TrialResult:
    results, answer = os.pipe()

    def be_trial() -> None:
        caller.close()
        os.close(results)
        _be_trial(request, answer)

    pid = fork(be_trial)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # so does the check itself: either may come first
    os.close(answer)
    most_bytes = memory_limit_bytes(size_bytes(Path(request.settings.path)))
    reason = _wait_for_end(pid, caller, request.timeout_s, most_bytes)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # no other process ends what the check started
    _, status = os.waitpid(pid, 0)
    os.set_blocking(results, False)
    try:
        message = os.read(results, MAX_MESSAGE_BYTES)
    except BlockingIOError:  # a process that the check started holds the pipe
        message = b""
    if message:
        return msgspec.json.decode(message, type=TrialResult)
    return TrialResult(error=reason or _how_it_ended(status))


def _wait_for_end(pid: int, caller: socket.socket, timeout_s: float, most_bytes: int) -> str:
    """Return why the check must be ended; empty if it ended by itself or the caller left."""
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(caller, select.POLLIN)  # closed its output: it can only end
    until = time.monotonic() + timeout_s
    while True:
        left_s = until - time.monotonic()
        if left_s <= 0:
            return f"it did not load within {timeout_s:g} s"
        if poll.poll(min(left_s, _POLL_S) * 1000):
            return ""
        if resident_bytes(pid) > most_bytes:
            return f"it exceeded {most_bytes} bytes of memory while it loaded"


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return f"it used more than {_CPU_S} s of processor time while it loaded"
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name} while it loaded"
    return f"its code ended the process (exit status {code}) while it loaded"


def _be_trial(request: TrialRequest, answer: int) -> None:
    """Load the model and report the result; the model's code may do anything to this process."""
    os.setpgid(0, 0)
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # out of memory, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    os.write(answer, msgspec.json.encode(result_of(lambda: _tried(request))))


def _tried(request: TrialRequest) -> TrialResult:
    """Load the model and return its memory use."""
    before = private_bytes()
    loaded = load_model(request.settings, warm_up_s=_WARM_UP_S, device=Device.CPU)
    gc.collect()
    taken_bytes = max(private_bytes() - before, _MIN_SIZE_BYTES)
    del loaded
    return TrialResult(size_bytes=taken_bytes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
