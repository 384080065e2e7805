"""Routes of endpoints: their replicas and traffic split. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from headrace.control.model.desired import DesiredArm, DesiredEndpoint, Revision
from headrace.control.model.observed import Replica, ReplicaPhase, addresses_of
from headrace.gateway import EndpointRoute, RevisionTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAddresses:
    """Addresses of pools: the ready replicas and the revisions that each hosts.

    `hosted` has revision ids by address, `by_pool` the addresses of each pool.
    """

    by_pool: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hosted: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def hosting(self, revision: Revision) -> tuple[str, ...]:
        """Return the addresses of ready replicas that host the revision in its pool."""
        addresses = self.by_pool.get(revision.pool, ())
        return tuple(a for a in addresses if revision.id in self.hosted.get(a, frozenset()))

    def still(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return those of `addresses` that are ready replicas of a pool."""
        return tuple(address for address in addresses if address in self.hosted)


@dataclass(frozen=True, kw_only=True)
class RoutedEndpoint:
    """A desired endpoint with its replicas that do not drain.

    `desired` are the replicas to keep for each desired revision, by its id. `former` are the others
    by version: of older revisions, or surplus ones. `current` is the published route. `pools` has
    the addresses of pools.
    """

    endpoint: DesiredEndpoint
    desired: Mapping[str, Sequence[Replica]]
    former: Mapping[str, Sequence[Replica]]
    current: EndpointRoute | None
    pools: PoolAddresses

    @classmethod
    def of(
        cls,
        endpoint: DesiredEndpoint,
        replicas: Iterable[Replica],
        current: EndpointRoute | None,
        pools: PoolAddresses | None = None,
    ) -> "RoutedEndpoint":
        """Return the view of `endpoint`; `replicas` are all of this endpoint that do not drain."""
        counts = {arm.revision.id: arm.replicas for arm in endpoint.arms}
        desired: dict[str, list[Replica]] = {revision_id: [] for revision_id in counts}
        previous: dict[str, list[Replica]] = defaultdict(list)
        for replica in sorted(replicas, key=_usefulness):
            assigned = desired.get(replica.revision_id)
            if assigned is not None and len(assigned) < counts[replica.revision_id]:
                assigned.append(replica)
            else:
                previous[replica.version].append(replica)
        return cls(
            endpoint=endpoint,
            desired=desired,
            former=previous,
            current=current,
            pools=pools or PoolAddresses(),
        )

    def is_settled(self, arm: DesiredArm) -> bool:
        """Whether as many replicas of `arm` as its weight needs were ready once, and one is now.

        A replica that crashed later does not count, else a crash would delay a rollback.
        """
        if arm.revision.pool:
            return bool(self.pools.hosting(arm.revision))
        if arm.revision.upstream is not None or arm.replicas == 0:
            return True
        replicas = self.desired[arm.revision.id]
        were_ready = sum(replica.was_ready for replica in replicas)
        required = arm.replicas if arm.required is None else min(arm.required, arm.replicas)
        return were_ready >= required and bool(_ready(replicas))

    @cached_property
    def may_switch(self) -> bool:
        """Whether the desired split can take over.

        True when all replicas of the desired split are ready, when the current split has no replica
        left, or when the desired split can answer requests and the current one cannot.
        """
        weighted = [arm for arm in self.endpoint.arms if arm.weight > 0]
        if all(self.is_settled(arm) for arm in weighted):
            return True
        if self._current_elsewhere():
            return False
        survivors = self._current_replicas()
        if _ready(survivors):
            return False
        return not survivors or any(self._can_answer(arm) for arm in weighted)

    def retained(self, route: EndpointRoute) -> list[Replica]:
        """Return the replicas to keep: desired ones, and former ones that `route` needs."""
        retained = [replica for replicas in self.desired.values() for replica in replicas]
        routed = addresses_of((route,))
        for version, replicas in self.former.items():
            is_kept = version in self._versions_on_previous
            retained += [r for r in replicas if r.was_ready and (is_kept or r.address in routed)]
        return retained

    def ready_for(self, key: str) -> tuple[str, ...]:
        """Return the ready addresses of the arm called `key`, in a stable order."""
        arm = self.endpoint.arm(key)
        if arm is not None and arm.revision.pool:
            hosting = self.pools.hosting(arm.revision)
            if hosting:
                return hosting
        replicas = list(self.desired[arm.revision.id]) if arm else []
        version = key.partition("~")[0]
        if version in self._versions_on_previous:
            replicas += self.former.get(version, ())
        return tuple(sorted(replica.address for replica in _ready(replicas)))

    def fallback(self) -> RevisionTarget | None:
        """Return an arm of former ready replicas, for a route that nothing else can answer.

        None if the endpoint has none, or needs none because it is scaled to zero.
        """
        versions = {version: _ready(replicas) for version, replicas in self.former.items()}
        version = max(versions, key=lambda version: len(versions[version]), default="")
        is_needed = any(arm.replicas or arm.revision.pool for arm in self.endpoint.arms)
        if not is_needed or not versions.get(version):
            return None
        addresses = tuple(sorted(replica.address for replica in versions[version]))
        arms = self.current.arms if self.current else ()
        openai = any(arm.openai for arm in arms if arm.version == version)
        encodes = any(arm.revision.encodes for arm in self.endpoint.arms)
        return RevisionTarget(
            version=version, weight=100, replicas=addresses, openai=openai, encodes=encodes
        )

    def _can_answer(self, arm: DesiredArm) -> bool:
        if arm.revision.pool:
            return bool(self.pools.hosting(arm.revision))
        return arm.revision.upstream is not None or bool(_ready(self.desired[arm.revision.id]))

    def _current_elsewhere(self) -> bool:
        """Whether the published split sends requests to a pool or to an upstream."""
        arms = [arm for arm in self.current.arms if arm.weight > 0] if self.current else []
        return any(arm.upstream is not None or self.pools.still(arm.replicas) for arm in arms)

    def _current_replicas(self) -> list[Replica]:
        """Return the replicas of the published split, including crashed ones, which restart."""
        if self.current is None:
            return []
        weighted = {arm.version for arm in self.current.arms if arm.weight > 0}
        everyone = [*self.desired.values(), *self.former.values()]
        return [
            replica
            for replicas in everyone
            for replica in replicas
            if replica.version in weighted and replica.was_ready
        ]

    @cached_property
    def _versions_on_previous(self) -> set[str]:
        """The versions that former replicas still serve."""
        versions = {a.revision.version for a in self.endpoint.arms if not self.is_settled(a)}
        if not self.may_switch:
            assert self.current is not None, "without a current split there is nothing to keep"
            versions |= {arm.version for arm in self.current.arms}
        return versions


