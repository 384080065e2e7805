"""What is known of each candidate, by the journal. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from headrace.optimize.accuracy import Fidelity, Verdict
from headrace.optimize.search.journal import (
    FINAL,
    Begun,
    Built,
    Compared,
    Ended,
    Event,
    Failed,
    Judged,
    Mixed,
    Said,
    Scored,
    Started,
    Timed,
    Unbatched,
    Weighed,
    Wrote,
)
from headrace.optimize.timing import Window

OF_SEVERAL: Final = frozenset({"compare", "mix", "write"})
"""Steps that are of no single candidate."""


@dataclass(slots=True)
class Tried:
    """One candidate, or a recipe that made none.

    `failed`: why it was given up. `verdict`: after all examples were asked, or enough to give it
    up; `screened`: after the first ones, until then. `unbatched`: it runs requests one at a time
    where the source runs batches.
    """

    name: str
    title: str
    built: Built | None = None
    failed: str = ""
    verdict: Verdict | None = None
    screened: Verdict | None = None
    fidelity: Fidelity | None = None
    memory_bytes: int | None = None
    load_s: float | None = None
    unbatched: Unbatched | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it is there to be compared with only."""
        return self.built is not None and self.built.is_reference

    @property
    def is_judged(self) -> bool:
        """Whether its answers were looked at."""
        return self.verdict is not None or self.fidelity is not None

    @property
    def passes_so_far(self) -> bool:
        """Whether it was not fully judged, and loses no more than it may in what was asked."""
        known = self.screened is not None and self.screened.passes
        return known and not self.is_judged and not self.failed

    @property
    def is_accepted(self) -> bool:
        """Whether it was judged, and loses no more than it may."""
        judged = self.verdict or self.fidelity
        return not self.failed and judged is not None and judged.passes


@dataclass(slots=True)
class State:
    """A search so far.

    `windows`: by group. `begun`: the step that has not ended. `ended`: recipes that are done.
    `at_s`: seconds that it took, over all its processes. `problems`: why steps of several
    candidates were given up.
    """

    started: Started | None = None
    scored: Scored | None = None
    baseline: str = ""
    tried: dict[str, Tried] = field(default_factory=dict)
    windows: dict[str, list[Window]] = field(default_factory=dict)
    begun: Begun | None = None
    ended: set[str] = field(default_factory=set)
    wrote: Wrote | None = None
    mixed: Mixed | None = None
    at_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def apply(self, event: Event) -> None:  # noqa: C901, PLR0912  # one case for each event
        """Take in what happened."""
        self.at_s = max(self.at_s, event.at_s)
        match event:
            case Started():
                self.started = event
            case Begun():
                self.begun = event
            case Built():
                self.tried[event.name] = Tried(event.name, event.title, event)
                if event.is_baseline and not self.baseline:
                    self.baseline = event.name
            case Failed():
                self._failed(event)
            case Ended():
                self.ended.add(event.name)
                self.begun = None
            case Timed():
                self.windows.setdefault(event.group, []).append(event.window)
                self.begun = None if event.group == FINAL else self.begun
            case Unbatched():
                self.tried[event.name].unbatched = event
            case Judged():
                tried, self.begun = self.tried[event.name], None
                if event.is_part:
                    tried.screened = event.verdict
                else:
                    tried.verdict = event.verdict
            case Compared():
                self.tried[event.name].fidelity, self.begun = event.fidelity, None
            case Scored():
                self.scored, self.begun = event, None
            case Weighed():
                tried = self.tried[event.name]
                tried.memory_bytes, tried.load_s = event.memory_bytes, event.load_s
                self.begun = None
            case Mixed():
                self.mixed, self.begun = event, None
            case Wrote():
                self.wrote, self.begun = event, None
            case Said():
                pass

    def _failed(self, event: Failed) -> None:
        """Give up a recipe, a candidate, or a step that was of several candidates."""
        step = self.begun.step if self.begun is not None else ""
        self.begun = None
        if step in OF_SEVERAL:
            self.ended.add(step)
            self.problems.append(event.reason)
            return
        tried = self.tried.setdefault(event.name, Tried(event.name, event.title))
        tried.failed = event.reason
        self.ended.add(event.name)


def state_of(events: Iterable[Event]) -> State:
    """The state after these events."""
    state = State()
    for event in events:
        state.apply(event)
    return state
