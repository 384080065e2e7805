"""The engine of a Ray cluster: a process for each worker, which loads the model once.

Ray Data is not used: its writer appends what a run that is killed has written already, and its own
checkpoints need a key that is unique. Our shards bring whole files, a manifest and resuming.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace.core import Code, FailedPreconditionError, InvalidArgumentError, UnavailableError
from headrace.jobs.engines.address import places_of, why_silent
from headrace.jobs.engines.alike import versions, worker_class
from headrace.jobs.engines.cluster import BEGIN_S, one_line, own_signals
from headrace.jobs.engines.engine import Told
from headrace.jobs.engines.errand import Outcome, Seen, WorkerError, errand_of
from headrace.jobs.engines.gcs import WRONG, has_token, why_no_head
from headrace.jobs.engines.ledger import Ledger
from headrace.jobs.messages import Done, Shard
from headrace.jobs.preparing import Job

NEEDED: Final = "--engine ray needs Ray: pip install 'headrace[batch,ray]', on every machine"
LOCAL: Final = "local"
AUTO: Final = "auto"
_SCHEMES: Final = ("ray",)
_LOOK_S: Final = 0.2
_END_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Workers of Ray.

    `source`: the input as a person named it. `address`: `local` for a cluster on this machine that
    ends with the job; `auto` for one that runs here; `HOST:PORT`; what else Ray takes. `workers`:
    processes at once; None for as many as the cluster has cores.
    """

    source: str
    address: str = LOCAL
    workers: int | None = None
    clock: Callable[[], float] = time.monotonic

    def shards(self, job: Job, told: Told) -> Generator[Done]:
        """As `Engine.shards`.

        Raises:
            UnavailableError: The cluster is not there, or has no place for a worker.
            WorkersLostError: A shard ended every worker that had it.
        """
        if not job.left.todo:
            return
        ray = import_ray()
        with _connected(ray, self.address, self.workers):
            cores = int(ray.cluster_resources().get("CPU", 1))
            crew = _Crew(
                ray=ray,
                start=_starter(ray, msgspec.json.encode(errand_of(job, self.source))),
                ledger=Ledger(job.left.todo, told),
                size=min(self.workers or max(cores, 1), len(job.left.todo)),
            )
            try:
                yield from crew.run(told, self.clock)
            finally:
                crew.close()


