"""Bounds on how far a gateway may be behind, and on how long a leaving replica answers."""

import math
from typing import Final

MAX_BEHIND_S: Final = 10.0
"""How long replicas are kept for a gateway that does not take new routes, by default."""

_NOTICE_S: Final = 5
"""Until the control plane knows that a pod leaves, and has made routes without it."""


def pre_stop_s(max_behind_s: float = MAX_BEHIND_S) -> int:
    """For how long a pod that was told to end still answers, in whole seconds.

    The routes without it are there after a moment, and a gateway may take them `max_behind_s`
    later: until then it sends requests there.
    """
    return math.ceil(max_behind_s) + _NOTICE_S
