"""Spec part `kubernetes`: images, resources, nodes and autoscalers of pods."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, field

from headrace.core.devices import GPUS
from headrace.core.spec.part import FileOnly, SpecPart
from headrace.core.spec.pod_template import check_label_key, check_patch

_QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"
_DNS: Final = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_OPTIONAL_DNS: Final = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"
_LABEL_KEY: Final = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_IMAGE: Final = r"^([a-z0-9][^\s]*)?$"
_VOLUME_PATH: Final = r"^[^/\s][^\s]*$"

_Quantity = Annotated[str, Meta(pattern=_QUANTITY, max_length=32)]
_Dns = Annotated[str, Meta(pattern=_DNS)]
_Labels = dict[Annotated[str, Meta(pattern=_LABEL_KEY)], Annotated[str, Meta(pattern=_LABEL_VALUE)]]
_PodLabels = dict[
    Annotated[str, Meta(pattern=_LABEL_KEY), check_label_key],
    Annotated[str, Meta(pattern=_LABEL_VALUE)],
]

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
    gpus: Annotated[int, Meta(ge=0, le=64)] | None = None
    """Unit: devices; null for 1 if the endpoint's `device` is a GPU, else 0."""
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


class ModelVolumeSpec(SpecPart, frozen=True, kw_only=True):
    """A volume that has the models already: a claim, or an OCI image (Kubernetes 1.35)."""

    claim: Annotated[str, Meta(pattern=_OPTIONAL_DNS)] = ""
    """PersistentVolumeClaim, mounted read-only."""
    image: Annotated[str, Meta(max_length=512, pattern=_IMAGE)] = ""
    """OCI image or artifact, pulled like the pods' image; placeholders as in `path`, but `{file}`.
    """
    path: Annotated[str, Meta(max_length=1024, pattern=_VOLUME_PATH)] = "{model}/{version}/{file}"
    """File or directory of the model in the volume. `{endpoint}`, `{model}`, `{version}`, `{file}`
    and `{digest}` (64 hexadecimal digits) are replaced.
    """

    def __post_init__(self) -> None:
        if bool(self.claim) == bool(self.image):
            raise ValueError("needs either 'claim' or 'image'")
        if ".." in self.path.split("/"):
            raise ValueError("'path' must not contain '..'")


class NodeCacheSpec(SpecPart, frozen=True, kw_only=True):
    """A volume that keeps downloaded models, so that another pod need not download them."""

    path: Annotated[str, Meta(max_length=1024, pattern=r"^(/[^\s]+)?$")] = ""
    """Directory on each node that user 65532 can write to. The Pod Security Standards `baseline`
    and `restricted` do not allow it.
    """
    claim: Annotated[str, Meta(pattern=_OPTIONAL_DNS)] = ""
    """PersistentVolumeClaim with access mode ReadWriteMany."""

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.claim):
            raise ValueError("needs either 'path' or 'claim'")


class PodsSpec(SpecPart, frozen=True, kw_only=True):
    """Pod template of replicas."""

    image: Annotated[str, Meta(max_length=512, pattern=_IMAGE)] = ""
    """Image with tag or digest; empty for the one of this version in `--image-registry` that fits
    the model's runtime and device.
    """
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
    pod_labels: _PodLabels = field(default_factory=dict)
    """Labels for other tools, such as a queue or a cost centre."""
    shm_size: Annotated[str, FileOnly(null=True, pattern=_QUANTITY, max_length=32)] = ""
    """Size of `/dev/shm`, which counts as memory of the pod; null for the node's default, 64 MiB.
    Unit: bytes, as a quantity.
    """
    model_volume: ModelVolumeSpec | None = None
    """Volume that has the models already, not of pools; null downloads them from the store. See
    ModelVolumeSpec.
    """
    node_cache: NodeCacheSpec | None = None
    """Volume for downloaded models, not of pools; null downloads for each pod. See NodeCacheSpec.
    """
    pod_template: Annotated[dict[str, Any], check_patch] = field(default_factory=dict)
    """Partial PodTemplateSpec, merged into the pods': affinity, volumes, sidecars, resource claims.
    Items of lists are merged by name; it cannot change what Headrace relies on.
    """

    def __post_init__(self) -> None:
        if self.model_volume is not None and self.node_cache is not None:
            raise ValueError("'model_volume' and 'node_cache' exclude each other: remove one")


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
    """Pods of single endpoints, by name; other fields are as above. See PodsSpec."""
    pools: Annotated[dict[str, PodsSpec], Meta(max_length=1024)] = field(default_factory=dict)
    """Pods of single pools, by name; other fields are as above. Without `resources` a pool has the
    memory of the default pods plus its `memory_bytes`. See PodsSpec.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autoscaler is Autoscaler.KEDA and not self.prometheus_url:
            raise ValueError("autoscaler keda needs 'prometheus_url'")

    def pods_of(self, endpoint: str) -> "KubernetesSpec":
        """Return the pod settings of an endpoint."""
        return self.with_own(self.endpoints.get(endpoint))

    def with_own(self, own: PodsSpec | None) -> "KubernetesSpec":
        """Return the pod settings of an endpoint or pool with the fields `own`."""
        if own is None:
            return self
        fields = {name: getattr(own, name) for name in own.model_fields_set}
        if fields.get("model_volume"):
            fields.setdefault("node_cache", None)
        if fields.get("node_cache"):
            fields.setdefault("model_volume", None)
        return msgspec.structs.replace(self, **fields)


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
    own = block.get("endpoints")
    for i, endpoint in enumerate(_items(document.get("endpoints"))):
        device = endpoint.get("device") if isinstance(endpoint, Mapping) else None
        pods = own.get(endpoint.get("name")) if device and isinstance(own, Mapping) else None
        pods = {**block, **pods} if isinstance(pods, Mapping) else block
        resources = pods.get("resources")
        has_none = isinstance(resources, Mapping) and resources.get("gpus") == 0
        if device in GPUS and has_none and not pods.get("pod_template"):
            message = (
                f"device {device} needs a GPU, and the pods have `gpus: 0`: leave it out, or claim "
                "a device in `pod_template`"
            )
            yield f"endpoints[{i}].device", message
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
