"""Spec part `kubernetes`: images, resources, nodes and autoscalers of pods."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from msgspec import Meta, field

from headrace.core.spec.part import FileOnly, SpecPart

_QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"
_DNS: Final = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_OPTIONAL_DNS: Final = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"
_LABEL_KEY: Final = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_IMAGE: Final = r"^([a-z0-9][^\s]*)?$"

_Quantity = Annotated[str, Meta(pattern=_QUANTITY, max_length=32)]
_Dns = Annotated[str, Meta(pattern=_DNS)]
_Labels = dict[Annotated[str, Meta(pattern=_LABEL_KEY)], Annotated[str, Meta(pattern=_LABEL_VALUE)]]

USUAL_PROMETHEUS: Final = "http://prometheus-operated.monitoring:9090"
"""Default URL of a cluster's Prometheus: the name that its operator uses."""


class Autoscaler(StrEnum):
    """Component that decides the number of pods of an endpoint with `autoscale`; only one does."""

    HEADRACE = "headrace"
    """The control plane writes `replicas`."""
    HPA = "hpa"
    """A HorizontalPodAutoscaler, over a metric of the replicas from a metrics adapter."""
    KEDA = "keda"
    """A KEDA ScaledObject, over a Prometheus query."""


class ResourcesSpec(SpecPart, frozen=True, kw_only=True):
    """Requests and limits of one pod."""

    cpu: _Quantity = "1"
    """CPU request. Unit: cores, as a quantity."""
    memory: _Quantity = "1Gi"
    """Memory request. Unit: bytes, as a quantity."""
    cpu_limit: Annotated[str, FileOnly(null=True, pattern=_QUANTITY, max_length=32)] = ""
    """Null for no limit: throttling adds latency."""
    memory_limit: Annotated[str, FileOnly(null=True, pattern=_QUANTITY, max_length=32)] = ""
    """Null for the value of `memory`."""
    gpus: Annotated[int, Meta(ge=0, le=64)] = 0
    """Unit: devices."""
    gpu_resource: Annotated[str, Meta(pattern=_LABEL_KEY)] = "nvidia.com/gpu"
    """Resource name of a device in the cluster."""


