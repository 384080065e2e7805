"""Desired state: the resolved spec, every model pinned to one version of a registry."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import msgspec

from headrace.core import (
    Digest,
    EndpointName,
    FeatureLookup,
    FeatureWatch,
    PoolReplicaSettings,
    ReplicaSettings,
)
from headrace.core.feature_settings import SQLITE
from headrace.core.images import OPENAI_RUNTIMES
from headrace.core.spec.access import AliasSpec, EndpointAccess, EndpointLimitsSpec
from headrace.core.spec.observe import DriftSpec, EndpointLogSpec, PayloadLogSpec
from headrace.core.spec.rollout import RolloutSpec, StickySpec
from headrace.core.spec.scale import AutoscaleSpec, PoolSpec
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import MirrorTarget
from headrace.streaming.settings import WorkerSettings

LAYOUT: Final = r"/artifacts/sha256/([0-9a-f]{64})/"
"""Pattern of the path between a home and the filename of an artifact."""
_STORED: Final = re.compile(rf"(/.*)?{LAYOUT}([^/]+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPath:
    """Location of an artifact."""

    home: str
    """Path of the home; empty for the root of the file system."""
    digest: Digest
    filename: str
    """The file or directory in it that a runtime loads."""


def artifact_at(path: str) -> ArtifactPath | None:
    """Return the artifact at `path`; None if the path is not among a home's artifacts."""
    match = _STORED.fullmatch(path)
    if match is None:
        return None
    return ArtifactPath(home=match[1] or "", digest=Digest(f"sha256:{match[2]}"), filename=match[3])


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable snapshot of what one replica runs, or of an upstream.

    `id` is the digest of everything that a running process depends on, and the same on every
    machine (`everywhere`); weight and replica count are excluded. `model` is the registry
    reference `NAME:VERSION`, the path of a model that is served from there, or an upstream's URL.
    `settings` lacks only what differs between replicas: `uds` and `replica`; its paths belong to
    this machine; for an upstream it has only the names. `reload` counts how often an operator
    requested a reload.
    """

    id: str
    endpoint: EndpointName
    model: str
    version: str
    settings: ReplicaSettings
    upstream: UpstreamSpec | None = None
    reload: int = 0
    pool: str = ""
    """The pool that hosts it; empty for separate processes."""
    hosts: PoolReplicaSettings | None = None
    """Settings of a pool's own processes; None for a model's."""
    network: bool = False
    """Whether its replicas may open connections."""
    best_effort: bool = False
    """Whether replicas also start where the kernel cannot isolate them."""
    memory_bytes: int | None = None
    """Memory limit of one replica; None derives it from the model."""
    runs_code: bool = False
    """Whether its model's format runs its author's code; excluded from `id`."""
    content: str = ""
    """The digest of a model that is served from a path; empty if the path contains it."""
    unloadable: str = ""
    """Why the model cannot be served; nothing is started for it."""
    encodes: bool = False
    """Whether the model is an encoder of texts (`core.encoders`); excluded from `id`."""

    @property
    def serves_openai(self) -> bool:
        """Whether its replicas serve OpenAI's API."""
        return self.settings.runtime in OPENAI_RUNTIMES

    @property
    def generates(self) -> bool:
        """Whether its responses may have tokens, which the gateway counts."""
        is_openai = self.upstream is not None and self.upstream.protocol is UpstreamProtocol.OPENAI
        return is_openai or self.serves_openai

    @property
    def is_silent(self) -> bool:
        """Whether its servers do not report which requests they answered."""
        return self.upstream is not None or self.generates


class DesiredArm(msgspec.Struct, frozen=True, kw_only=True):
    """A revision with its share of the endpoint's requests and its number of copies.

    `role` distinguishes arms of one version: empty, or `baseline` for a rollout's fresh copies.
    """

    revision: Revision
    weight: int
    replicas: int
    role: str = ""
    required: int | None = None
    """How many replicas must have been ready before `weight` takes effect; None for all."""

    @property
    def key(self) -> str:
        """Return the unique name of this arm in its endpoint: the version, and the role if any."""
        return f"{self.revision.version}~{self.role}" if self.role else self.revision.version


Source = tuple[tuple[str, str, str, int], ...]
"""Version, model, digest of the content and weight of each arm."""


class ResourceOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Generation of a cluster's resource `Endpoint` that was applied last."""

    uid: str
    generation: int


class SpecFile(msgspec.Struct, frozen=True, kw_only=True):
    """The spec file that a control plane on a cluster applied last."""

    digest: str = ""
    refused: tuple[str, ...] = ()
    """Its endpoints that were left out because of mistakes; they are tried again."""


class DesiredEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint: the weights of its arms sum to 100.

    `generation` grows by one with every change of this endpoint.
    """

    name: EndpointName
    timeout_s: float | None
    arms: tuple[DesiredArm, ...]
    generation: int = 0
    sticky: StickySpec | None = None
    mirror: MirrorTarget | None = None
    split_id: str = ""
    """The rollout or experiment that the split belongs to; its requests are then counted by arm."""
    needs_assignments: bool = False
    """Whether the arm of each request of the split is stored for later feedback."""
    rollout: RolloutSpec | None = None
    """Rollout plan for a new version."""
    autoscale: AutoscaleSpec | None = None
    """None keeps each arm's `replicas`."""
    slo_latency_s: float | None = None
    scaled_to_zero: bool = False
    """Whether nothing runs until a request arrives."""
    paused: bool = False
    """Whether the gateway refuses requests; replicas keep running."""
    fallback: str | None = None
    """Endpoint that answers what this one fails to answer."""
    access: EndpointAccess | None = None
    """None uses the gateway's setting (no authentication on loopback)."""
    aliases: tuple[AliasSpec, ...] = ()
    """Other names in OpenAI's API."""
    limits: EndpointLimitsSpec = EndpointLimitsSpec()
    request_log: EndpointLogSpec | None = None
    """None uses the gateway's setting."""
    payload_log: PayloadLogSpec | None = None
    """None logs nothing."""
    drift: DriftSpec | None = None
    """None disables drift detection."""
    features: FeatureWatch | None = None
    """None disables skew detection."""
    example: Mapping[str, list[Any]] | None = None
    """Values of a valid request by input; None uses the model's, or generated ones."""
    spec_source: Source = ()
    """The versions that the last applied spec names, if a rollout that was not started by an apply
    led elsewhere since; empty if `arms` are these versions.
    """
    resource: ResourceOrigin | None = None
    """The resource that defines it; None for an endpoint of a spec or of the management API."""

    @property
    def source(self) -> Source:
        """Return the versions of `arms` with their weights, without settings and replicas."""
        return tuple(
            (arm.revision.version, arm.revision.model, arm.revision.content, arm.weight)
            for arm in self.arms
        )

    @property
    def pooled(self) -> bool:
        """Whether a pool hosts one of its versions."""
        return any(arm.revision.pool for arm in self.arms)

    @property
    def gets_first_request(self) -> bool:
        """Whether one inference through the gateway shows that it answers.

        The request would count in a rollout, and wake an endpoint that is scaled to zero. A paused
        endpoint refuses it, as does an upstream of another protocol than `v2`.
        """
        speaks_v2 = all(
            upstream is None or upstream.protocol is UpstreamProtocol.V2
            for upstream in (arm.revision.upstream for arm in self.arms)
        )
        return speaks_v2 and not (self.split_id or self.scaled_to_zero or self.paused)

    def arm(self, key: str) -> DesiredArm | None:
        """Return the arm with this key, or None."""
        return next((arm for arm in self.arms if arm.key == key), None)


class DesiredStream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream: its workers get `settings`, each with a member name and a socket."""

    name: str
    model: str
    """The registry reference, or `endpoint NAME`, or `view NAME` where records are only pushed.
    If `min_workers` is less than `max_workers`, the number of workers follows the lag.
    """
    settings: WorkerSettings
    min_workers: int = 1
    max_workers: int = 1
    target_lag_s: float = 10.0
    runs_code: bool = False

    @property
    def way(self) -> str:
        """Return source, processing and target of the records, for display."""
        settings = self.settings
        source = ", ".join(settings.topics)
        view = "" if settings.features is None else f"view {settings.features.view}"
        if not settings.sink:
            return f"{source} to {view}"
        view_note = f", and to {view}" if view else ""
        return f"{source} to {settings.sink} by {self.model}{view_note}"


class DesiredState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that should run, and the spec document that defines it.

    `generation` grows by one with every change.
    """

    generation: int = 0
    spec: dict[str, Any] = {}
    endpoints: tuple[DesiredEndpoint, ...] = ()
    pools: tuple[PoolSpec, ...] = ()
    streams: tuple[DesiredStream, ...] = ()
    file: SpecFile = SpecFile()

    def endpoint(self, name: str) -> DesiredEndpoint | None:
        """Return the endpoint with this name, or None."""
        return next((endpoint for endpoint in self.endpoints if endpoint.name == name), None)

    def entry(self, name: str) -> dict[str, Any] | None:
        """Return the spec entry of the endpoint with this name."""
        entries: list[dict[str, Any]] = self.spec.get("endpoints", [])
        return next((entry for entry in entries if entry.get("name") == name), None)

    def revisions(self) -> dict[str, Revision]:
        """Return all revisions by id."""
        arms = (arm for endpoint in self.endpoints for arm in endpoint.arms)
        return {arm.revision.id: arm.revision for arm in arms}


