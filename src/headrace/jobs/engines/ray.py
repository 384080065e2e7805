"""Ray engine of jobs: one process per worker, which loads the model once.

Ray Data is not used: a killed run leaves its output in place, a second run appends to it, and Ray
Data's checkpoints need a unique key. Shards have whole files, a manifest and resuming.

The cluster's address is checked before Ray's library connects: the library retries for minutes, and
its error seldom names the reason. A TCP connection and one gRPC call show within seconds whether a
head node listens at the address and whether it requires a token.
"""

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import msgspec

from headrace.core import (
    Code,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.jobs.engines.ray_worker import (
    ShardOutcome,
    ShardProgress,
    order_of,
    versions,
    worker_class,
)
from headrace.jobs.messages import CompletedShard, Shard
from headrace.jobs.prepare import Job
from headrace.jobs.shard import Hooks

LOCAL: Final = "local"
"""A cluster on this machine that ends with the job."""
AUTO: Final = "auto"
"""The cluster on this machine, or the one that `RAY_ADDRESS` names."""
ANSWER_S: Final = 10.0
ASKS: Final = (
    "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, unless the token is in "
    "~/.ray/auth_token"
)
WRONG: Final = "is RAY_AUTH_TOKEN, or else ~/.ray/auth_token, that of the cluster?"
# From Ray's `gcs_service.proto`. Any response suffices, also that the method is unknown.
_METHOD: Final = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
HostPort = tuple[str, int]
Connect = Callable[[HostPort, float], AbstractContextManager[object]]


def check_address(address: str) -> str:
    """Return `address` if Ray accepts it.

    Raises:
        InvalidArgumentError: The address is not a keyword of Ray, `HOST:PORT`, or a URL.
    """
    if address not in {LOCAL, AUTO} and "://" not in address and ":" not in address:
        msg = f"--address {address} is none of Ray's: say HOST:PORT, auto or ray://HOST:PORT"
        raise InvalidArgumentError(msg)
    host_of(address)
    return address


def host_of(address: str) -> HostPort | None:
    """Return host and port of `HOST:PORT` or `ray://HOST:PORT`; None for other addresses.

    Raises:
        InvalidArgumentError: The address has no host, or no port.
    """
    scheme, has_scheme, rest = address.rpartition("://")
    if (has_scheme and scheme != "ray") or not (has_scheme or ":" in address):
        return None
    try:
        parts = urlsplit(f"//{rest.partition('/')[0]}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        msg = f"--address {address} names no HOST:PORT, with a port from 1 to 65535"
        raise InvalidArgumentError(msg)
    return host, port


def why_unreachable(address: str) -> str:
    """Return why Ray cannot connect to `address`; empty if no obstacle was detected."""
    # With `auto`, Ray itself prefers this variable to a local cluster.
    named = os.environ.get("RAY_ADDRESS", "") if address == AUTO else ""
    head = host_of(named or address)
    if head is None:
        return ""
    return why_silent(head) or _why_no_head(*head)


def why_silent(head: HostPort, connect: Connect = socket.create_connection) -> str:
    """Return why a connection to `head` fails; empty if it succeeds."""
    try:
        with connect(head, ANSWER_S):
            return ""
    except OSError as error:
        late = f"no answer within {ANSWER_S:g} s"
        reason = late if isinstance(error, TimeoutError) else error.strerror or str(error)
        return f"{head[0]}:{head[1]}: {reason}"


def _why_no_head(host: str, port: int) -> str:
    if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return ""  # only Ray knows where its certificates are
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # Ray's own client ignores HTTP proxies too.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            return why_refused(error.code(), f"{host}:{port}", shows_token=has_token())
    return ""


def has_token() -> bool:
    """Return whether Ray is configured to send a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def why_refused(code: grpc.StatusCode, head: str, *, shows_token: bool) -> str:
    """Return why a driver cannot connect, by the gRPC status of the head; empty if it can."""
    if code in _SILENT:
        return f"{head}: what listens there does not answer as Ray does"
    if code is grpc.StatusCode.UNAUTHENTICATED and not shows_token:
        return ASKS
    return ""


NEEDED: Final = "--engine ray needs Ray: pip install 'headrace[batch,ray]', on every machine"
BEGIN_S: Final = 300.0
"""Seconds for a worker to start while no shard runs: autoscaling adds a machine in minutes."""
TRIES: Final = 4
"""Maximum number of workers lost while running one shard; then the shard is the likely cause."""
_POLL_S: Final = 0.2
_END_S: Final = 10.0
_ERROR_CHARS: Final = 400


class WorkerError(HeadraceError):
    """A worker failed to run its shard; `code` is the code of the worker's error."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class WorkersLostError(HeadraceError):
    """All workers that ran this shard were lost."""

    code = Code.UNAVAILABLE

    def __init__(self, shard: Shard, reason: str) -> None:
        super().__init__(
            f"{TRIES} workers were lost over shard {shard.number} ({shard.file}), the last with: "
            f"{reason}. It may need more memory than they have: smaller --shard-rows or "
            "--memory in "
            "another folder; or --resume when the cluster is well"
        )
        self.shard = shard.number


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Job engine that runs shards in workers on a Ray cluster."""

    source: str
    """The input as the user named it."""
    address: str = LOCAL
    """`local` for a cluster on this machine that ends with the job; `auto` for one that already
    runs here; `HOST:PORT`; or another address that Ray accepts.
    """
    workers: int | None = None
    """Number of worker processes; None for one per core of the cluster."""
    clock: Callable[[], float] = time.monotonic

    def shards(self, job: Job, hooks: Hooks) -> Generator[CompletedShard]:
        """Yield completed shards; see `ShardEngine.shards`.

        Raises:
            UnavailableError: The cluster is unreachable, or has no free core for a worker.
            WorkersLostError: All workers that ran a shard were lost.
            WorkerError: A shard failed.
        """
        if not job.left.todo:
            return
        ray = import_ray()
        with _connected(ray, self.address, self.workers):
            cores = int(ray.cluster_resources().get("CPU", 1))
            order = msgspec.json.encode(order_of(job, self.source))
            # Each worker has one core, and a second thread that reports progress. Ray does not
            # restart a lost worker; the pool does, because it knows the worker's shard.
            actor = ray.remote(worker_class(versions())).options(
                num_cpus=1, max_restarts=0, max_task_retries=0, max_concurrency=2
            )
            pool = WorkerPool(
                ray=ray,
                start=lambda: actor.remote(order),
                tracker=ShardTracker(job.left.todo, hooks),
                size=min(self.workers or max(cores, 1), len(job.left.todo)),
            )
            try:
                yield from pool.run(hooks.is_stopped, self.clock)
            finally:
                pool.close()


def import_ray() -> Any:  # noqa: ANN401  # Ray is optional
    """Return the imported `ray` module, with usage statistics disabled.

    Raises:
        FailedPreconditionError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Disables a deprecated rule that hides GPUs from workers without one, and its warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: PLC0415  # large and optional
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(NEEDED) from error
    return ray


@contextmanager
def _connected(ray: Any, address: str, workers: int | None) -> Iterator[None]:  # noqa: ANN401  # as above
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        options |= {"num_cpus": workers, "include_dashboard": False}
    reason = why_unreachable(address)
    if reason:
        raise UnavailableError(f"no Ray cluster at --address {address}: {reason}")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # Ray reports a wrong token only in its log.
        shown = has_token() and "://" not in address and isinstance(error, ConnectionError)
        hint = f"; {WRONG}" if shown else ""
        msg = f"no Ray cluster at --address {address}: {one_line(error)}{hint}"
        raise UnavailableError(msg) from error
    finally:
        # Ray's SIGTERM handler ends the process; the job's own handlers stop it in order.
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def one_line(error: BaseException) -> str:
    """Return the message of a Ray error in one line, without stack traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(("at ", "File ")))
    return text[:_ERROR_CHARS] or type(error).__name__


class ShardTracker:
    """State of a job's shards: waiting, running, and the rows counted of each.

    Every row is counted once, even if workers are lost while running its shard.
    """

    def __init__(self, shards: Iterable[Shard], hooks: Hooks) -> None:
        self._todo = deque(shards)
        self._hooks = hooks
        self._lost: dict[int, int] = {}
        self._counted: dict[int, ShardProgress] = {}

    @property
    def waiting(self) -> int:
        """Number of shards that wait for a worker."""
        return len(self._todo)

    def take(self) -> Shard | None:
        """Return the next shard to run; None if there is none."""
        return self._todo.popleft() if self._todo else None

    def advance(self, progress: ShardProgress, shard: Shard) -> None:
        """Count the rows that a worker reports for its shard; ignore reports of earlier shards."""
        if progress.shard == shard.number:
            self._count(progress)

    def finish(self, outcome: ShardOutcome) -> CompletedShard | None:
        """Return the manifest entry of a shard; None if the shard was stopped.

        Raises:
            WorkerError: The shard failed.
        """
        done = outcome.done
        if done is None:
            if outcome.code is Code.CANCELLED:
                return None
            raise WorkerError(outcome.message, outcome.code)
        samples = outcome.samples
        self._count(
            ShardProgress(shard=done.shard, rows=done.rows, errors=done.errors, samples=samples)
        )
        del self._counted[done.shard]
        return done

    def lose(self, shard: Shard, reason: str) -> None:
        """Return the shard of a lost worker to the front of the queue.

        Raises:
            WorkersLostError: The shard has lost too many workers.
        """
        self._count(ShardProgress(shard=shard.number))
        del self._counted[shard.number]
        self._lost[shard.number] = self._lost.get(shard.number, 0) + 1
        if self._lost[shard.number] >= TRIES:
            raise WorkersLostError(shard, reason)
        self._todo.appendleft(shard)

    def _count(self, progress: ShardProgress) -> None:
        before = self._counted.get(progress.shard, ShardProgress())
        self._counted[progress.shard] = progress
        rows, errors = progress.rows - before.rows, progress.errors - before.errors
        if rows or errors:
            self._hooks.on_rows(rows, errors, progress.samples[len(before.samples) :])


@dataclass(slots=True, kw_only=True, eq=False)
class _PoolWorker:
    """A worker and its pending calls; without a `shard`, it is starting."""

    actor: Any
    call: Any
    shard: Shard | None = None
    progress: Any = None
    """The pending call for its progress; None without one."""


@dataclass(slots=True, kw_only=True)
class WorkerPool:
    """The workers of a job. Only started workers get shards: others may wait for a core."""

    ray: Any
    start: Callable[[], Any]
    tracker: ShardTracker
    size: int
    workers: list[_PoolWorker] = field(default_factory=list)
    lost_early: int = 0

    def run(
        self, is_stopped: Callable[[], bool], clock: Callable[[], float]
    ) -> Generator[CompletedShard]:
        """Run all shards, and yield each when it is completed."""
        begin_by = clock() + BEGIN_S
        while not is_stopped():
            # Not more starting workers than waiting shards.
            starting = sum(worker.shard is None for worker in self.workers)
            for _ in range(min(self.size - len(self.workers), self.tracker.waiting - starting)):
                actor = self.start()
                self.workers.append(_PoolWorker(actor=actor, call=actor.ready.remote()))
            if not self.tracker.waiting and not any(worker.shard for worker in self.workers):
                return
            calls = [worker.call for worker in self.workers]
            ready, _ = self.ray.wait(calls, num_returns=1, timeout=_POLL_S)
            for worker in [candidate for candidate in self.workers if candidate.call in ready]:
                done = self._take_answer(worker)
                if done is not None:
                    yield done
            if any(worker.shard for worker in self.workers):
                begin_by = clock() + BEGIN_S
            elif clock() > begin_by:
                free = self.ray.available_resources().get("CPU", 0)
                msg = f"no worker started within {BEGIN_S:g} s: the cluster has {free:g} cores free"
                raise UnavailableError(msg)
            self._poll_progress()

    def close(self) -> None:
        """Stop all workers; those that react in time remove their temporary files."""
        running = [worker for worker in self.workers if worker.shard is not None]
        for worker in running:
            worker.actor.stop.remote()
        if running:
            calls = [worker.call for worker in running]
            self.ray.wait(calls, num_returns=len(running), timeout=_END_S)
        for worker in self.workers:
            self.ray.kill(worker.actor)
        self.workers.clear()

    def _take_answer(self, worker: _PoolWorker) -> CompletedShard | None:
        """Handle the end of a call: the worker has started, its shard has ended, or it is lost."""
        shard = worker.shard
        try:
            answer = self.ray.get(worker.call)
        except self.ray.exceptions.RayError as error:
            self.workers.remove(worker)
            self._lose(shard, error)
            return None
        done = None
        if shard is not None or answer:
            done = self.tracker.finish(msgspec.json.decode(answer, type=ShardOutcome))
        worker.shard, worker.progress = self.tracker.take(), None
        if worker.shard is None:
            self.workers.remove(worker)
            self.ray.kill(worker.actor)
        else:
            worker.call = worker.actor.run.remote(msgspec.json.encode(worker.shard))
        return done

    def _lose(self, shard: Shard | None, error: Exception) -> None:
        # A bug, or a message that the cluster cannot decode: another worker would fail too.
        if not isinstance(error, self.ray.exceptions.RayActorError):
            raise WorkerError(f"a worker failed: {one_line(error)}", Code.INTERNAL) from error
        if shard is not None:
            self.tracker.lose(shard, one_line(error))
            return
        self.lost_early += 1
        if self.lost_early > self.size:
            raise UnavailableError(f"workers of Ray end as they begin: {one_line(error)}")

    def _poll_progress(self) -> None:
        """Request the progress of running workers, with one pending call per worker."""
        for worker in self.workers:
            if worker.shard is None:
                continue
            if worker.progress is None:
                worker.progress = worker.actor.progress.remote()
                continue
            ready, _ = self.ray.wait([worker.progress], timeout=0)
            if ready:
                try:
                    answer = self.ray.get(worker.progress)
                    progress = msgspec.json.decode(answer, type=ShardProgress)
                except self.ray.exceptions.RayError:
                    progress = ShardProgress()  # the worker is lost; its `run` call reports that
                self.tracker.advance(progress, worker.shard)
                worker.progress = None
