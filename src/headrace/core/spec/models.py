"""Root of the spec file `headrace.yaml`: frozen models, each field with its bounds."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, Strict, ValidationInfo, model_validator

from headrace.core.names import NAME_PATTERN, VERSION_PATTERN
from headrace.core.settings import (
    DEFAULT_MAX_BODY_BYTES,
    BatchingSpec,
    LlmSpec,
)
from headrace.core.spec.access import (
    METHOD_PATTERN,
    AliasSpec,
    AuthSpec,
    CorsSpec,
    EndpointLimitsSpec,
    SecuritySpec,
    TierSpec,
    TlsSpec,
    limit_disagreements,
)
from headrace.core.spec.alerts import AlertsSpec
from headrace.core.spec.base import SpecModel
from headrace.core.spec.features import (
    EndpointFeaturesSpec,
    OnlineStoreSpec,
    feature_disagreements,
    online_store_disagreements,
)
from headrace.core.spec.jobs import JobSpec, job_disagreements
from headrace.core.spec.kubernetes import KubernetesSpec, kubernetes_disagreements
from headrace.core.spec.observe import (
    DriftSpec,
    EndpointLogSpec,
    PayloadLogSpec,
    RequestLogSpec,
    TracingSpec,
)
from headrace.core.spec.rollout import RolloutSpec, SloSpec, StickySpec
from headrace.core.spec.scale import AutoscaleSpec, BudgetSpec, ConnectionsSpec, PoolSpec
from headrace.core.spec.stream_agreement import stream_disagreements
from headrace.core.spec.streams import StreamSpec
from headrace.core.spec.upstream import MAX_FALLBACKS, UpstreamProtocol, UpstreamSpec
from headrace.core.spec.yaml import SpecMistake

FULL_WEIGHT: Final = 100
_DAY_S: Final = 86_400.0

Port = Annotated[int, Field(ge=0, le=65535)]
Labels = Annotated[tuple[str, ...], Strict(strict=False)]
_ModelField = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4096,
        description=(
            "A model file or directory (relative to the spec file), or a registry reference"
            " NAME[:VERSION]. In a spec file also a URI, whose content is stored as a version. A"
            " Triton model repository stands for all models in it."
        ),
    ),
]
_Access = (
    Literal["public"]
    | Annotated[tuple[Annotated[str, Field(pattern=METHOD_PATTERN)], ...], Strict(strict=False)]
)
_Replicas = Annotated[int, Field(ge=1, le=1024, description="Number of replicas. Unit: processes.")]


class VersionSpec(SpecModel):
    """One model version behind an endpoint, and its share of the requests."""

    model: _ModelField | None = None
    upstream: UpstreamSpec | None = Field(
        default=None, description="Instead of `model`: an external model server."
    )
    version: str = Field(
        default="1",
        pattern=VERSION_PATTERN,
        description="Version name of an upstream; a model has its own.",
    )
    weight: int = Field(
        ge=0,
        le=FULL_WEIGHT,
        description="Share of the requests; the weights of an endpoint sum to 100. Unit: "
        "percent. A version with weight 0 is reached only by its name in the URL.",
    )
    replicas: _Replicas = 1


class EndpointSpec(SpecModel):
    """Stable name that callers use, and what serves it."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the endpoint in URLs.")
    model: _ModelField | None = None
    upstream: UpstreamSpec | None = Field(
        default=None, description="Instead of `model`: an external model server."
    )
    version: str = Field(
        default="1",
        pattern=VERSION_PATTERN,
        description="Version name of an upstream; a model has its own.",
    )
    versions: Annotated[tuple[VersionSpec, ...], Strict(strict=False)] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Instead of `model`: a traffic split.",
    )
    replicas: _Replicas = 1
    batching: BatchingSpec = Field(default=BatchingSpec(), description="See BatchingSpec.")
    llm: LlmSpec = Field(default=LlmSpec(), description="How a GGUF model runs. See LlmSpec.")
    timeout_s: float | None = Field(
        default=30.0,
        gt=0.0,
        le=86_400.0,
        description="Deadline of a request that does not set one; null for none. Unit: seconds.",
    )
    runtime: str = Field(
        default="",
        pattern=r"^[a-z0-9_]{0,64}$",
        description="Runtime that loads the model; empty detects it from the file.",
    )
    device: Literal["auto", "cpu", "gpu", "cuda", "tensorrt", "openvino"] = Field(
        default="auto",
        description="Device that runs the model: `auto` takes an accelerator if there is one, "
        "else the CPU. With any other value, no replica starts unless that device is available.",
    )
    labels: dict[str, Labels] = Field(
        default_factory=dict, description="Class names by output name, for `classification`."
    )
    example: dict[str, list[Any]] | None = Field(
        default=None,
        description="Values of a valid request by input, as in `{word: [good]}`, for the readiness "
        "check; null takes the model's example, or generated values.",
    )
    nulls: Literal["nan", "error"] = Field(
        default="nan",
        description="How a null in a JSON request is treated for a float input: as NaN, as a "
        "missing value, or as an error.",
    )
    slo: SloSpec | None = Field(default=None, description="See SloSpec.")
    fallback: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="Endpoint that answers a request of OpenAI's API that this one answers with "
        "429, 5xx or nothing. Both are GGUF models, or upstreams with `protocol: openai`.",
    )
    autoscale: AutoscaleSpec | None = Field(
        default=None, description="Null keeps the number of replicas fixed. See AutoscaleSpec."
    )
    paused: bool = Field(
        default=False,
        description="Whether the gateway refuses requests with 503 and `retry-after`; replicas "
        "keep running.",
    )
    rollout: Annotated[RolloutSpec, Field(discriminator="strategy")] | None = Field(
        default=None,
        description="How a new version takes over; null switches at once when it is ready.",
    )
    drift: DriftSpec | None = Field(
        default=None,
        description="Monitors inputs and outputs for drift; null stores no statistics of callers' "
        "data.",
    )
    sticky: StickySpec | None = Field(
        default=None,
        description="Keeps a caller on one version of a traffic split. See StickySpec.",
    )
    pool: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="Pool that hosts the model; null for dedicated processes.",
    )
    access: _Access | None = Field(
        default=None,
        description="Who may call: any of `key`, `jwt`, `jwt:NAME`, `certificate` grants access; "
        "`public` needs no credentials. Null: any of them, or none on a loopback gateway.",
    )
    aliases: Annotated[tuple[AliasSpec, ...], Strict(strict=False)] = Field(
        default=(),
        max_length=64,
        description="Other names by which `model` in requests of OpenAI's API may call it; unique "
        "among all names and aliases. See AliasSpec.",
    )
    limits: EndpointLimitsSpec = Field(
        default=EndpointLimitsSpec(),
        description="Limits of requests and callers. See EndpointLimitsSpec.",
    )
    allow_code: bool = Field(
        default=False,
        description="Whether the model may have a format that runs its author's code.",
    )
    network: bool = Field(
        default=False, description="Whether replicas may open network connections."
    )
    isolation: Literal["required", "best-effort"] = Field(
        default="required",
        description="Whether a replica starts only if the sandbox is complete (`required`), or "
        "also with what the kernel supports (`best-effort`), which only an admin may set.",
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=64 << 20,
        description="Maximum memory that a replica may allocate: a request that needs more "
        "fails. Null derives it from the size of the model. Unit: bytes.",
    )
    request_log: EndpointLogSpec | None = Field(
        default=None, description="Null: as the gateway's. See EndpointLogSpec."
    )
    payload_log: PayloadLogSpec | None = Field(
        default=None, description="Null stores no payloads. See PayloadLogSpec."
    )
    features: EndpointFeaturesSpec | None = Field(
        default=None, description="Looks up features of the entities that callers name."
    )

    def split(self) -> tuple[VersionSpec, ...]:
        """Return the traffic split; the short form `model` is one version at weight 100."""
        if self.versions is not None:
            return self.versions
        if self.upstream is not None:
            version = self.version
            return (VersionSpec(upstream=self.upstream, version=version, weight=FULL_WEIGHT),)
        assert self.model is not None, "checked by SystemSpec"
        return (VersionSpec(model=self.model, weight=FULL_WEIGHT, replicas=self.replicas),)