def same_endpoint(one: DesiredEndpoint | None, other: DesiredEndpoint | None) -> bool:
    """Whether two endpoints are equal except for their generation and origin."""
    if one is None or other is None:
        return one is other
    first, second = (
        msgspec.structs.replace(endpoint, generation=0, spec_source=(), resource=None)
        for endpoint in (one, other)
    )
    return first == second


POOL_PREFIX: Final = "pool:"
"""Prefix of the names of pools' own routes; endpoint names contain no colon."""


def pool_endpoint(pool: PoolSpec) -> DesiredEndpoint:
    """Return a pool's processes as a separate endpoint that callers cannot name."""
    name = EndpointName(f"{POOL_PREFIX}{pool.name}")
    settings = PoolReplicaSettings(
        name=pool.name,
        memory_bytes=pool.memory_bytes,
        max_loaded=pool.max_loaded,
        load_timeout_s=pool.load_timeout_s,
        max_body_bytes=pool.max_body_bytes,
    )
    revision = Revision(
        id=digest_of([name, settings]),
        endpoint=name,
        model=name,
        version="0",
        settings=ReplicaSettings(model_name=pool.name, model_version="0", path=""),
        hosts=settings,
    )
    arm = DesiredArm(revision=revision, weight=100, replicas=pool.replicas)
    return DesiredEndpoint(name=name, timeout_s=None, arms=(arm,))


def make_revision(
    *,
    endpoint: EndpointName,
    model: str,
    settings: ReplicaSettings,
    reload: int = 0,
    purpose: str = "",
    upstream: UpstreamSpec | None = None,
    pool: str = "",
    network: bool = False,
    best_effort: bool = False,
    memory_bytes: int | None = None,
    runs_code: bool = False,
    content: str = "",
    unloadable: str = "",
    encodes: bool = False,
) -> Revision:
    """Return the revision that runs `settings`, or that represents `upstream`.

    Args:
        reload: Number of reloads that an operator requested; a new number creates a new revision,
            so that a reload loses no request.
        purpose: Distinguishes otherwise equal copies, such as a rollout's baseline.
        content: The digest of a model that is served from a path; empty if unknown.
    """
    return with_id(
        Revision(
            id="",
            endpoint=endpoint,
            model=model,
            version=settings.model_version,
            settings=settings,
            upstream=upstream,
            reload=reload,
            pool=pool,
            network=network,
            best_effort=best_effort,
            memory_bytes=memory_bytes,
            runs_code=runs_code,
            content=content,
            unloadable=unloadable,
            encodes=encodes,
        ),
        purpose=purpose,
    )


def with_id(revision: Revision, *, purpose: str = "") -> Revision:
    """Return `revision` with its current id; former releases may have assigned another.

    Args:
        purpose: See `make_revision`.
    """
    assert revision.hosts is None, "a pool's own is made by `pool_endpoint`"
    settings = everywhere(revision.settings, revision.content)
    parts: list[object] = [revision.endpoint, settings, revision.reload]
    # Empty fields are excluded, so that revisions of older state keep their ids.
    named = (
        *(purpose, revision.upstream, revision.pool, revision.network and "network"),
        *(revision.best_effort and "best-effort", revision.memory_bytes, revision.unloadable),
    )
    parts += [extra for extra in named if extra]
    return msgspec.structs.replace(revision, id=digest_of(parts))


_DIGITS: Final = 16


def digest_of(parts: list[object]) -> str:
    """Return the id of `parts`; equal for equal parts."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:_DIGITS]


def everywhere(settings: ReplicaSettings, content: str = "") -> ReplicaSettings:
    """Return `settings` in a form that is equal on all machines: for ids, not for processes.

    Two control planes assign the same id to equal content with equal settings, regardless of their
    homes and of where features were defined. A path counts only if its content has no digest: an
    online store outside the home, a Feast repository, a model that cannot be read completely.
    Properties of the machine (library versions, ports, sockets) are excluded: a process gets them
    at its start.

    A model's path becomes `DIGEST/NAME`, and a file in the home its relative path.

    Args:
        content: The digest of a model outside a home's artifacts; empty if unknown.
    """
    stored = artifact_at(settings.path)
    path = settings.path
    if content:
        path = f"{content}/{PurePath(path).name}"
    elif stored is not None:
        path = f"{stored.digest}/{stored.filename}"
    features = settings.features
    if not isinstance(features, msgspec.UnsetType):
        features = _features(features, None if stored is None else stored.home)
    return msgspec.structs.replace(settings, path=path, features=features)


def _features(lookup: FeatureLookup, home: str | None) -> FeatureLookup:
    from headrace.features.wire import served_part  # noqa: PLC0415  # few have features

    store = lookup.online_store
    if home is not None and store.startswith(f"{SQLITE}{home}/"):
        store = SQLITE + store.removeprefix(f"{SQLITE}{home}/")
    return msgspec.structs.replace(lookup, service=served_part(lookup.service), online_store=store)
