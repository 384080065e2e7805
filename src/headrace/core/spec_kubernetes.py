"""What may stand under `kubernetes`: how replicas run on a cluster; without one it says nothing."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Self

from pydantic import Field, Strict, model_validator

from headrace.core.kubernetes_settings import (
    Autoscaler,
    KubernetesSettings,
    PodSettings,
    Resources,
    Taint,
    Variable,
)
from headrace.core.spec_base import SpecModel

_QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"
_DNS: Final = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_OPTIONAL_DNS: Final = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"
_LABEL_KEY: Final = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_IMAGE: Final = r"^([a-z0-9][^\s]*)?$"

_Quantity = Annotated[str, Field(pattern=_QUANTITY, max_length=32)]
_Dns = Annotated[str, Field(pattern=_DNS)]
_Labels = dict[
    Annotated[str, Field(pattern=_LABEL_KEY)], Annotated[str, Field(pattern=_LABEL_VALUE)]
]


class ResourcesSpec(SpecModel):
    """What one pod asks for, and may not exceed."""

    cpu: _Quantity = Field(default="1", description="Asked for. Unit: cores, as a quantity.")
    memory: _Quantity = Field(default="1Gi", description="Asked for. Unit: bytes, as a quantity.")
    cpu_limit: _Quantity | None = Field(
        default=None, description="Null for none: throttling costs latency."
    )
    memory_limit: _Quantity | None = Field(default=None, description="Null for `memory`.")
    gpus: int = Field(default=0, ge=0, le=64, description="Unit: devices.")
    gpu_resource: str = Field(
        default="nvidia.com/gpu", pattern=_LABEL_KEY, description="What a device is called there."
    )

    def settings(self) -> Resources:
        """The message to the driver."""
        return Resources(**self.model_dump(exclude_none=True))


class TolerationSpec(SpecModel):
    """A taint of nodes that pods put up with."""

    key: str = Field(default="", max_length=317, description="Empty with `Exists` for every taint.")
    operator: str = Field(
        default="Equal", pattern=r"^(Equal|Exists)$", description="Equal or Exists."
    )
    value: str = Field(default="", pattern=_LABEL_VALUE, description="With `Equal` only.")
    effect: str = Field(
        default="",
        pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)?$",
        description="NoSchedule, PreferNoSchedule or NoExecute; empty for all.",
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("'value' has no meaning with operator Exists; leave it out")
        if self.operator == "Equal" and not self.key:
            raise ValueError("needs 'key', or operator Exists for every taint")
        return self


class VariableSpec(SpecModel):
    """A variable of the replicas' environment: a value, or a key of a Secret."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$", description="What it is called.")
    value: str | None = Field(default=None, max_length=65536, description="As it is; no secret.")
    secret: _Dns | None = Field(default=None, description="The Secret that holds it.")
    key: str | None = Field(
        default=None, pattern=r"^[-._a-zA-Z0-9]{1,253}$", description="Its key in the Secret."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.value is None) == (self.secret is None):
            raise ValueError("needs either 'value', or 'secret' and 'key'")
        if (self.secret is None) != (self.key is None):
            raise ValueError("'secret' and 'key' go together")
        return self

    def settings(self) -> Variable:
        """The message to the driver."""
        return Variable(**self.model_dump(exclude_none=True))


