"""Assignment of models to the replicas of a pool; a replica with other models is updated."""

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
_RETRY_S: Final = 0.25
LINGER_S: Final = 2.0
"""Seconds for which a replica hosts a model after the last route to it is gone."""
_HTTP_OK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """Models that a replica of a pool hosts, one per name and version, and their revisions."""

    models: tuple[ReplicaSettings, ...]
    revisions: tuple[Revision, ...]
    keeps: tuple[tuple[str, str], ...] = ()
    """Names and versions that it also keeps unchanged: an earlier control plane sent their
    settings, and requests for them may still come.
    """

    @property
    def revision_ids(self) -> frozenset[str]:
        """Ids of the revisions that it serves."""
        return frozenset(revision.id for revision in self.revisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgedModels:
    """Hosting that a process acknowledged last; `process` is as `Replica.process`."""

    process: int
    hosting: Hosting


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingUpdate:
    """Send a replica the models to host."""

    replica: str
    address: str
    process: int
    hosting: Hosting


SettingsOf = Callable[[Revision], ReplicaSettings | None]
"""Returns a model's settings for a replica; None if it cannot host the model where it runs."""


def unchanged_settings(revision: Revision) -> ReplicaSettings:
    """Return a model's settings for replicas on this machine, which see its files."""
    return revision.settings


def check_frameworks(old: Sequence[DesiredEndpoint], new: Sequence[DesiredEndpoint]) -> None:
    """Check that a change puts models of only one framework into each pool.

    A framework that a pool hosted before counts too, because its processes have imported it. A pool
    that has two frameworks from an earlier release blocks no other change.

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
    """Yield the hosting updates to send now; none if all replicas are current.

    A replica gets its models before it counts as ready, because it is not ready without them. It
    keeps hosting the models that the gateway may still send it requests for, desired or not.

    Args:
        desired: The desired state, as the gateway splits it.
        acknowledged: Acknowledged models by the replica's name.
        routed: Addresses to which the gateway may still send requests.
        updates: Returns a model's settings for a replica.
    """
    by_pool: dict[str, list[Revision]] = {POOL_PREFIX + pool.name: [] for pool in desired.pools}
    for endpoint in desired.endpoints:
        for arm in endpoint.arms:
            if arm.revision.pool:
                by_pool.setdefault(POOL_PREFIX + arm.revision.pool, []).append(arm.revision)
    # Names and versions with possible requests; a pool's route names its replicas too.
    expected: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for location in routed if by_pool else ():
        if location.endpoint not in by_pool:
            expected[location.address].add((location.endpoint, location.version))
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
    """Return the hosting of `revisions`, and of those in `extra` that do not conflict with them.

    Revisions with equal settings, such as a rollout's baseline and the current version, are one
    model. Of unequal ones with one name and version the first is hosted. Models without settings
    for this replica are left out.
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
    """Return the owners of the replicas that serve `endpoint`: the endpoint itself, or pools."""
    pools = {arm.revision.pool for arm in endpoint.arms} - {""}
    return [endpoint.name, *(f"{POOL_PREFIX}{pool}" for pool in sorted(pools))]


def hosted_replicas(
    endpoint: DesiredEndpoint, copies: Iterable[Replica], hosted: Mapping[str, frozenset[str]]
) -> Iterator[Replica]:
    """Yield the models of `endpoint` that pools host, each as if it were a separate replica.

    A baseline and the version that it is compared with are one model, which represents both.

    Args:
        copies: All replicas; those that are not ready replicas of a pool are skipped.
        hosted: The revisions that each replica serves, by its name.
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
    """Return where the gateway may send requests, by the routes that are or may be in force."""
    return frozenset(
        RoutedTo(address=address, endpoint=route.name, version=arm.version)
        for route in (*(observed.published or ()), *(observed.attempted or ()))
        for arm in route.arms
        for address in arm.replicas
    )


def _still_routed(
    revisions: Sequence[Revision], replica: Replica, routed: Collection[RoutedTo]
) -> Iterator[Revision]:
    """Yield those of `revisions` whose requests may come to `replica`."""
    for revision in revisions:
        location = RoutedTo(
            address=replica.address, endpoint=revision.endpoint, version=revision.version
        )
        if location in routed:
            yield revision


Put = Callable[[str, Hosting], Awaitable[PoolReport]]
"""Sends the replica at an address the models to host, like `put_models`."""


class PoolState(Protocol):
    """Observed and desired state of pools."""

    desired: DesiredState
    hosted: MutableMapping[str, frozenset[str]]
    """The revisions that each replica of a pool serves, by the replica's name."""

    @property
    def changes(self) -> ChangeSignal:
        """Signal for changes of the observed or desired state."""

    def observed(self) -> Observed:
        """Return the current observed state."""

    def may_act(self) -> bool:
        """Whether this control plane may change what runs."""

    def hosted_settings(self, revision: Revision) -> ReplicaSettings | None:
        """Return a model's settings for a pool's replica; None if the replica cannot host it."""


async def put_models(address: str, hosting: Hosting) -> PoolReport:
    """Set the models that the replica at `address` hosts; return its report.

    Raises:
        UnavailableError: The replica does not listen yet, or refuses.
        DeadlineExceededError: The replica does not answer in time.
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
    """Sends replicas of pools the models to host while `run` is awaited."""

    world: PoolState
    clock: Clock
    put: Put = put_models
    faults: Faults = field(default_factory=Faults)
    _acknowledged: dict[str, AcknowledgedModels] = field(default_factory=dict)
    _routed: frozenset[RoutedTo] = frozenset()
    _left_at: dict[RoutedTo, float] = field(default_factory=dict)
    _complaints: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep every replica's models current until cancelled."""
        while True:
            has_changed = False
            with self.faults.contain(LOOP, "pools"):
                has_changed = await self.step()
            if has_changed:
                # Changes during the step were signalled without a waiter and may need another step.
                await asyncio.sleep(_RETRY_S)
            else:
                await wait_for(self.world.changes.next, LINGER_S)

    async def step(self) -> bool:
        """Send all updates that are due now; return whether there were any."""
        if not self.world.may_act():
            return False
        observed = self.world.observed()
        # Drop removed replicas, and the acknowledgements of ended processes.
        for name, acknowledged in list(self._acknowledged.items()):
            replica = observed.replicas.get(name)
            if replica is None or replica.process != acknowledged.process:
                del self._acknowledged[name]
                self.world.hosted.pop(name, None)
                self._complaints.pop(name, None)
        routed = self._recently_routed(observed)
        replicas, hosted_settings = observed.replicas.values(), self.world.hosted_settings
        updates = list(
            plan_pools(self.world.desired, replicas, self._acknowledged, routed, hosted_settings)
        )
        self.faults.keep_only("pool replica", observed.replicas)
        replies = await asyncio.gather(*map(self._send_update, updates))
        if any(replies):
            self.world.changes.notify()
        return bool(updates)

    def _recently_routed(self, observed: Observed) -> Collection[RoutedTo]:
        """Return the current and recent routes: requests sent before a change may still arrive."""
        now = self.clock.monotonic()
        routed = routed_now(observed)
        for location in self._routed - routed:
            self._left_at.setdefault(location, now)
        self._left_at = {
            location: left_at
            for location, left_at in self._left_at.items()
            if location not in routed and now - left_at < LINGER_S
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