def import_ray() -> Any:  # noqa: ANN401  # its types are not there where it is not
    """Ray, which tells nobody that it is used.

    Raises:
        FailedPreconditionError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker without a GPU would hide them by a rule that Ray is about to give up, and warn.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: PLC0415  # large, and few have it
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(NEEDED) from error
    return ray


def check_address(address: str) -> str:
    """`address`, if Ray can take it.

    Raises:
        InvalidArgumentError: It is neither a word that Ray knows, nor `HOST:PORT`, nor a URL.
    """
    if address not in {LOCAL, AUTO} and "://" not in address and ":" not in address:
        msg = f"--address {address} is none of Ray's: say HOST:PORT, auto or ray://HOST:PORT"
        raise InvalidArgumentError(msg)
    places_of(address, schemes=_SCHEMES)
    return address


@contextmanager
def _connected(ray: Any, address: str, workers: int | None) -> Iterator[None]:  # noqa: ANN401  # as above
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        options |= {"num_cpus": workers, "include_dashboard": False}
    why = _why_not(address)
    if why:
        raise UnavailableError(f"no Ray cluster at --address {address}: {why}")
    with own_signals():
        try:
            ray.init(**options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            # Ray tells nobody but its log that a token is wrong.
            shown = has_token() and "://" not in address and isinstance(error, ConnectionError)
            hint = f"; {WRONG}" if shown else ""
            msg = f"no Ray cluster at --address {address}: {one_line(error)}{hint}"
            raise UnavailableError(msg) from error
    try:
        yield
    finally:
        ray.shutdown()


def _why_not(address: str) -> str:
    """Why Ray need not be asked to connect; empty if it is worth trying."""
    # Where it is Ray that looks for the address, this variable comes before all else.
    told = (os.environ.get("RAY_ADDRESS", "") if address == AUTO else "") or address
    places = places_of(told, schemes=_SCHEMES)
    return why_silent(places) or (why_no_head(*places[0]) if places else "")


def _starter(ray: Any, errand: bytes) -> Callable[[], Any]:  # noqa: ANN401  # as above
    """What begins a worker, with a core for itself and a second thread that says how far it is."""
    remote = ray.remote(worker_class(versions()))
    # A worker that is lost is begun anew by us, who know which shard it had.
    actor = remote.options(num_cpus=1, max_restarts=0, max_task_retries=0, max_concurrency=2)

    def start() -> Any:  # noqa: ANN401  # as above
        return actor.remote(errand)

    return start


@dataclass(slots=True, kw_only=True, eq=False)
class _Hand:
    """A worker, what it was asked to do, and how far it said it is. No `shard`: it begins."""

    actor: Any
    asked: Any
    shard: Shard | None = None
    seen: Any = None


@dataclass(slots=True, kw_only=True)
class _Crew:
    """The workers of a job. Only those that have begun get shards: others may wait for a core."""

    ray: Any
    start: Callable[[], Any]
    ledger: Ledger
    size: int
    hands: list[_Hand] = field(default_factory=list)
    lost_early: int = 0

    def run(self, told: Told, clock: Callable[[], float]) -> Generator[Done]:
        begin_by = clock() + BEGIN_S
        while not told.is_stopped():
            self._fill()
            if not any(hand.shard for hand in self.hands) and not self.ledger.waiting:
                return
            asked = [hand.asked for hand in self.hands]
            ready, _ = self.ray.wait(asked, num_returns=1, timeout=_LOOK_S)
            for hand in [one for one in self.hands if one.asked in ready]:
                done = self._hear(hand)
                if done is not None:
                    yield done
            if any(hand.shard for hand in self.hands):
                begin_by = clock() + BEGIN_S
            elif clock() > begin_by:
                free = self.ray.available_resources().get("CPU", 0)
                msg = f"no worker began within {BEGIN_S:g} s: the cluster has {free:g} cores free"
                raise UnavailableError(msg)
            self._look()

    def close(self) -> None:
        """Stop what runs; it leaves nothing if it has a moment for that."""
        running = [hand for hand in self.hands if hand.shard is not None]
        for hand in running:
            hand.actor.stop.remote()
        if running:
            self.ray.wait(
                [hand.asked for hand in running], num_returns=len(running), timeout=_END_S
            )
        for hand in self.hands:
            self.ray.kill(hand.actor)
        self.hands.clear()

    def _fill(self) -> None:
        """As many workers as there are shards for."""
        beginning = sum(hand.shard is None for hand in self.hands)
        for _ in range(min(self.size - len(self.hands), self.ledger.waiting - beginning)):
            actor = self.start()
            self.hands.append(_Hand(actor=actor, asked=actor.ready.remote()))

    def _hear(self, hand: _Hand) -> Done | None:
        """What a worker answered: that it has begun, what came of its shard, or that it is gone."""
        shard = hand.shard
        try:
            said = self.ray.get(hand.asked)
        except self.ray.exceptions.RayError as error:
            self.hands.remove(hand)
            self._lose(shard, error)
            return None
        done = None
        if shard is not None or said:
            done = self.ledger.finish(msgspec.json.decode(said, type=Outcome))
        hand.shard, hand.seen = self.ledger.take(), None
        if hand.shard is None:
            self.hands.remove(hand)
            self.ray.kill(hand.actor)
        else:
            hand.asked = hand.actor.run.remote(msgspec.json.encode(hand.shard))
        return done

    def _lose(self, shard: Shard | None, error: Exception) -> None:
        # A bug, or a cluster that cannot read what it is sent: not for another worker to try.
        if not isinstance(error, self.ray.exceptions.RayActorError):
            raise WorkerError(f"a worker failed: {one_line(error)}", Code.INTERNAL) from error
        if shard is not None:
            self.ledger.lose(shard, one_line(error))
            return
        self.lost_early += 1
        if self.lost_early > self.size:
            raise UnavailableError(f"workers of Ray end as they begin: {one_line(error)}")

    def _look(self) -> None:
        """Ask those that run how far they are, one question at a time."""
        for hand in self.hands:
            if hand.shard is None:
                continue
            if hand.seen is None:
                hand.seen = hand.actor.seen.remote()
                continue
            ready, _ = self.ray.wait([hand.seen], timeout=0)
            if ready:
                try:
                    seen = msgspec.json.decode(self.ray.get(hand.seen), type=Seen)
                except self.ray.exceptions.RayError:
                    seen = Seen()  # it is gone: what it was asked to do tells
                self.ledger.saw(seen, hand.shard)
                hand.seen = None
