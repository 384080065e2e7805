"""What the steps of a search share: the journal, the candidates, the measuring."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import SystemClock
from headrace.optimize.candidate import Candidate
from headrace.optimize.search.asked import SearchRequest
from headrace.optimize.search.journal import Built, Event, Failed, Journal, Said, Timed
from headrace.optimize.search.materials import Materials, callers
from headrace.optimize.search.state import State
from headrace.optimize.search.timings import Timings
from headrace.optimize.timing import Contender, ProcStat, TimingSettings, Window, measure
from headrace.runtimes import LoadOptions, Model, load_model

_MAX_REASON: Final = 400


@dataclass(slots=True, kw_only=True)
class Run:
    """One process's part of a search. `kept` holds what stays loaded, and is closed by its owner.

    `materials`: set once they were read.
    """

    request: SearchRequest
    folder: Path
    journal: Journal
    state: State
    kept: contextlib.ExitStack
    materials: Materials = field(init=False)
    timings: Timings = field(init=False)
    rng: np.random.Generator = field(init=False)
    cores: int = field(init=False)
    _before_s: float = field(init=False)
    _began: float = field(init=False)
    _base: Model | None = None
    _pools: dict[int, ThreadPoolExecutor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.timings = Timings(self.request.seed)
        self.rng = np.random.default_rng(self.request.seed)
        self.cores = len(os.sched_getaffinity(0))
        self._before_s = self.state.at_s
        self._began = time.monotonic()

    def now_s(self) -> float:
        """For how long the search has run, over all its processes."""
        return self._before_s + time.monotonic() - self._began

    def deadline(self, at_s: float) -> float:
        """The monotonic time at which the search will have run so long."""
        return self._began - self._before_s + at_s

    def record(self, event: Event) -> None:
        """Keep what happened."""
        self.journal.write(event)
        self.state.apply(event)

    def say(self, text: str) -> None:
        """Tell people what goes on."""
        self.record(Said(at_s=self.now_s(), text=text))

    def give_up(self, name: str, title: str, error: BaseException) -> None:
        """Try a recipe or a candidate no more."""
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        self.record(Failed(at_s=self.now_s(), name=name, title=title, reason=reason))

    def built(self, name: str) -> Built:
        """What is known of a candidate that was made."""
        built = self.state.tried[name].built
        assert built is not None, "it was made"
        return built

    def path(self, built: Built) -> Path:
        """Where a candidate lies."""
        return self.folder / built.path

    def candidate(self, name: str) -> Candidate:
        """A candidate that was made."""
        built = self.built(name)
        return Candidate(
            name=built.name,
            title=built.title,
            runtime=built.runtime,
            path=self.path(built),
            tuning=built.tuning,
            recipe=built.recipe,
        )

    @contextlib.contextmanager
    def loaded(self, name: str) -> Iterator[Model]:
        """A candidate; the baseline, which is needed again and again, stays loaded."""
        if name != self.state.baseline:
            with self._opened(name) as model:
                yield model
            return
        if self._base is None:
            self._base = self.kept.enter_context(self._opened(name))
        yield self._base

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Model]:
        built = self.built(name)
        options = LoadOptions(
            device="cpu", intra_op_threads=self.request.threads, tuning=built.tuning
        )
        model = load_model(self.path(built), built.runtime, options)
        try:
            yield model
        finally:
            model.close()

    def contender(self, name: str, model: Model) -> Contender:
        """A candidate, or the baseline again, as it is timed.

        Those with as many threads inside a run share the threads that call them.
        """
        tried = self.state.tried.get(name)
        tuned = tried.built.tuning.intra_op_threads if tried and tried.built else None
        most = callers(tuned or self.request.threads)
        if most not in self._pools:
            self._pools[most] = self.kept.enter_context(ThreadPoolExecutor(most))
        return Contender(name=name, run=self.materials.load_of(model, self._pools[most]))

    def threads_for(self, model: Model) -> int:
        """How many callers may ask it at once."""
        return self.cores if model.concurrent else 1

    def measure(
        self,
        contenders: Sequence[Contender],
        settings: TimingSettings,
        *,
        group: str,
        until: float,
    ) -> list[Window]:
        """Windows, which are kept in the journal where they belong to a group.

        Args:
            until: Monotonic time.
        """
        before = self.state.windows.get(group, ())
        return measure(
            contenders,
            settings=settings,
            until=until,
            clock=SystemClock(),
            cpu=ProcStat(),
            rng=self.rng,
            on_window=lambda window: self._keep(group, window),
            first_block=max((window.block for window in before), default=-1) + 1,
        )

    def _keep(self, group: str, window: Window) -> None:
        if group:
            self.record(Timed(at_s=self.now_s(), group=group, window=window))