class TolerationSpec(SpecPart, frozen=True, kw_only=True):
    """A node taint that pods tolerate."""

    key: Annotated[str, Meta(max_length=317)] = ""
    """Key of the taint; empty with `Exists` for every taint."""
    operator: Annotated[str, Meta(pattern=r"^(Equal|Exists)$")] = "Equal"
    """Equal or Exists."""
    value: Annotated[str, Meta(pattern=_LABEL_VALUE)] = ""
    """With `Equal` only."""
    effect: Annotated[str, Meta(pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)?$")] = ""
    """NoSchedule, PreferNoSchedule or NoExecute; empty for all."""

    def __post_init__(self) -> None:
        if self.operator == "Exists" and self.value:
            raise ValueError("'value' is not allowed with operator Exists; remove it")
        if self.operator == "Equal" and not self.key:
            raise ValueError("needs 'key', or operator Exists to match every taint")


class VariableSpec(SpecPart, frozen=True, kw_only=True):
    """A variable in the replicas' environment: a value, or a key of a Secret."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")]
    """Name of the variable."""
    value: Annotated[str, Meta(max_length=65536)] | None = None
    """Literal value; not for secrets."""
    secret: _Dns | None = None
    """Secret that contains the value."""
    key: Annotated[str, Meta(pattern=r"^[-._a-zA-Z0-9]{1,253}$")] | None = None
    """Its key in the Secret."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.secret is None):
            raise ValueError("needs either 'value', or 'secret' and 'key'")
        if (self.secret is None) != (self.key is None):
            raise ValueError("'secret' and 'key' must be set together")


class PodsSpec(SpecPart, frozen=True, kw_only=True):
    """Pod template of replicas."""

    image: Annotated[str, Meta(max_length=512, pattern=_IMAGE)] = ""
    """Image with tag or digest; empty for headrace/replica of this version."""
    pull_policy: Annotated[str, Meta(pattern=r"^(Always|IfNotPresent|Never)$")] = "IfNotPresent"
    """Always, IfNotPresent or Never."""
    pull_secrets: Annotated[tuple[_Dns, ...], Meta(max_length=16)] = ()
    """Secrets for pulling the image."""
    resources: ResourcesSpec = ResourcesSpec()
    """See ResourcesSpec."""
    node_selector: _Labels = field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[tuple[TolerationSpec, ...], Meta(max_length=64)] = ()
    """See TolerationSpec."""
    replica_env: Annotated[tuple[VariableSpec, ...], Meta(max_length=256)] = ()
    """The replicas' environment. See VariableSpec."""
    service_account: Annotated[str, Meta(pattern=_OPTIONAL_DNS)] = ""
    """Service account; empty for the namespace's default."""
    runtime_class: Annotated[str, Meta(pattern=_OPTIONAL_DNS)] = ""
    """Runtime class, such as nvidia."""
    priority_class: Annotated[str, Meta(pattern=_OPTIONAL_DNS)] = ""
    """Priority class; empty for none."""
    pod_annotations: dict[
        Annotated[str, Meta(pattern=_LABEL_KEY)], Annotated[str, Meta(max_length=65536)]
    ] = field(default_factory=dict)
    """Annotations for other tools."""


class KubernetesSpec(PodsSpec, frozen=True, kw_only=True):
    """How replicas run on a Kubernetes cluster; the driver `local` ignores it."""

    autoscaler: Autoscaler = Autoscaler.HEADRACE
    """Component that scales endpoints with `autoscale`: headrace, hpa or keda."""
    prometheus_url: Annotated[str, Meta(pattern=r"^(https?://[^\s]+)?$", max_length=2048)] = ""
    """Prometheus server that KEDA queries."""
    max_rolling_ratio: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.25
    """Share of all Deployments that may replace their pods at once, for example for a new image; at
    least one. Deployments that do not become ready count, and delay the others. Unit: ratio.
    """
    endpoints: Annotated[dict[str, PodsSpec], Meta(max_length=10000)] = field(default_factory=dict)
    """Pods of single endpoints, by name; they replace the defaults completely. See PodsSpec."""
    pools: Annotated[dict[str, PodsSpec], Meta(max_length=1024)] = field(default_factory=dict)
    """Pods of single pools, by name; they replace the defaults completely. A pool without an entry
    has the memory of the default pods plus its `memory_bytes`. See PodsSpec.
    """

    def __post_init__(self) -> None:
        if self.autoscaler is Autoscaler.KEDA and not self.prometheus_url:
            raise ValueError("autoscaler keda needs 'prometheus_url'")

    def pods_of(self, endpoint: str) -> PodsSpec:
        """Return the pod template of an endpoint."""
        return self.endpoints.get(endpoint, self)


def kubernetes_disagreements(document: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield location and message of disagreements between `kubernetes` and endpoints or pools."""
    block = document.get("kubernetes")
    if not isinstance(block, Mapping):
        return
    for kind, description in (("endpoints", "endpoint"), ("pools", "pool")):
        entries = [entry for entry in _items(document.get(kind)) if isinstance(entry, Mapping)]
        named = {entry.get("name") for entry in entries}
        own = block.get(kind)
        for name in own if isinstance(own, Mapping) else ():
            if name not in named:
                yield f"kubernetes.{kind}.{name}", f"there is no {description} {name!r}"
    if (scaler := block.get("autoscaler")) in {Autoscaler.HPA, Autoscaler.KEDA}:
        for i, endpoint in enumerate(_items(document.get("endpoints"))):
            scale = endpoint.get("autoscale") if isinstance(endpoint, Mapping) else None
            if isinstance(scale, Mapping):
                path = f"endpoints[{i}].autoscale"
                yield from (
                    (f"{path}{field}", message)
                    for field, message in _not_applicable(scale, str(scaler))
                )


def _not_applicable(scale: Mapping[Any, Any], scaler: str) -> Iterator[tuple[str, str]]:
    """Yield settings that external autoscalers do not support."""
    if scale.get("target_in_flight") is None:
        yield "", f"autoscaler {scaler} cannot derive a target: set 'target_in_flight'"
    if scale.get("min_replicas") == 0:
        message = f"autoscaler {scaler} cannot scale up from zero on a held request: use 1 or more"
        yield ".min_replicas", message
    if scale.get("schedule"):
        yield (
            ".schedule",
            f"autoscaler {scaler} does not support this setting; only autoscaler headrace does",
        )
    if scaler == Autoscaler.HPA and scale.get("target_queue_wait_s") is not None:
        yield ".target_queue_wait_s", "autoscaler hpa supports only 'target_in_flight'"


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
