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
    ask_alone,
    ask_together,
    overhead_of,
)
from headrace.serving.memory import available_bytes

GRACE_S: Final = 60.0
"""Beyond its budget, for a model that loads slowly or whose last run takes long."""
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
    """What was measured until it was done, failed, or somebody pressed Ctrl-C.

    Args:
        on_event: Called with each event as it comes.
        grace_s: Time beyond the budget.
        memory_bytes: The most memory that it may take; None goes by what the machine has.

    Raises:
        UnsupportedModelError: Nothing could be measured; the message says why.
        CodeNotAllowedError: It would run code; nothing of it was run.
        FailedPreconditionError: A package is not installed.
    """
    path = Path(request.path)
    most = memory_bytes or int(available_bytes() * _OF_AVAILABLE)
    limits = SandboxLimits(
        timeout_s=request.budget_s + grace_s,
        timeout_reason=f"it took longer than its budget and {grace_s:g} s",
        memory_bytes=most,
    )
    events: list[Event] = []
    with SandboxedRun.beside_copy(path, sandbox, SandboxPurpose.PROFILE, file_bytes=FILE_BYTES) as (
        run,
        copy,
    ):
        request = msgspec.structs.replace(request, path=str(copy), memory_bytes=most)
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
"""Of the time; the rest is for requests that come together."""
_MOST_GENTLE: Final = 300
"""Requests to what serves others, too."""
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
    """The overhead of a replica that is started for this, confined, and stopped again.

    Raises:
        HeadraceError: It does not start, or does not answer.
    """
    with SandboxedRun.beside_copy(path, sandbox, SandboxPurpose.PROFILE, file_bytes=FILE_BYTES) as (
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
            alone = ask_alone(
                lambda: _ask_all(many[:1], message), totals, budget_s=budget_s * _ALONE
            )
            is_short = all(max(block.walls_s) < _SHORT_S for block in alone[-_LAST:])
            rounds = _ROUNDS if is_short else 1
            together = ask_together(
                lambda: _ask_all(many, message, rounds), totals, budget_s=budget_s * (1 - _ALONE)
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
    """The overhead of an endpoint that runs, asked one by one through its gateway.

    Args:
        replica: That of a replica of its own: which copy answers here, and how long that ran, is
            not known from outside.

    Raises:
        HeadraceError: It does not answer.
    """
    inputs = example_inputs(client.signature(endpoint), variable=max(length, 1))
    until = clock() + budget_s
    walls_s: list[float] = []
    while len(walls_s) < BLOCK or (clock() < until and len(walls_s) < _MOST_GENTLE):
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
    """Have this thread, and what it starts, on these cores; on all of them if none is named."""
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
        except OSError:  # it does not listen yet
            return False


def _message(inputs: Tensors) -> bytes:
    """The bytes of a request, as the client sends them."""
    message = HttpWire().infer(InferRequest(model_name=NAME, inputs=inputs)).message
    content = message.content or b""
    head = [f"{message.method} {message.path} HTTP/1.1", "host: localhost"]
    head += [f"{name}: {value}" for name, value in message.headers.items()]
    head.append(f"content-length: {len(content)}")
    return "\r\n".join([*head, "", ""]).encode() + content


@contextmanager
def _connections(uds: str, count: int) -> Iterator[list[socket.socket]]:
    """Open connections to a replica.

    Raises:
        UnavailableError: It does not answer on them.
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


def _ask_all(connections: Sequence[socket.socket], message: bytes, rounds: int = 1) -> float:
    """Keep a request under way on each connection; the seconds until the last was answered.

    Args:
        rounds: How many requests each connection carries: with many, something always waits.
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
    """How long the answer at the beginning of `data` is; 0 while some of it is missing."""
    header_end = data.find(b"\r\n\r\n")
    if header_end < 0:
        return 0
    for line in data[:header_end].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = header_end + 4 + int(line.partition(b":")[2])
            return size if len(data) >= size else 0
    return header_end + 4


def _totals(client: Client, model: str, pid: int | None = None) -> ReplicaTotals:
    """What a replica did so far, by Triton's statistics and, with its `pid`, by the kernel's."""
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
    """Processor time of a process's first thread, where its event loop is."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
