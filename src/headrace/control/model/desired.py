"""Desired state: the resolved spec, every model pinned to one version of a registry."""

import hashlib
import re
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
from headrace.core.spec.access import EndpointAccess, EndpointLimitsSpec
from headrace.core.spec.observe import DriftSpec, EndpointLogSpec, PayloadLogSpec
from headrace.core.spec.rollout import RolloutSpec, StickySpec
from headrace.core.spec.scale import AutoscaleSpec, PoolSpec
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import MirrorTarget
from headrace.streaming.settings import WorkerSettings

LAYOUT: Final = r"/artifacts/sha256/([0-9a-f]{64})/"
"""What stands between a home and the name of a stored file or directory."""
_STORED: Final = re.compile(rf"(/.*)?{LAYOUT}([^/]+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPath:
    """Where an artifact is."""

    home: str
    """Empty for the root of the file system."""
    digest: Digest
    filename: str
    """The file or directory in it that a runtime loads."""


def artifact_at(path: str) -> ArtifactPath | None:
    """The artifact at `path`; None if that is in no home's artifacts."""
    match = _STORED.fullmatch(path)
    if match is None:
        return None
    return ArtifactPath(home=match[1] or "", digest=Digest(f"sha256:{match[2]}"), filename=match[3])


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable snapshot of what one replica runs, or of whom an upstream is.

    `id` is the digest of everything that a running process depends on, and the same on every
    machine (`everywhere`); weight and replica count are no part of it. `model` is the registry
    reference `NAME:VERSION`, the path that was served as it is, or an upstream's URL. `settings`
    lacks only what differs between replicas: `uds` and `replica`; its paths are this machine's; of
    an upstream it says the names only. `reload` counts how often an operator wished to load the
    same again.
    """

    id: str
    endpoint: EndpointName
    model: str
    version: str
    settings: ReplicaSettings
    upstream: UpstreamSpec | None = None
    reload: int = 0
    pool: str = ""
    """The pool that hosts it; empty for processes of its own."""
    hosts: PoolReplicaSettings | None = None
    """What a pool's own processes are told; None for a model's."""
    network: bool = False
    """Its replicas may open connections."""
    best_effort: bool = False
    """They start where the kernel cannot isolate them, too."""
    memory_bytes: int | None = None
    """The most that one may allocate; None goes by the model."""
    runs_code: bool = False
    """Its model's format runs code of the author's; no part of `id`."""
    content: str = ""
    """The digest of a model that is served where it lies; empty where its path tells it."""
    unloadable: str = ""
    """Why the model cannot be served; nothing is started for it."""


class DesiredArm(msgspec.Struct, frozen=True, kw_only=True):
    """A revision with its share of the endpoint's requests and its number of copies.

    `role` tells arms of one version apart: empty, or `baseline` for a rollout's fresh copies.
    """

    revision: Revision
    weight: int
    replicas: int
    role: str = ""
    required: int | None = None
    """How many copies must have been ready before `weight` is in force; None for all."""

    @property
    def key(self) -> str:
        """What names this arm among its endpoint's: the version, and the role if it has one."""
        return f"{self.revision.version}~{self.role}" if self.role else self.revision.version


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
    rollout: RolloutSpec | None = None
    """How a new version takes over."""
    autoscale: AutoscaleSpec | None = None
    """None keeps each arm's `replicas`."""
    slo_latency_s: float | None = None
    scaled_to_zero: bool = False
    """Nothing runs until somebody asks."""
    access: EndpointAccess | None = None
    """None leaves it to the gateway (nobody is asked on loopback)."""
    limits: EndpointLimitsSpec = EndpointLimitsSpec()
    request_log: EndpointLogSpec | None = None
    """None as the gateway's."""
    payload_log: PayloadLogSpec | None = None
    """None keeps nothing."""
    drift: DriftSpec | None = None
    """None watches nothing."""
    features: FeatureWatch | None = None
    """None looks for no skew."""

    def arm(self, key: str) -> DesiredArm | None:
        """The arm of this key, if there is one."""
        return next((arm for arm in self.arms if arm.key == key), None)


class DesiredStream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream: its workers are told `settings`, each with a member's name and a socket."""

    name: str
    model: str
    """The registry reference, or `endpoint NAME`, or `view NAME` where records are only pushed.
    With `min_workers` less than `max_workers` their number goes by how far they are behind.
    """
    settings: WorkerSettings
    min_workers: int = 1
    max_workers: int = 1
    target_lag_s: float = 10.0
    runs_code: bool = False

    @property
    def way(self) -> str:
        """From where to where its records go, and by what, for people."""
        settings = self.settings
        source = ", ".join(settings.topics)
        view = "" if settings.features is None else f"view {settings.features.view}"
        if not settings.sink:
            return f"{source} to {view}"
        beside = f", and to {view}" if view else ""
        return f"{source} to {settings.sink} by {self.model}{beside}"


class DesiredState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that should run, and the spec document that said so.

    `generation` grows by one with every change.
    """

    generation: int = 0
    spec: dict[str, Any] = {}
    endpoints: tuple[DesiredEndpoint, ...] = ()
    pools: tuple[PoolSpec, ...] = ()
    streams: tuple[DesiredStream, ...] = ()

    def endpoint(self, name: str) -> DesiredEndpoint | None:
        """The endpoint of this name, if there is one."""
        return next((endpoint for endpoint in self.endpoints if endpoint.name == name), None)

    def entry(self, name: str) -> dict[str, Any] | None:
        """What the document says about the endpoint of this name."""
        entries: list[dict[str, Any]] = self.spec.get("endpoints", [])
        return next((entry for entry in entries if entry.get("name") == name), None)

    def revisions(self) -> dict[str, Revision]:
        """All revisions by id."""
        arms = (arm for endpoint in self.endpoints for arm in endpoint.arms)
        return {arm.revision.id: arm.revision for arm in arms}


def same_endpoint(one: DesiredEndpoint | None, other: DesiredEndpoint | None) -> bool:
    """Whether two endpoints are the same but for their generation."""
    if one is None or other is None:
        return one is other
    return msgspec.structs.replace(one, generation=0) == msgspec.structs.replace(
        other, generation=0
    )


POOL_PREFIX: Final = "pool:"
"""What the names of pools' own routes begin with; no endpoint's name has a colon."""


def pool_endpoint(pool: PoolSpec) -> DesiredEndpoint:
    """A pool's processes, as an endpoint of their own that no caller can name."""
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
) -> Revision:
    """The revision that runs `settings`, or that stands for `upstream`.

    Args:
        reload: Counts the operator's wishes to load the same model again; a new count is a new
            revision, so that a reload loses no request either.
        purpose: Tells copies apart that are the same otherwise, such as a rollout's baseline.
        content: The digest of a model that is served where it lies; empty if nobody knows it.
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
        ),
        purpose=purpose,
    )


def with_id(revision: Revision, *, purpose: str = "") -> Revision:
    """The same with the id that it gets now, as a former release may have given it another.

    Args:
        purpose: As `make_revision`.
    """
    assert revision.hosts is None, "a pool's own is made by `pool_endpoint`"
    settings = everywhere(revision.settings, revision.content)
    parts: list[object] = [revision.endpoint, settings, revision.reload]
    # What is empty is no part of it: revisions of older state keep their ids.
    named = (
        *(purpose, revision.upstream, revision.pool, revision.network and "network"),
        *(revision.best_effort and "best-effort", revision.memory_bytes, revision.unloadable),
    )
    parts += [extra for extra in named if extra]
    return msgspec.structs.replace(revision, id=digest_of(parts))


_DIGITS: Final = 16


def digest_of(parts: list[object]) -> str:
    """The id of what `parts` say; equal for equal ones."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:_DIGITS]


def everywhere(settings: ReplicaSettings, content: str = "") -> ReplicaSettings:
    """`settings` as all machines have them: for an id, not for a process.

    Two control planes give one id to the same content with the same settings, whatever their homes
    are and wherever features were defined. A path counts only where nothing says what is there: an
    online store outside the home, a Feast repository, a model that cannot be read as a whole. What
    a machine brings (library versions, ports, sockets) is no part of it: a process gets that at its
    start.

    A model's path becomes `DIGEST/NAME`, and a file in the home what it is called there.

    Args:
        content: The digest of a model that is in no home's artifacts; empty if nobody knows it.
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