class GatewaySpec(SpecModel):
    """Addresses and settings of the gateway, by which callers reach the system."""

    host: str = Field(
        default="127.0.0.1", min_length=1, max_length=255, description="Address to bind."
    )
    http_port: Port = Field(default=8000, description="HTTP and gRPC port; 0 picks a free port.")
    grpc_port: Port = Field(
        default=8001, description="As `port`, for gRPC clients; 0 picks a free port."
    )
    max_body_bytes: int = Field(
        default=DEFAULT_MAX_BODY_BYTES,
        ge=1024,
        le=2_000_000_000,
        description="Larger request bodies get 413. Unit: bytes.",
    )
    connections: ConnectionsSpec = Field(
        default=ConnectionsSpec(), description="See ConnectionsSpec."
    )
    access_log: bool = Field(
        default=True, description="Whether requests are logged; `request_log` selects which."
    )
    request_log: RequestLogSpec = Field(default=RequestLogSpec(), description="See RequestLogSpec.")
    tls: TlsSpec | None = Field(default=None, description="Null for plain text. See TlsSpec.")
    cors: CorsSpec | None = Field(
        default=None, description="Null refuses scripts of other origins. See CorsSpec."
    )
    shared_limits: bool = Field(
        default=False, description="Whether several gateways share each limit."
    )
    limits_service: str | None = Field(
        default=None,
        max_length=255,
        description="Service that counts for several gateways: `limits_listen` of another control "
        "plane.",
    )
    limits_listen: str | None = Field(
        default=None,
        max_length=255,
        description="Address at which this control plane counts for other gateways of this "
        "machine: unix:/path or 127.0.0.1:PORT.",
    )


