"""Models that each replica of a pool hosts; a replica is asked whenever it differs."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlencode

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.base.journal import ChangeSignal, wait_for
from headrace.control.model.desired import POOL_PREFIX, DesiredEndpoint, DesiredState, Revision
from headrace.control.model.observed import Observed, Replica, ReplicaPhase
from headrace.core import (
    Clock,
    EndpointName,
    FailedPreconditionError,
    HeadraceError,
    ReplicaSettings,
    UnavailableError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import fetch
from headrace.runtimes import framework_named
from headrace.runtimes.libraries import FRAMEWORKS
from headrace.serving.telemetry.report import PoolReport

_LOG: Final = logging.getLogger("headrace.control")
_PATH: Final = "/internal/models"
_TIMEOUT_S: Final = 2.0
_AGAIN_S: Final = 0.25
LINGER_S: Final = 2.0
"""How much longer a copy hosts what no route sends to it any more."""
_HTTP_OK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What a copy of a pool hosts: one model for each name and version, and whose they are."""

    models: tuple[ReplicaSettings, ...]
    revisions: tuple[Revision, ...]
    keeps: tuple[tuple[str, str], ...] = ()
    """Names and versions that it goes on hosting besides, as it has them: an earlier control plane
    told it what these are, and requests for them may still come.
    """

    @property
    def revision_ids(self) -> frozenset[str]:
        """Which revisions it answers for."""
        return frozenset(revision.id for revision in self.revisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgedModels:
    """What a process was told last, and acknowledged. `process` as `Replica.process`."""

    process: int
    hosting: Hosting


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingUpdate:
    """Tell a copy what to host."""

    replica: str
    address: str
    process: int
    hosting: Hosting


SettingsOf = Callable[[Revision], ReplicaSettings | None]
"""How a copy is told of a model; None if it cannot host it where it runs."""


def unchanged_settings(revision: Revision) -> ReplicaSettings:
    """What copies on this machine are told of a model: they see its files."""
    return revision.settings


def check_frameworks(old: Sequence[DesiredEndpoint], new: Sequence[DesiredEndpoint]) -> None:
    """Refuse a change that puts models of two frameworks into one pool, whose copies hold one.

    What a pool hosted before counts too, as its processes have imported it. A pool that was given
    both by an earlier release stops no other change.

    Raises:
        FailedPreconditionError: The message names the pool, both endpoints and the remedy.
    """
    before = [arm.revision for endpoint in old for arm in endpoint.arms if arm.revision.pool]
    after = [arm.revision for endpoint in new for arm in endpoint.arms if arm.revision.pool]
    runtimes = {revision.settings.runtime for revision in (*before, *after)}
    frameworks = {runtime: framework_named(runtime) for runtime in runtimes}
    hosted: dict[str, dict[str, EndpointName]] = defaultdict(dict)
    for revision in (*before, *after):
        if framework := frameworks[revision.settings.runtime]:
            hosted[revision.pool][framework] = revision.endpoint
    for revision in after:
        framework = frameworks[revision.settings.runtime]
        others = [name for name in hosted[revision.pool] if name != framework]
        if framework and others and revision not in before:
            msg = (
                f"pool '{revision.pool}' cannot host {FRAMEWORKS[framework]} models (endpoint "
                f"'{revision.endpoint}') beside {FRAMEWORKS[others[0]]} models (endpoint "
                f"'{hosted[revision.pool][others[0]]}'), as no process holds both: "
                "give one of the two another pool, or none"
            )
            raise FailedPreconditionError(msg)


class RoutedTo(NamedTuple):
    """An address to which requests for a version of an endpoint may be sent."""

    address: str
    endpoint: str
    version: str


def plan_pools(
    desired: DesiredState,
    replicas: Iterable[Replica],
    acknowledged: Mapping[str, AcknowledgedModels],
    routed: Collection[RoutedTo],
    updates: SettingsOf = unchanged_settings,
) -> Iterator[HostingUpdate]:
    """What to tell which copies now; nothing if each one knows.

    A copy is told before it counts as ready, because it is not ready before it is told. It goes on
    hosting what the gateway may still send it, desired or not.

    Args:
        desired: What should run, as the gateway splits it.
        acknowledged: By the replica's name.
        routed: Where the gateway may still send requests.
        updates: How copies are told of a model.
    """
    by_pool: dict[str, list[Revision]] = {POOL_PREFIX + pool.name: [] for pool in desired.pools}
    for endpoint in desired.endpoints:
        for arm in endpoint.arms:
            if arm.revision.pool:
                by_pool.setdefault(POOL_PREFIX + arm.revision.pool, []).append(arm.revision)
    # Names and versions that requests may come for; a pool's own route names its copies too.
    expected: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for where in routed if by_pool else ():
        if where.endpoint not in by_pool:
            expected[where.address].add((where.endpoint, where.version))
    for replica in replicas:
        if not replica.is_running or replica.endpoint not in by_pool or not replica.address:
            continue
        current = acknowledged.get(replica.name)
        still_routed = (
            () if current is None else _still_routed(current.hosting.revisions, replica, routed)
        )
        hosting = host(by_pool[replica.endpoint], still_routed, updates)
        hosted = {(model.model_name, model.model_version) for model in hosting.models}
        hosting = replace(hosting, keeps=tuple(sorted(expected[replica.address] - hosted)))
        if current is None or current.process != replica.process or current.hosting != hosting:
            yield HostingUpdate(
                replica=replica.name,
                address=replica.address,
                process=replica.process,
                hosting=hosting,
            )


def host(
    revisions: Iterable[Revision],
    extra: Iterable[Revision] = (),
    updates: SettingsOf = unchanged_settings,
) -> Hosting:
    """What hosts `revisions`, and `extra` besides where they are not in their way.

    Revisions of equal settings, such as a rollout's baseline beside what it is measured against,
    are one model. Of unequal ones with one name and version the first is hosted. What cannot be
    told is left out.
    """
    models: dict[tuple[str, str], ReplicaSettings] = {}
    answered: dict[str, Revision] = {}
    for revision in (*revisions, *extra):
        settings = updates(revision)
        if settings is None:
            continue
        key = settings.model_name, settings.model_version
        if models.setdefault(key, settings) == settings:
            answered[revision.id] = revision
    return Hosting(
        models=tuple(models[key] for key in sorted(models)),
        revisions=tuple(answered[key] for key in sorted(answered)),
    )


def hosts_of(endpoint: DesiredEndpoint) -> list[str]:
    """Whose replicas answer for `endpoint`: its own, or those of a pool."""
    pools = {arm.revision.pool for arm in endpoint.arms} - {""}
    return [endpoint.name, *(f"{POOL_PREFIX}{pool}" for pool in sorted(pools))]


def hosted_replicas(
    endpoint: DesiredEndpoint, copies: Iterable[Replica], hosted: Mapping[str, frozenset[str]]
) -> Iterator[Replica]:
    """What copies of pools run of `endpoint`, as if each model were a replica of its own.

    A baseline is one model with what it is measured against; it then stands for both.

    Args:
        copies: All replicas; those that are no ready copies of a pool are passed over.
        hosted: Which revisions each copy answers for, by its name.
    """
    pooled = [arm for arm in endpoint.arms if arm.revision.pool]
    models = {arm.revision.version: arm for arm in sorted(pooled, key=lambda arm: bool(arm.role))}
    for copy in copies if models else ():
        ids = hosted.get(copy.name, frozenset())
        for arm in models.values():
            revision = arm.revision
            if copy.phase is ReplicaPhase.READY and revision.id in ids:
                names = {"model": revision.settings.model_name, "version": revision.version}
                yield replace(
                    copy,
                    name=f"{copy.name}/{revision.id}",
                    endpoint=endpoint.name,
                    version=revision.version,
                    revision_id=revision.id,
                    query=urlencode(names),
                )


def routed_now(observed: Observed) -> frozenset[RoutedTo]:
    """Where the gateway may send requests, by the routes that are or may be in force."""
    return frozenset(
        RoutedTo(address=address, endpoint=route.name, version=arm.version)
        for route in (*(observed.published or ()), *(observed.attempted or ()))
        for arm in route.arms
        for address in arm.replicas
    )


def _still_routed(
    revisions: Sequence[Revision], replica: Replica, routed: Collection[RoutedTo]
) -> Iterator[Revision]:
    """Those of `revisions` whose requests may come to `replica`."""
    for revision in revisions:
        where = RoutedTo(
            address=replica.address, endpoint=revision.endpoint, version=revision.version
        )
        if where in routed:
            yield revision


Put = Callable[[str, Hosting], Awaitable[PoolReport]]
"""Tells the copy at an address what to host, as `put_models`."""


class PoolState(Protocol):
    """What runs and should run."""

    desired: DesiredState
    hosted: MutableMapping[str, frozenset[str]]
    """Which revisions each copy of a pool answers for, by the replica's name."""

    @property
    def changes(self) -> ChangeSignal:
        """Changes of anything observed or desired."""

    def observed(self) -> Observed:
        """Everything known now."""

    def may_act(self) -> bool:
        """Whether it is this control plane that says what runs."""

    def hosted_settings(self, revision: Revision) -> ReplicaSettings | None:
        """How a copy of a pool is told of a model; None if it cannot host it where it runs."""


async def put_models(address: str, hosting: Hosting) -> PoolReport:
    """Tell the copy at `address` what to host, and nothing else; what it does now.

    Raises:
        UnavailableError: Nobody listens yet, or it refuses.
        DeadlineExceededError: It does not answer.
    """
    body = msgspec.json.encode(hosting.models)
    keeps = urlencode([("keep", f"{name}/{version}") for name, version in hosting.keeps])
    path = f"{_PATH}?{keeps}" if keeps else _PATH
    answer = await fetch(address, path, method="PUT", body=body, timeout_s=_TIMEOUT_S)
    if answer.status != _HTTP_OK:
        text = answer.body[:200].decode(errors="replace")
        msg = f"{address} refuses the list of its models: {answer.status} {text}"
        raise UnavailableError(msg)
    try:
        return msgspec.json.decode(answer.body, type=PoolReport)
    except UNDECODABLE as error:
        msg = f"{address} does not answer as a pool: {error}"
        raise UnavailableError(msg) from error


@dataclass(slots=True, kw_only=True)
class PoolSync:
    """Tells copies of pools what to host, for as long as `run` is awaited."""

    world: PoolState
    clock: Clock
    put: Put = put_models
    faults: Faults = field(default_factory=Faults)
    _acknowledged: dict[str, AcknowledgedModels] = field(default_factory=dict)
    _routed: frozenset[RoutedTo] = frozenset()
    _left_at: dict[RoutedTo, float] = field(default_factory=dict)
    _complaints: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep every copy informed until cancelled."""
        while True:
            has_changed = False
            with self.faults.contain(LOOP, "pools"):
                has_changed = await self.step()
            if has_changed:
                # What changed meanwhile rang while nobody waited, and may have to be told again.
                await asyncio.sleep(_AGAIN_S)
            else:
                await wait_for(self.world.changes.next, LINGER_S)

    async def step(self) -> bool:
        """Tell all copies that have to be told now; whether there were any."""
        if not self.world.may_act():
            return False
        observed = self.world.observed()
        # Let go of replicas that are gone, and of what ended processes were told.
        for name, acknowledged in list(self._acknowledged.items()):
            replica = observed.replicas.get(name)
            if replica is None or replica.process != acknowledged.process:
                del self._acknowledged[name]
                self.world.hosted.pop(name, None)
                self._complaints.pop(name, None)
        routed = self._routed_lately(observed)
        replicas, hosted_settings = observed.replicas.values(), self.world.hosted_settings
        updates = list(
            plan_pools(self.world.desired, replicas, self._acknowledged, routed, hosted_settings)
        )
        self.faults.keep_only("pool replica", observed.replicas)
        heard = await asyncio.gather(*map(self._send_update, updates))
        if any(heard):
            self.world.changes.notify()
        return bool(updates)

    def _routed_lately(self, observed: Observed) -> Collection[RoutedTo]:
        """Where requests may come from: those that were sent before a change are on their way."""
        now = self.clock.monotonic()
        routed = routed_now(observed)
        for where in self._routed - routed:
            self._left_at.setdefault(where, now)
        self._left_at = {
            where: left_at
            for where, left_at in self._left_at.items()
            if where not in routed and now - left_at < LINGER_S
        }
        self._routed = routed
        return routed | self._left_at.keys()

    async def _send_update(self, update: HostingUpdate) -> bool:
        name, is_sent = update.replica, False
        with self.faults.contain("pool replica", name):
            try:
                await self.put(update.address, update.hosting)
                is_sent = True
            except HeadraceError as error:
                if self._complaints.get(name) != str(error):
                    extra = {"replica": name, "why": str(error)}
                    _LOG.info("cannot update a pool replica", extra=extra)
                self._complaints[name] = str(error)
        if not is_sent:
            return False
        self._acknowledged[name] = AcknowledgedModels(
            process=update.process, hosting=update.hosting
        )
        self.world.hosted[name] = update.hosting.revision_ids
        self._complaints.pop(name, None)
        _LOG.info(
            "updated a pool replica", extra={"replica": name, "models": len(update.hosting.models)}
        )
        return True
