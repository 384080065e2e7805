"""What the windows of a search say of each candidate. Pure."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from headrace.optimize.search.journal import FINAL
from headrace.optimize.search.state import State
from headrace.optimize.timing import Timing, summarize

COLD: Final = "cold"
"""The group of windows in which caches hold nothing of the model."""


class Timings:
    """Sums up groups of windows, each once for as many windows as it has."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[str, tuple[int, Mapping[str, Timing]]] = {}

    def alone(self, state: State) -> dict[str, Timing]:
        """Each candidate that was timed with the baseline only, and the baseline."""
        found: dict[str, Timing] = {}
        for group in state.windows:
            if group in {FINAL, COLD}:
                continue
            timings = self._of(state, group)
            if state.baseline in timings:
                found.setdefault(state.baseline, timings[state.baseline])
                found |= {name: timings[name] for name in (group,) if name in timings}
        return found

    def final(self, state: State) -> Mapping[str, Timing]:
        """The finalists together; none before they were compared."""
        return self._of(state, FINAL) if FINAL in state.windows else {}

    def cold(self, state: State) -> Mapping[str, Timing]:
        """The chosen one and the baseline, with cold caches."""
        return self._of(state, COLD) if COLD in state.windows else {}

    def _of(self, state: State, group: str) -> Mapping[str, Timing]:
        windows = state.windows[group]
        count, found = self._known.get(group, (0, {}))
        if count != len(windows):
            rng = np.random.default_rng(self._seed)
            has_baseline = any(w.readings for w in windows if w.name == state.baseline)
            found = summarize(windows, baseline=state.baseline, rng=rng) if has_baseline else {}
            self._known[group] = (len(windows), found)
        return found
