"""Has the candidate turned worse since some moment, whatever it was before?

Evidence over a whole rollout gives a version that fails after a good half hour the benefit of that
half hour: the bold gamblers of `betting` have lost their capital by then. So new ones enter once a
minute, with a part of the first capital that was put aside for them: 1 / (k (k + 1)) of it for the
`k`-th. All capital together is still one that nobody expects to win while the null is true, at any
time. Such a mixture over the moment of change goes back to Shiryaev; Shin, Ramdas and Rinaldo,
"E-detectors", 2023 (arXiv 2203.03532) have it with bets.

The null is that the difference was within what is tolerated all the time. The worst intervals since
the start do not count (`forgiving`).
"""

from typing import Final

import msgspec
import numpy as np

from headrace.rollout.betting import STAKES, WEIGHTS, Array, log_growth
from headrace.rollout.forgiving import FORGIVEN, grown
from headrace.rollout.rate_difference import CELLS, Stratum

_ENTRY_S: Final = 60.0
_FORGETS_A_SECOND: Final = 0.97


class Turn(msgspec.Struct):
    """Differences against what is tolerated, `[tests]`, with late starts.

    `capitals`: logarithms of what has entered, by how many intervals are left out, `[tests, stakes,
    1 + forgiven]`. `lately`: fading counts of the last half minute or so, in the cells of
    `rate_difference`, `[tests, cells]`.
    """

    tolerated: float
    capitals: Array
    lately: Array
    entered: int = 0
    counted_s: float = 0.0
    part: float = 1.0

    @classmethod
    def start(cls, tests: int, tolerated: float) -> "Turn":
        """Nothing counted yet."""
        return cls(
            tolerated=tolerated,
            capitals=np.full((tests, len(STAKES), 1 + FORGIVEN), -np.inf),
            lately=np.zeros((tests, CELLS)),
        )

    def add(
        self,
        share: float,
        candidate: tuple[Array, Array],
        baseline: tuple[Array, Array],
        *,
        duration_s: float,
    ) -> None:
        """Count one interval, as in `RateDifferences`; the stakes are those of before it."""
        if not 0.0 < share < 1.0:
            return
        while self.counted_s >= _ENTRY_S * self.entered:
            self.entered += 1
            entry = np.log(WEIGHTS / (self.entered * (self.entered + 1)))
            self.capitals = np.logaddexp(self.capitals, entry[:, None])
        (yes_b, all_b), (yes_a, all_a) = candidate, baseline
        cells = np.stack([yes_b, all_b - yes_b, yes_a, all_a - yes_a], axis=-1).astype(float)
        stratum = Stratum(share, 0, cells)
        growth = log_growth(stratum.values(), stratum.scale, np.asarray(self.tolerated), above=True)
        self.capitals = grown(self.capitals, self.part * (cells @ growth))
        self.lately = self.lately * _FORGETS_A_SECOND**duration_s + cells
        self.counted_s += duration_s

    def log_evidence(self) -> Array:
        """The logarithm of the evidence against "never worse than tolerated", `[tests]`."""
        aside = -np.log(self.entered + 1.0)
        evidence: Array = np.logaddexp(aside, np.logaddexp.reduce(self.capitals[..., -1], axis=-1))
        return evidence

    def rates_lately(self) -> tuple[float, float]:
        """The first test's rates of the last half minute: candidate's, baseline's."""
        yes_b, no_b, yes_a, no_a = self.lately[0]
        return float(yes_b / max(yes_b + no_b, 1e-12)), float(yes_a / max(yes_a + no_a, 1e-12))
