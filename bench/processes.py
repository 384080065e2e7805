"""Start a server on chosen cores, wait until it answers, stop it by its process id."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bench import cpu

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.02
LOG_TAIL: Final = 30
NOTHING: Final[Mapping[str, str]] = {}


class StartError(RuntimeError):
    """A server did not come up; the message ends with what it logged."""


@contextmanager
def running(
    argv: Sequence[str],
    *,
    part: str,
    cores: frozenset[int],
    log: Path,
    is_ready: Callable[[], bool],
    extra: Mapping[str, str] = NOTHING,
    within_s: float = START_TIMEOUT_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready inside the block and gone after it.

    Args:
        part: Under which name its processor time is counted.
        log: Takes what it prints.
        extra: Environment variables beside our own.
        within_s: How long it may take to be ready.

    Raises:
        StartError: It ended, or was not ready in time.
    """
    process = start(argv, part=part, cores=cores, log=log, extra=extra)
    try:
        _wait_until_ready(process, part, log, is_ready, within_s)
        yield process
    finally:
        stop(process)


def start(
    argv: Sequence[str],
    *,
    part: str,
    cores: frozenset[int],
    log: Path,
    extra: Mapping[str, str] = NOTHING,
) -> subprocess.Popen[bytes]:
    """Start without waiting; in a session of its own, so that Ctrl-C reaches us alone."""
    with cpu.pinned(set(cores)), log.open("wb") as out:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**environment(part), **extra},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; after a while, make it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stop_leftovers(only: str = "") -> list[str]:
    """Kill what our servers left behind, or those of one part; what that was."""
    left = [(pid, part) for pid, part in cpu.ours() if pid != os.getpid() and only in {"", part}]
    for pid, _ in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"{part} ({pid})" for pid, part in left]


def environment(part: str) -> Mapping[str, str]:
    """Our own environment, marked so that processor time can be attributed."""
    return {**os.environ, cpu.RUN_VARIABLE: cpu.RUN_ID, cpu.PART_VARIABLE: part}


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody uses now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


def answers(
    port: int,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] = NOTHING,
) -> bool:
    """Whether a request on loopback gets 200 now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body=body or None, headers=dict(headers))
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return _status_kb(pid, "VmRSS") * 1024


def tree_bytes(part: str) -> tuple[int, int]:
    """Memory of every process of a part: resident, and proportional (shared pages split)."""
    pids = [pid for pid, name in cpu.ours() if name == part]
    rollups = [_rollup_kb(pid) for pid in pids]
    return sum(rss for rss, _ in rollups) * 1024, sum(pss for _, pss in rollups) * 1024


def tail(log: Path, lines: int = LOG_TAIL) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _wait_until_ready(
    process: subprocess.Popen[bytes],
    part: str,
    log: Path,
    is_ready: Callable[[], bool],
    within_s: float,
) -> None:
    deadline = time.monotonic() + within_s
    while not is_ready():
        if process.poll() is not None:
            msg = f"{part} ended with {process.returncode} before it was ready:\n{tail(log)}"
            raise StartError(msg)
        if time.monotonic() > deadline:
            msg = f"{part} was not ready within {within_s:g} s:\n{tail(log)}"
            raise StartError(msg)
        time.sleep(POLL_S)


def _rollup_kb(pid: int) -> tuple[int, int]:
    fields = {}
    with suppress(OSError):  # it ended meanwhile
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            fields[name] = int(value)
    return fields.get("Rss:", 0), fields.get("Pss:", 0)


def _status_kb(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0
