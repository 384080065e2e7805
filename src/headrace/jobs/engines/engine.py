"""What an engine is: it runs shards, anywhere and in any order, and says which are done.

Resuming, the manifest, `_SUCCESS` and the limit of errors are none of its business.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.jobs.messages import Done
from headrace.jobs.preparing import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an engine tells and is told while it runs.

    `on_rows`: called from any thread with how many more rows were answered, how many more have
    errors, and some of these; with negative numbers when a worker is lost with what it had done.
    `is_stopped`: asked often; shards under way are dropped then.
    """

    on_rows: Callable[[int, int, Sequence[str]], None]
    is_stopped: Callable[[], bool]


class Engine(Protocol):
    """Runs shards."""

    def shards(self, job: Job, told: Told) -> Generator[Done]:
        """What is left of a job, each shard as it is done; closing it ends what is under way.

        Raises:
            HeadraceError: A shard could not be done, or nothing can be run.
        """
