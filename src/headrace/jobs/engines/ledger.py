"""Which shards are to be run, and what of each was told: decisions, without a cluster."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from headrace.core import Code, HeadraceError
from headrace.jobs.engines.engine import Told
from headrace.jobs.engines.errand import Outcome, Seen, WorkerError
from headrace.jobs.messages import Done, Shard

TRIES: Final = 4
"""Workers that may be lost over one shard; a shard that ends more is likely the reason."""


class WorkersLostError(HeadraceError):
    """Every worker that had this shard was lost."""

    code = Code.UNAVAILABLE

    def __init__(self, shard: Shard, why: str) -> None:
        super().__init__(
            f"{TRIES} workers were lost over shard {shard.number} ({shard.file}), the last with: "
            f"{why}. It may need more memory than they have: smaller --shard-rows or --memory in "
            "another folder; or --resume when the cluster is well"
        )
        self.shard = shard.number


class Ledger:
    """What is left, what is under way, and how many rows of each shard were told.

    Every row is told once, whenever it is seen and whoever answers it in the end.
    """

    def __init__(self, shards: Iterable[Shard], told: Told) -> None:
        self._todo = deque(shards)
        self._told = told
        self._lost: dict[int, int] = {}
        self._seen: dict[int, Seen] = {}

    @property
    def waiting(self) -> int:
        """How many wait for a worker."""
        return len(self._todo)

    def take(self) -> Shard | None:
        """The next one to run; None if there is none."""
        return self._todo.popleft() if self._todo else None

    def saw(self, seen: Seen, shard: Shard) -> None:
        """A worker said how far it is; of another shard than it has now, it says nothing."""
        if seen.shard == shard.number:
            self._tell(seen)

    def finish(self, outcome: Outcome) -> Done | None:
        """The line of the manifest; None for a shard that was stopped.

        Raises:
            WorkerError: It could not be done.
        """
        if outcome.done is None:
            if outcome.code is Code.CANCELLED:
                return None
            raise WorkerError(outcome.message, outcome.code)
        done = outcome.done
        self._tell(
            Seen(shard=done.shard, rows=done.rows, errors=done.errors, samples=outcome.samples)
        )
        self._seen.pop(done.shard)
        return done

    def lose(self, shard: Shard, why: str) -> None:
        """Its worker is gone: it comes next.

        Raises:
            WorkersLostError: It was lost too often.
        """
        self._tell(Seen(shard=shard.number))
        del self._seen[shard.number]
        self._lost[shard.number] = self._lost.get(shard.number, 0) + 1
        if self._lost[shard.number] >= TRIES:
            raise WorkersLostError(shard, why)
        self._todo.appendleft(shard)

    def _tell(self, seen: Seen) -> None:
        before = self._seen.get(seen.shard, Seen())
        self._seen[seen.shard] = seen
        rows, errors = seen.rows - before.rows, seen.errors - before.errors
        if rows or errors:
            self._told.on_rows(rows, errors, seen.samples[len(before.samples) :])
