"""Bounds of a gateway's delay and of how long a terminating replica still answers."""

import math
from typing import Final

MAX_BEHIND_S: Final = 10.0
"""Default time for which replicas are kept for a gateway that does not accept new routes."""

_NOTICE_S: Final = 5
"""Time until the control plane has noticed a terminating pod and published routes without it."""


def pre_stop_s(max_behind_s: float = MAX_BEHIND_S) -> int:
    """Return for how long a terminating pod still answers, in whole seconds.

    Routes without the pod are published after a moment, and a gateway may apply them `max_behind_s`
    later: until then it sends requests to the pod.
    """
    return math.ceil(max_behind_s) + _NOTICE_S
