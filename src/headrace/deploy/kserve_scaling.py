"""How does KServe scale an endpoint? Bounds and target, and what Knative is told beside them."""

import math
from typing import Final

from headrace.core.spec_scale import AutoscaleSpec
from headrace.deploy.export import Body
from headrace.deploy.facts import Endpoint, Version

_LONGEST_WINDOW_S: Final = 3600
_SHORTEST_WINDOW_S: Final = 6
_KNATIVE: Final = "autoscaling.knative.dev"


def replicas_of(endpoint: Endpoint, version: Version) -> Body:
    """How many copies a service has, and by what it scales."""
    scaling = endpoint.spec.autoscale
    if scaling is None:
        return {"minReplicas": version.replicas, "maxReplicas": version.replicas}
    found: Body = {"minReplicas": scaling.min_replicas, "maxReplicas": scaling.max_replicas}
    if scaling.target_in_flight is not None:
        found["scaleMetric"] = "concurrency"
        found["scaleTarget"] = max(math.floor(scaling.target_in_flight), 1)
    return found


def annotations_of(scaling: AutoscaleSpec) -> dict[str, str]:
    """Knative's autoscaler, as far as one revision may tell it."""
    window = _bounded(scaling.stable_window_s, _SHORTEST_WINDOW_S, _LONGEST_WINDOW_S)
    panic_percent = _bounded(100 * scaling.panic_window_s / window, 1, 100)
    panic_from = _bounded(scaling.panic_ratio * 100, 110, 1000)
    delay = _bounded(scaling.scale_down_delay_s, 0, _LONGEST_WINDOW_S)
    return {
        f"{_KNATIVE}/window": f"{window}s",
        f"{_KNATIVE}/panic-window-percentage": f"{panic_percent}.0",
        f"{_KNATIVE}/panic-threshold-percentage": f"{panic_from}.0",
        f"{_KNATIVE}/scale-down-delay": f"{delay}s",
        f"{_KNATIVE}/scale-to-zero-pod-retention-period": f"{round(scaling.idle_s)}s",
    }


def _bounded(value: float, least: int, most: int) -> int:
    return min(max(round(value), least), most)
