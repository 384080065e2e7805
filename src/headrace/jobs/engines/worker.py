"""A worker of a cluster: checks that it sees what the driver sees, loads the model, runs shards.

An outcome is data, as engines carry exceptions in ways of their own.
"""

import secrets
import socket
import threading
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

import msgspec

from headrace.core import FailedPreconditionError, HeadraceError
from headrace.jobs.engines.errand import Errand, Outcome, Seen
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import Shard
from headrace.jobs.preparing import load_scorer
from headrace.jobs.shard import Hooks, run_shard
from headrace.jobs.sources.opening import open_source
from headrace.jobs.sources.source import Source
from headrace.registry import read_content
from headrace.scoring.scorer import Scorer

_SHOWN: Final = 5


class Worker:
    """Runs shards of one job, one at a time. `seen` and `stop` may be called meanwhile."""

    def __init__(self, errand: Errand, source: Source, scorer: Scorer) -> None:
        self._errand, self._source, self._scorer = errand, source, scorer
        self._stop = threading.Event()
        self._seen = Seen()

    @classmethod
    def open(cls, told: bytes) -> Self:
        """Load what an `Errand` names.

        Raises:
            FailedPreconditionError: The output or the model is not here.
            HeadraceError: The model cannot be loaded, or the input not be opened.
        """
        errand = msgspec.json.decode(told, type=Errand)
        _check_output(errand)
        _check_model(errand)
        told_source = errand.task.source
        _, source = open_source(
            errand.source, kind=told_source.kind, query=told_source.query, key=told_source.key
        )
        return cls(errand, source, load_scorer(errand.task.model))

    def run(self, told: bytes) -> bytes:
        """Run a `Shard`; comes to an `Outcome`, whatever goes wrong with it."""
        shard = msgspec.json.decode(told, type=Shard)
        self._seen = Seen(shard=shard.number)
        hooks = Hooks(
            on_rows=self._on_rows, is_stopped=self._stop.is_set, attempt=secrets.token_hex(4)
        )
        try:
            done = run_shard(self._errand.task, shard, self._source, self._scorer, hooks)
        except HeadraceError as error:
            message = f"worker on {socket.gethostname()}: {error}"
            outcome = Outcome(shard=shard.number, code=error.code, message=message)
        else:
            outcome = Outcome(shard=shard.number, done=done, samples=self._seen.samples)
        return msgspec.json.encode(outcome)

    def seen(self) -> bytes:
        """How far it is, as `Seen`."""
        return msgspec.json.encode(self._seen)

    def stop(self) -> None:
        """Drop the shard under way; none is run after that."""
        self._stop.set()

    def close(self) -> None:
        """Free the model."""
        self._scorer.close()

    def _on_rows(self, rows: int, errors: list[str]) -> None:
        before = self._seen
        self._seen = Seen(
            shard=before.shard,
            rows=before.rows + rows,
            errors=before.errors + len(errors),
            samples=[*before.samples, *errors][:_SHOWN],
        )


@lru_cache(maxsize=1)
def kept_worker(told: bytes) -> Worker:
    """The worker of this process for an errand: the process outlives a task, and nothing else does.

    Raises:
        HeadraceError: As `Worker.open`.
    """
    return Worker.open(told)


def run_kept(told: bytes, shard: bytes) -> bytes:
    """An `Outcome`, from the worker of this process."""
    try:
        worker = kept_worker(told)
    except HeadraceError as error:
        number = msgspec.json.decode(shard, type=Shard).number
        return not_begun(number, error)
    return worker.run(shard)


def not_begun(shard: int, error: HeadraceError) -> bytes:
    """The `Outcome` of a worker that cannot be had here, though the driver could begin."""
    message = f"a worker on {socket.gethostname()} could not begin: {error}"
    return msgspec.json.encode(Outcome(shard=shard, code=error.code, message=message))


def _check_output(errand: Errand) -> None:
    folder = OutputFolder(Path(errand.task.output))
    record = folder.record()
    if record is None or (record.id, record.begun_at) != (errand.run_id, errand.begun_at):
        msg = (
            f"{folder.path} is not the folder that the driver writes to: the output must lie on a "
            "file system that all workers share (NFS, a cluster's own), under the same path"
        )
        raise FailedPreconditionError(msg)


def _check_model(errand: Errand) -> None:
    path = Path(errand.task.model.path)
    try:
        found = str(read_content(path).digest)
    except (OSError, HeadraceError) as error:
        msg = (
            f"the model {path} cannot be read ({error}): it must lie under the same path on all "
            "workers"
        )
        raise FailedPreconditionError(msg) from error
    if found != errand.model_digest:
        msg = (
            f"the model {path} is another than the driver's ({found[:19]}, not "
            f"{errand.model_digest[:19]}): give all workers the same"
        )
        raise FailedPreconditionError(msg)
