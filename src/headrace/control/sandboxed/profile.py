"""Profiles of models in a sandboxed process, and the overhead of a request."""

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from headrace.client import Client
from headrace.client.http_wire import HttpWire
from headrace.control.local.sandbox import Sandbox, SandboxPurpose
from headrace.control.sandboxed.run import SandboxedProgram, SandboxedRun, SandboxLimits, error_of
from headrace.core import (
    BatchingSpec,
    HeadraceError,
    InferRequest,
    ReplicaSettings,
    Tensors,
    UnavailableError,
    example_inputs,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.processes import Process
from headrace.optimize.profiling.measure import REQUEST
from headrace.optimize.profiling.messages import (
    Event,
    Measured,
    Overhead,
    ProfileFailed,
    ProfileRequest,
    gathered,
)
from headrace.optimize.profiling.overhead import (
    BLOCK,
    ReplicaTotals,
    overhead_of,
    request_concurrently,
    request_sequentially,
)
from headrace.serving.memory import available_bytes

GRACE_S: Final = 60.0
"""Seconds beyond the budget, for a slow load or a long last run."""
FILE_BYTES: Final = 1 << 30
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_EVENTS: Final = 10_000
_OF_AVAILABLE: Final = 0.7
_WORKER: Final = "headrace.optimize.profiling.measure"


def measure(
    sandbox: Sandbox,
    request: ProfileRequest,
    on_event: Callable[[Event], None] = lambda _: None,
    *,
    grace_s: float = GRACE_S,
    memory_bytes: int | None = None,
    program: str = _WORKER,
) -> Measured:
    """Return the measurements until the profile is complete, fails, or is stopped by Ctrl-C.

    Args:
        on_event: Called with each event.
        grace_s: Seconds beyond the budget.
        memory_bytes: Memory limit of the process; None derives it from the machine's memory.

    Raises:
        UnsupportedModelError: Nothing could be measured; the message says why.
        CodeNotAllowedError: It would run code; none of it was run.
        FailedPreconditionError: A package is not installed.
    """
    path = Path(request.path)
    maximum = memory_bytes or int(available_bytes() * _OF_AVAILABLE)
    limits = SandboxLimits(
        timeout_s=request.budget_s + grace_s,
        timeout_reason=f"it took longer than its budget and {grace_s:g} s",
        memory_bytes=maximum,
    )
    events: list[Event] = []
    with SandboxedRun.next_to_copy(
        path, sandbox, SandboxPurpose.PROFILE, file_bytes=FILE_BYTES
    ) as (
        run,
        copy,
    ):
        request = msgspec.structs.replace(request, path=str(copy), memory_bytes=maximum)
        run.write_request(REQUEST, request)
        with run.started(program, reads_output=True) as running:
            rest = b""
            try:
                for part in running.watch(limits):
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        try:
                            event = msgspec.json.decode(line, type=Event)
                        except UNDECODABLE:
                            running.reason = "its output is invalid"
                            break
                        events.append(event)
                        on_event(event)
                    if len(rest) > _MAX_LINE_BYTES or len(events) > _MAX_EVENTS:
                        running.reason = "its output is too large"
            except KeyboardInterrupt:
                running.reason = "interrupted"
    failed = next((event for event in events if isinstance(event, ProfileFailed)), None)
    measured = gathered(events)
    if measured is not None and measured.complete:
        return measured
    if measured is None or not measured.cells:
        reason = running.reason or "it measured nothing"
        raise error_of(failed or ProfileFailed(error=reason), path, copy)
    stopped = failed.error.replace(str(copy), str(path)) if failed else running.reason
    if not stopped:
        return measured
    notes = (*measured.notes, f"stopped early: {stopped}")
    return msgspec.structs.replace(measured, notes=notes, complete=False)


NAME: Final = "profiled"
_TOGETHER: Final = 32
_ROUNDS: Final = 16
_SHORT_S: Final = 0.005
_LAST: Final = 3
_ALONE: Final = 0.6
"""Share of the time for single requests; the rest is for concurrent requests."""
_MAX_GENTLE: Final = 300
"""Most requests to an endpoint that also serves other callers."""
_CHUNK_BYTES: Final = 1 << 18
_OK: Final = b"HTTP/1.1 200"
_READY_S: Final = 60.0
_ANSWER_S: Final = 30.0
_POLL_INTERVAL_S: Final = 0.02
_MAX_ANSWER_BYTES: Final = 1 << 28
_LONGEST_SOCKET: Final = 107


def replica_overhead(
    path: Path,
    *,
    runtime: str,
    rows_independent: bool = False,
    sandbox: Sandbox,
    cores: int,
    length: int,
    budget_s: float,
) -> Overhead:
    """Return the overhead of a sandboxed replica that is started and stopped for this measurement.

    Raises:
        HeadraceError: The replica does not start, or does not answer.
    """
    with SandboxedRun.next_to_copy(
        path, sandbox, SandboxPurpose.PROFILE, file_bytes=FILE_BYTES
    ) as (
        run,
        copy,
    ):
        settings = ReplicaSettings(
            model_name=NAME,
            model_version="1",
            path=str(copy),
            runtime=runtime,
            uds=str(run.own / "http.sock"),
            batching=BatchingSpec(
                rows_independent=rows_independent or msgspec.UNSET, row_check_ratio=0.0
            ),
        )
        cpus = sorted(os.sched_getaffinity(0))
        if len(settings.uds) > _LONGEST_SOCKET:
            raise UnavailableError(f"the path of a socket would be too long: {settings.uds}")
        with (
            _started(settings, run, cpus[:cores]) as running,
            Client(f"unix:{settings.uds}", timeout_s=_ANSWER_S) as client,
            _connections(settings.uds, _TOGETHER) as many,
            _pinned(cpus[cores:]),  # where the replica is not, if there is such a core
        ):
            message = _message(example_inputs(client.signature(NAME), variable=max(length, 1)))
            totals = partial(_totals, client, NAME, running.pid)
            alone = request_sequentially(
                lambda: _request_all(many[:1], message), totals, budget_s=budget_s * _ALONE
            )
            is_short = all(max(block.walls_s) < _SHORT_S for block in alone[-_LAST:])
            rounds = _ROUNDS if is_short else 1
            together = request_concurrently(
                lambda: _request_all(many, message, rounds),
                totals,
                budget_s=budget_s * (1 - _ALONE),
            )
    if not alone:
        raise UnavailableError("the replica does not report the duration of its runs")
    return overhead_of(alone, together, way="a replica over its socket", max_runs=cores)


def endpoint_overhead(
    client: Client,
    endpoint: str,
    replica: Overhead,
    *,
    length: int,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Overhead:
    """Return the overhead of a running endpoint, measured by single requests through its gateway.

    Args:
        replica: Overhead of a separate replica: from outside it is unknown which replica answers
            here, and how long its run took.

    Raises:
        HeadraceError: The endpoint does not answer.
    """
    inputs = example_inputs(client.signature(endpoint), variable=max(length, 1))
    until = clock() + budget_s
    walls_s: list[float] = []
    while len(walls_s) < BLOCK or (clock() < until and len(walls_s) < _MAX_GENTLE):
        before = clock()
        client.infer(endpoint, inputs)
        walls_s.append(clock() - before)
    p50_s = statistics.median(walls_s)
    return msgspec.structs.replace(
        replica,
        way="the gateway",
        count=len(walls_s),
        p50_s=p50_s,
        wall_s=max(p50_s - replica.run_s, replica.wake_s + replica.cpu_s),
    )


@contextmanager
def _started(
    settings: ReplicaSettings, run: SandboxedRun, cores: Sequence[int]
) -> Iterator[SandboxedProgram]:
    file = run.write_request("settings.json", settings)
    with ExitStack() as stack:
        with _pinned(cores):
            started = run.started("headrace.serving", "--settings", str(file))
            running = stack.enter_context(started)
        try:
            _wait_ready(running.process, settings.uds)
            yield running
        except HeadraceError as error:
            if running.process.is_running():
                raise
            raise UnavailableError(running.failure() or str(error)) from error


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin this thread and its children to these cores; to all cores if the list is empty."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _wait_ready(process: Process, uds: str) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until and process.is_running():
        if _is_ready(uds):
            return
        time.sleep(_POLL_INTERVAL_S)
    raise UnavailableError(f"the replica was not ready within {_READY_S:g} s")


def _is_ready(uds: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(uds)
            connection.sendall(f"GET /v2/models/{NAME}/ready HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            return connection.recv(_CHUNK_BYTES).startswith(_OK)
        except OSError:  # the server does not listen yet
            return False


def _message(inputs: Tensors) -> bytes:
    """Return the bytes of a request, as the client sends them."""
    message = HttpWire().infer(InferRequest(model_name=NAME, inputs=inputs)).message
    content = message.content or b""
    head = [f"{message.method} {message.path} HTTP/1.1", "host: localhost"]
    head += [f"{name}: {value}" for name, value in message.headers.items()]
    head.append(f"content-length: {len(content)}")
    return "\r\n".join([*head, "", ""]).encode() + content


@contextmanager
def _connections(uds: str, count: int) -> Iterator[list[socket.socket]]:
    """Yield open connections to a replica.

    Raises:
        UnavailableError: The replica does not answer on them.
    """
    with ExitStack() as stack:
        try:
            opened = []
            for _ in range(count):
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(_ANSWER_S)
                connection.connect(uds)
                opened.append(connection)
            yield opened
        except OSError as error:
            raise UnavailableError(f"the replica does not answer: {error}") from error


def _request_all(connections: Sequence[socket.socket], message: bytes, rounds: int = 1) -> float:
    """Send requests on all connections in parallel; return the seconds until the last answer.

    Args:
        rounds: Requests per connection; with many, requests are always queued.
    """
    started = time.perf_counter()
    for connection in connections:
        connection.sendall(message)
    for left in range(rounds - 1, -1, -1):
        for connection in connections:
            _read_answer(connection)
            if left:
                connection.sendall(message)
    return time.perf_counter() - started


def _read_answer(connection: socket.socket) -> None:
    data = connection.recv(_CHUNK_BYTES)
    while not _whole(data):
        more = connection.recv(_CHUNK_BYTES)
        if not more or len(data) > _MAX_ANSWER_BYTES:
            raise UnavailableError("the replica gave no answer")
        data += more
    if not data.startswith(_OK):
        raise UnavailableError(f"the replica responded {data[:200]!r}")


def _whole(data: bytes) -> int:
    """Return the length of the answer at the beginning of `data`; 0 while it is incomplete."""
    header_end = data.find(b"\r\n\r\n")
    if header_end < 0:
        return 0
    for line in data[:header_end].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = header_end + 4 + int(line.partition(b":")[2])
            return size if len(data) >= size else 0
    return header_end + 4


def _totals(client: Client, model: str, pid: int | None = None) -> ReplicaTotals:
    """Return a replica's totals from Triton's statistics and, with its `pid`, from the kernel."""
    stats = client.statistics(model)["model_stats"]
    infer = [entry["inference_stats"]["compute_infer"] for entry in stats]
    batches = [batch["compute_infer"] for entry in stats for batch in entry["batch_stats"]]
    return ReplicaTotals(
        answers=sum(int(entry["count"]) for entry in infer),
        answer_s=sum(int(entry["ns"]) for entry in infer) / 1e9,
        run_s=sum(int(entry["ns"]) for entry in batches) / 1e9,
        loop_s=0.0 if pid is None else _loop_s(pid),
    )


def _loop_s(pid: int) -> float:
    """Return the CPU seconds of a process's first thread, which runs its event loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
