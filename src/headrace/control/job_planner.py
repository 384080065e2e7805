"""Planner of scheduled runs: which ones this control plane begins, and which it takes over.

Two control planes on one database do not ask each other. A moment is started by whoever moves the
job's mark over it, in one transaction. A run belongs to whoever took it last: its `fence` is
higher. An owner is gone if its run's `beat` did not change for `LEASE_S` of the *watcher's* own
monotonic clock, so no clock is compared with another.
"""

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.control.faults import Faults
from headrace.control.job_plan import Planned, jobs_of, planned, takeable
from headrace.control.job_records import JobRun, JobsLook
from headrace.control.ownership import claim
from headrace.control.state.store import Store
from headrace.core.spec_jobs import JobSpec

LEASE_S: Final = 20.0
"""An owner that gave no sign of life for so long is gone."""
IDLE_S: Final = 30.0
"""Where there is neither a job nor a run, only the spec's generation is asked for so long."""
AT_ONCE: Final = 2
"""Runs that one control plane has under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step did. `begun`: what belongs to this control plane now, to be carried out."""

    look: JobsLook
    jobs: Mapping[str, JobSpec]
    planned: Sequence[Planned] = ()
    begun: Sequence[JobRun] = ()


@dataclass(slots=True, kw_only=True)
class Planner:
    """Decides for one control plane; for one thread at a time.

    `owner`: its name, of this process alone. `home`: what the names of all that ever ran in its
    home begin with: only one runs there at a time, so runs of the others are free at once.
    """

    store: Store
    owner: str
    home: str = ""
    faults: Faults = field(default_factory=Faults)
    _generation: int = -1
    _jobs: dict[str, JobSpec] = field(default_factory=dict)
    _nothing: tuple[JobsLook, float] | None = None
    """The last look and its time, where it found nothing: most systems have no jobs."""
    _seen: dict[str, tuple[tuple[str, int, int], float]] = field(default_factory=dict)
    """Of runs of others: owner, fence and beat, and since when they are so, by our clock."""

    @classmethod
    def of_home(cls, home: Path, *, store: Store, faults: Faults) -> "Planner":
        """The planner of a home, with a name of it and one of this process. Blocking."""
        name = f"{socket.gethostname()}:{claim(home).id}"
        owner = f"{name}/{secrets.token_hex(4)}"
        return cls(store=store, owner=owner, home=name, faults=faults)

    async def step(self, *, now: float, monotonic: float, mine: frozenset[str]) -> Step:
        """Start what is due, and take what nobody carries out.

        Args:
            mine: Runs that this control plane carries out.

        Raises:
            HeadraceError: The database cannot be used; nothing is half done.
        """
        if (nothing := await self._still_nothing(monotonic)) is not None:
            return Step(look=nothing, jobs={})
        look = await self._look()
        self._nothing = None if self._jobs or look.open else (look, monotonic)
        done = []
        for job in self._jobs.values():
            wish = None
            with self.faults.contain("job plan", job.name):
                wish = planned(job, look, now=now)
            if wish is not None and await self.store.jobs.advance(wish.mark, wish.runs):
                done.append(wish)
        if done:
            look = await self._look()
        dead = self._dead(look.open, monotonic, mine)
        room = AT_ONCE - len(mine)
        others = [run for run in look.open if run.id not in mine]
        taken = [
            await self.store.jobs.take(run, self.owner)
            for run in takeable(others, now=now, dead=dead, room=room)
        ]
        begun = [run for run in taken if run is not None]
        return Step(look=look, jobs=dict(self._jobs), planned=done, begun=begun)

    async def read(self) -> Step:
        """What there is; nothing is done."""
        look = await self._look()
        return Step(look=look, jobs=dict(self._jobs))

    async def _still_nothing(self, monotonic: float) -> JobsLook | None:
        """The last look if it found nothing and still holds."""
        if self._nothing is None or monotonic - self._nothing[1] >= IDLE_S:
            return None
        same = await self.store.jobs.generation() == self._generation
        return self._nothing[0] if same else None

    async def _look(self) -> JobsLook:
        """What there is, and the jobs that are wanted: the database's, whoever applied them."""
        look = await self.store.jobs.look()
        if look.generation != self._generation:
            state = await self.store.load()
            self._jobs, self._generation = jobs_of(state.spec), state.generation
        return look

    def _dead(
        self, runs: Sequence[JobRun], monotonic: float, mine: frozenset[str]
    ) -> frozenset[tuple[str, int]]:
        """The ids and fences of runs whose owners are gone."""
        signs = {r.id: (r.owner, r.fence, r.beat) for r in runs if r.owner and r.id not in mine}
        self._seen = {
            id_: self._seen[id_]
            if id_ in self._seen and self._seen[id_][0] == sign
            else (sign, monotonic)
            for id_, sign in signs.items()
        }
        return frozenset(
            (id_, sign[1])
            for id_, (sign, since) in self._seen.items()
            if monotonic - since >= LEASE_S or self._is_former(sign[0])
        )

    def _is_former(self, owner: str) -> bool:
        """Whether it is of this home's past, or this process' own that it gave up."""
        return owner == self.owner or bool(self.home and owner.startswith(f"{self.home}/"))
