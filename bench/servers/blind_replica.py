"""A replica that keeps no histograms: what a request takes without them.

Everything else, Triton's counters included, is as it is.
"""

import sys

from headrace.observe import Histogram
from headrace.serving.__main__ import main


def _observe(_histogram: Histogram, _value: float, _count: int = 1) -> int:
    return 0


if __name__ == "__main__":
    Histogram.observe = _observe  # type: ignore[method-assign]  # before anything is observed
    sys.exit(main(sys.argv[1:]))