class PodsSpec(SpecModel):
    """What pods of replicas are like."""

    image: str = Field(
        default="",
        max_length=512,
        pattern=_IMAGE,
        description="With tag or digest; empty for headrace/replica of this version.",
    )
    pull_policy: str = Field(
        default="IfNotPresent",
        pattern=r"^(Always|IfNotPresent|Never)$",
        description="Always, IfNotPresent or Never.",
    )
    pull_secrets: Annotated[tuple[_Dns, ...], Strict(strict=False)] = Field(
        default=(), max_length=16, description="Secrets by which the image is pulled."
    )
    resources: ResourcesSpec = Field(default=ResourcesSpec(), description="See ResourcesSpec.")
    node_selector: _Labels = Field(default={}, description="Labels that a node has to have.")
    tolerations: Annotated[tuple[TolerationSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=64, description="See TolerationSpec."
    )
    replica_env: Annotated[tuple[VariableSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=256, description="The replicas' environment. See VariableSpec."
    )
    service_account: str = Field(
        default="", pattern=_OPTIONAL_DNS, description="Empty for the namespace's default."
    )
    runtime_class: str = Field(default="", pattern=_OPTIONAL_DNS, description="Such as nvidia.")
    priority_class: str = Field(default="", pattern=_OPTIONAL_DNS, description="Empty for none.")
    pod_annotations: dict[
        Annotated[str, Field(pattern=_LABEL_KEY)], Annotated[str, Field(max_length=65536)]
    ] = Field(default={}, description="For others' tools to read.")

    def pods(self) -> PodSettings:
        """The message to the driver."""
        return PodSettings(
            image=self.image,
            pull_policy=self.pull_policy,
            pull_secrets=self.pull_secrets,
            resources=self.resources.settings(),
            node_selector=dict(self.node_selector),
            tolerations=tuple(Taint(**one.model_dump()) for one in self.tolerations),
            env=tuple(one.settings() for one in self.replica_env),
            service_account=self.service_account,
            runtime_class=self.runtime_class,
            priority_class=self.priority_class,
            annotations=dict(self.pod_annotations),
        )


class KubernetesSpec(PodsSpec):
    """How replicas run on a Kubernetes cluster; the driver `local` ignores it."""

    autoscaler: str = Field(
        default="headrace",
        pattern=r"^(headrace|hpa|keda)$",
        description="Who scales endpoints with `autoscale`: headrace, hpa or keda.",
    )
    prometheus_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s]+)?$",
        max_length=2048,
        description="Whom KEDA asks.",
    )
    max_rolling_ratio: float = Field(
        default=0.25,
        gt=0.0,
        le=1.0,
        description="How many of all Deployments may replace their pods at once, as for a new "
        "image: one at least. Those that do not get ready count, and hold up the others. "
        "Unit: ratio.",
    )
    endpoints: dict[str, PodsSpec] = Field(
        default={},
        max_length=10_000,
        description="Pods of single endpoints, by name, as a whole: nothing is inherited. "
        "See PodsSpec.",
    )
    pools: dict[str, PodsSpec] = Field(
        default={},
        max_length=1024,
        description="Pods of single pools, by name, as a whole. A pool that is not named has the "
        "memory of all others' pods and its `memory_bytes` besides. See PodsSpec.",
    )

    @model_validator(mode="after")
    def _keda_knows_prometheus(self) -> Self:
        if self.autoscaler == "keda" and not self.prometheus_url:
            raise ValueError("autoscaler keda needs 'prometheus_url'")
        return self

    def settings(self) -> KubernetesSettings:
        """The message to the driver."""
        return KubernetesSettings(
            pods=self.pods(),
            endpoints={name: pods.pods() for name, pods in self.endpoints.items()},
            pools={name: pods.pods() for name, pods in self.pools.items()},
            autoscaler=Autoscaler(self.autoscaler),
            prometheus_url=self.prometheus_url,
            max_rolling_ratio=self.max_rolling_ratio,
        )


def kubernetes_disagreements(document: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Place and message of what is wrong between `kubernetes` and endpoints or pools."""
    block = document.get("kubernetes")
    if not isinstance(block, Mapping):
        return
    for kind, what in (("endpoints", "endpoint"), ("pools", "pool")):
        entries = [one for one in _items(document.get(kind)) if isinstance(one, Mapping)]
        named = {entry.get("name") for entry in entries}
        own = block.get(kind)
        for name in own if isinstance(own, Mapping) else ():
            if name not in named:
                yield f"kubernetes.{kind}.{name}", f"there is no {what} {name!r}"
    if (scaler := block.get("autoscaler")) in {Autoscaler.HPA, Autoscaler.KEDA}:
        for i, endpoint in enumerate(_items(document.get("endpoints"))):
            scale = endpoint.get("autoscale") if isinstance(endpoint, Mapping) else None
            if isinstance(scale, Mapping):
                place = f"endpoints[{i}].autoscale"
                yield from ((f"{place}{at}", said) for at, said in _not_theirs(scale, str(scaler)))


def _not_theirs(scale: Mapping[Any, Any], scaler: str) -> Iterator[tuple[str, str]]:
    """What others' autoscalers cannot be told."""
    if scale.get("target_in_flight") is None:
        yield "", f"autoscaler {scaler} derives no target by itself: give 'target_in_flight'"
    if scale.get("min_replicas") == 0:
        message = f"autoscaler {scaler} cannot be woken by a held request: 1 or more"
        yield ".min_replicas", message
    if scale.get("schedule"):
        yield ".schedule", f"autoscaler {scaler} has none; only headrace has"
    if scaler == Autoscaler.HPA and scale.get("target_queue_wait_s") is not None:
        yield ".target_queue_wait_s", "autoscaler hpa knows 'target_in_flight' only"


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