def route_of(view: RoutedEndpoint) -> EndpointRoute:
    """Return the route that `view` should have now; arms without a ready replica are empty.

    If no arm has one, former replicas that are ready get all requests until one has.
    """
    endpoint, current = view.endpoint, view.current
    # Not part of a split: these apply immediately, even if replicas are not ready.
    common = EndpointRoute(
        name=endpoint.name,
        arms=(),
        timeout_s=endpoint.timeout_s,
        paused=endpoint.paused,
        access=endpoint.access,
        aliases=endpoint.aliases,
        limits=endpoint.limits,
        slo_latency_s=endpoint.slo_latency_s,
        request_log=endpoint.request_log,
        fallback=endpoint.fallback,
    )
    split: DesiredEndpoint | EndpointRoute = endpoint
    if view.may_switch:
        arms = tuple(
            RevisionTarget(
                version=arm.revision.version,
                role=arm.role,
                weight=arm.weight,
                replicas=view.ready_for(arm.key),
                upstream=arm.revision.upstream,
                pooled=bool(arm.revision.pool),
                openai=arm.revision.serves_openai,
                encodes=arm.revision.encodes,
            )
            for arm in endpoint.arms
        )
    else:
        assert current is not None
        split = current
        arms = tuple(
            replace(arm, replicas=view.ready_for(arm.key) or view.pools.still(arm.replicas))
            for arm in current.arms
        )
    scale = endpoint.autoscale
    answers = any(arm.is_live and arm.weight for arm in arms)
    fallback = None if answers else view.fallback()
    if fallback is not None:
        return replace(common, arms=(fallback,))
    if scale is not None and scale.min_replicas == 0 and not answers:
        return replace(common, arms=arms, held=True, hold_s=scale.hold_s, max_held=scale.max_held)
    return replace(
        common,
        arms=arms,
        sticky=split.sticky,
        mirror=split.mirror,
        split_id=split.split_id,
        needs_assignments=split.needs_assignments,
    )


def _ready(replicas: Iterable[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica.phase is ReplicaPhase.READY]


def _usefulness(replica: Replica) -> tuple[bool, bool, int]:
    """Return a sort key that puts the replicas to keep first: ready, proven, old."""
    return (replica.phase is not ReplicaPhase.READY, not replica.was_ready, replica.serial)
