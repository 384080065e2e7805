"""How do replicas become pods: images, resources, where they may run, and who scales them?"""

from enum import StrEnum
from typing import Final

import msgspec

USUAL_PROMETHEUS: Final = "http://prometheus-operated.monitoring:9090"
"""Where a cluster's Prometheus is, if nobody says: as its operator calls it."""


class Autoscaler(StrEnum):
    """Who decides how many pods an endpoint with `autoscale` has; never two of them."""

    HEADRACE = "headrace"
    """The control plane writes `replicas`."""
    HPA = "hpa"
    """A HorizontalPodAutoscaler, over a metric of the replicas that some adapter offers."""
    KEDA = "keda"
    """A ScaledObject of KEDA's, over a query to Prometheus."""


class Taint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A taint of nodes that pods put up with; empty fields match all, as Kubernetes has it."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Variable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A variable of a container's environment: `value`, or the `key` of a Secret."""

    name: str
    value: str = ""
    secret: str = ""
    key: str = ""


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one pod asks for (`cpu`, `memory`, as quantities) and may not exceed (`*_limit`).

    `memory_limit` empty is `memory`; `cpu_limit` empty is none, for throttling costs latency.
    `gpus` counts `gpu_resource`.
    """

    cpu: str = "1"
    memory: str = "1Gi"
    cpu_limit: str = ""
    memory_limit: str = ""
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"


class PodSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the pods of an endpoint are like. `image` empty is Headrace's own, of this version."""

    image: str = ""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    resources: Resources = Resources()
    node_selector: dict[str, str] = {}
    tolerations: tuple[Taint, ...] = ()
    env: tuple[Variable, ...] = ()
    service_account: str = ""
    runtime_class: str = ""
    priority_class: str = ""
    annotations: dict[str, str] = {}


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the driver `kubernetes` runs replicas.

    `endpoints` and `pools`: pods of some of them that differ from `pods`, by name.
    `prometheus_url`: whom KEDA asks. `max_rolling_ratio`: how many of all Deployments may replace
    their pods at once.
    """

    pods: PodSettings = PodSettings()
    endpoints: dict[str, PodSettings] = {}
    pools: dict[str, PodSettings] = {}
    autoscaler: Autoscaler = Autoscaler.HEADRACE
    prometheus_url: str = ""
    max_rolling_ratio: float = 0.25

    def pods_of(self, endpoint: str) -> PodSettings:
        """What the pods of an endpoint are like."""
        return self.endpoints.get(endpoint, self.pods)
