"""What would a textbook test have said, read as often? For comparison only; it decides nothing.

The two-proportion z test keeps its level when it is read once, at a sample size fixed in advance.
Read at every second it gets a new chance to be wrong each time.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import Array


def z_test_rejects(
    candidate: tuple[Array, Array], baseline: tuple[Array, Array], *, level: float
) -> NDArray[np.bool_]:
    """Whether two rates differ by a two-sided z test with pooled variance.

    Args:
        candidate: Its yes and all so far, `[runs]`.
        baseline: As above.
        level: Of one reading.
    """
    (yes_b, all_b), (yes_a, all_a) = candidate, baseline
    both = (all_a > 0) & (all_b > 0)
    n_a, n_b = np.maximum(all_a, 1.0), np.maximum(all_b, 1.0)
    pooled = (yes_a + yes_b) / (n_a + n_b)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    z = np.abs(yes_b / n_b - yes_a / n_a)
    result: NDArray[np.bool_] = both & (z > NormalDist().inv_cdf(1 - level / 2) * spread)
    return result