AGREEMENT_CHECKED: Final = "agreement_checked"
"""Key in a validation's context: the caller checks for disagreements itself."""


class SystemSpec(SpecModel):
    """Everything that one installation serves."""

    version: Literal[1] = Field(default=1, description="Version of this file format.")
    gateway: GatewaySpec = Field(default=GatewaySpec(), description="See GatewaySpec.")
    budget: BudgetSpec = Field(default=BudgetSpec(), description="See BudgetSpec.")
    auth: AuthSpec = Field(default=AuthSpec(), description="See AuthSpec.")
    tiers: Annotated[tuple[TierSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=64, description="Classes of callers by their limits. See TierSpec."
    )
    security: SecuritySpec = Field(default=SecuritySpec(), description="See SecuritySpec.")
    alerts: AlertsSpec = Field(default=AlertsSpec(), description="See AlertsSpec.")
    tracing: TracingSpec | None = Field(
        default=None, description="Null for no traces. See TracingSpec."
    )
    pools: Annotated[tuple[PoolSpec, ...], Strict(strict=False)] = Field(
        default=(),
        max_length=1024,
        description="Processes that several models share. See PoolSpec.",
    )
    online_stores: Annotated[tuple[OnlineStoreSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=256, description="Stores that serve features. See OnlineStoreSpec."
    )
    endpoints: Annotated[tuple[EndpointSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=10_000, description="Endpoints; names are unique."
    )
    streams: Annotated[tuple[StreamSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=1024, description="Streams of records to score. See StreamSpec."
    )
    jobs: Annotated[tuple[JobSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=1000, description="Batch jobs over data sets. See JobSpec."
    )

    kubernetes: KubernetesSpec = Field(
        default=KubernetesSpec(),
        description="Runs replicas as pods of a cluster. See KubernetesSpec.",
    )

    @model_validator(mode="after")
    def _parts_agree(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get(AGREEMENT_CHECKED):
            return self
        mistakes = disagreements(self.model_dump(exclude_unset=True))
        if mistakes:
            raise ValueError("; ".join(map(str, mistakes)))
        return self

    def store_url(self, name: str | None) -> str | None:
        """Return the URL of the online store called `name`, as written; None for None."""
        return next((store.url for store in self.online_stores if store.name == name), None)

    def document(self) -> dict[str, Any]:
        """Return the spec as plain JSON data, without fields at their default."""
        return {"version": 1, **self.model_dump(mode="json", exclude_unset=True)}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the spec file, for editors."""
    schema = SystemSpec.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "headrace.yaml",
    }


def disagreements(document: object) -> list[SpecMistake]:
    """Return mistakes between fields that are valid on their own.

    Takes the raw document, whatever it contains, so that these mistakes are reported together with
    those of single fields.
    """
    top = document if isinstance(document, Mapping) else {}
    mistakes = [SpecMistake(place=p, message=message) for p, message in limit_disagreements(top)]
    mistakes += [
        SpecMistake(place=p, message=message) for p, message in kubernetes_disagreements(top)
    ]
    mistakes += job_disagreements(top)
    mistakes += online_store_disagreements(top)
    first_use: dict[str, int] = {}
    pools = [p.get("name") for p in _items(top.get("pools")) if isinstance(p, Mapping)]
    for i, endpoint in enumerate(_items(top.get("endpoints"))):
        if not isinstance(endpoint, Mapping):
            continue
        mistakes += _endpoint_disagreements(endpoint, f"endpoints[{i}]")
        pool = endpoint.get("pool")
        if isinstance(pool, str) and pool not in pools:
            available = f"there are: {', '.join(map(str, pools))}" if pools else "'pools' is empty"
            message = f"there is no pool {pool!r}; {available}"
            mistakes.append(SpecMistake(place=f"endpoints[{i}].pool", message=message))
        name = endpoint.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of endpoints[{first_use[name]}]"
            mistakes.append(SpecMistake(place=f"endpoints[{i}].name", message=message))
    mistakes += _alias_disagreements(_items(top.get("endpoints")))
    return mistakes + _fallback_disagreements(top) + stream_disagreements(top)


def _alias_disagreements(endpoints: list[object]) -> list[SpecMistake]:
    mistakes = []
    rows = [(i, row) for i, row in enumerate(endpoints) if isinstance(row, Mapping)]
    names = {row.get("name") for _, row in rows if isinstance(row.get("name"), str)}
    first_use: dict[str, str] = {}
    for i, row in rows:
        for j, alias in enumerate(_items(row.get("aliases"))):
            name = alias.get("name") if isinstance(alias, Mapping) else None
            location = f"endpoints[{i}].aliases[{j}].name"
            if not isinstance(name, str):
                continue
            if name.partition(":")[0] in names:
                message = f"{name!r} calls the endpoint {name.partition(':')[0]!r}; choose another"
                mistakes.append(SpecMistake(place=location, message=message))
            elif first_use.setdefault(name, location) != location:
                message = f"{name!r} is already {first_use[name]}"
                mistakes.append(SpecMistake(place=location, message=message))
    return mistakes


def _endpoint_disagreements(endpoint: Mapping[Any, Any], path: str) -> list[SpecMistake]:
    sources = [key for key in _SOURCES if endpoint.get(key) is not None]
    if len(sources) > 1:
        quoted = " and ".join(f"'{name}'" for name in sources)
        message = f"{quoted} exclude each other; keep one"
        return [SpecMistake(place=f"{path}.{sources[-1]}", message=message)]
    if not sources:
        message = (
            "needs 'model', 'versions' for a traffic split, or 'upstream' for an external server"
        )
        return [SpecMistake(place=path, message=message)]
    mistakes = []
    if sources != ["model"]:
        mistakes += [
            SpecMistake(place=f"{path}.{key}", message=_OWN_MODELS_ONLY[sources[0]])
            for key in ("replicas", "pool")
            if key in endpoint and not (key == "pool" and sources == ["versions"])
        ]
    mistakes += [
        SpecMistake(place=f"{path}.{key}", message=_OWN_MODELS_ONLY["upstream"])
        for key in ("autoscale", "drift")
        if sources == ["upstream"] and endpoint.get(key) is not None
    ]
    if sources == ["upstream"] and endpoint.get("payload_log") is not None:
        message = "cannot be combined with 'upstream': only Headrace's own replicas record payloads"
        mistakes.append(SpecMistake(place=f"{path}.payload_log", message=message))
    mistakes += feature_disagreements(endpoint, path)
    if endpoint.get("pool") is not None and endpoint.get("network") is True:
        message = "cannot be combined with 'pool': the processes of a pool have no network"
        mistakes.append(SpecMistake(place=f"{path}.network", message=message))
    if endpoint.get("pool") is not None and endpoint.get("autoscale") is not None:
        message = "cannot be combined with 'pool': 'replicas' of the pool sets the number of copies"
        mistakes.append(SpecMistake(place=f"{path}.autoscale", message=message))
    return mistakes + _split_disagreements(_items(endpoint.get("versions")), f"{path}.versions")


def _fallback_disagreements(top: Mapping[Any, Any]) -> list[SpecMistake]:
    endpoints = [e for e in _items(top.get("endpoints")) if isinstance(e, Mapping)]
    by_name = {e["name"]: e for e in endpoints if isinstance(e.get("name"), str)}
    mistakes = []
    for i, endpoint in enumerate(_items(top.get("endpoints"))):
        if not isinstance(endpoint, Mapping) or not isinstance(endpoint.get("fallback"), str):
            continue
        chain = [endpoint.get("name")]
        other: Any = endpoint
        while isinstance(name := other.get("fallback"), str) and name not in chain:
            chain.append(name)
            other = by_name.get(name, {})
        arrows = " -> ".join(map(str, (*chain, name) if name in chain else chain))
        fallback = endpoint["fallback"]
        if fallback not in by_name:
            available = ", ".join(by_name)
            message = f"there is no endpoint {fallback!r}; there are: {available}"
        elif name in chain:
            message = f"{arrows} is a circle; a fallback must not lead back"
        elif len(chain) - 1 > MAX_FALLBACKS:
            message = f"{arrows} has {len(chain) - 1} fallbacks; there may be {MAX_FALLBACKS}"
        elif foreign := [n for n in chain[:2] if _speaks_otherwise(by_name.get(n, endpoint))]:
            message = (
                f"endpoint {foreign[0]!r} does not speak OpenAI's API: both must be GGUF models, "
                "or upstreams with `protocol: openai`"
            )
        else:
            continue
        mistakes.append(SpecMistake(place=f"endpoints[{i}].fallback", message=message))
    return mistakes


def _speaks_otherwise(endpoint: Mapping[Any, Any]) -> bool:
    """Whether an upstream of the endpoint has another protocol than OpenAI's; models are unread."""
    parts = (endpoint, *_items(endpoint.get("versions")))
    upstreams = [part.get("upstream") for part in parts if isinstance(part, Mapping)]
    protocols = {u.get("protocol") for u in upstreams if isinstance(u, Mapping)}
    return not protocols <= {UpstreamProtocol.OPENAI}


_SOURCES: Final = ("model", "versions", "upstream")
_OWN_MODELS_ONLY: Final = {
    "versions": "cannot be combined with 'versions'; set it for each version",
    "upstream": "cannot be combined with 'upstream': Headrace does not run an external server",
}


def _split_disagreements(versions: list[object], path: str) -> list[SpecMistake]:
    mistakes = []
    rows = [(i, version) for i, version in enumerate(versions) if isinstance(version, Mapping)]
    first_use: dict[str, int] = {}
    for i, version in rows:
        model = version.get("model")
        if (model is None) == (version.get("upstream") is None):
            message = "needs either 'model' or 'upstream'"
            mistakes.append(SpecMistake(place=f"{path}[{i}]", message=message))
        if isinstance(model, str) and first_use.setdefault(model, i) != i:
            message = f"{model!r} is already in {path}[{first_use[model]}]; one weight per model"
            mistakes.append(SpecMistake(place=f"{path}[{i}].model", message=message))
    weights = [version.get("weight") for _, version in rows]
    numbers = [w for w in weights if isinstance(w, int) and not isinstance(w, bool)]
    # A weight that is missing or not a number is reported separately; the sum is meaningless then.
    if rows and len(numbers) == len(versions) and sum(numbers) != FULL_WEIGHT:
        message = f"weights sum to {sum(numbers)}; they must sum to {FULL_WEIGHT}"
        mistakes.append(SpecMistake(place=path, message=message))
    return mistakes


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
