"""Status of endpoints, in one document for people, scripts and the console. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headrace.control.gateway.first_request import FirstRequest
from headrace.control.local.sandbox import Isolation
from headrace.control.model.desired import POOL_PREFIX, DesiredArm, DesiredEndpoint
from headrace.control.model.observed import MANY_FAILURES, Observed, Replica, ReplicaPhase
from headrace.control.reconcile.pools import hosts_of
from headrace.core.devices import DeviceUse
from headrace.gateway import EndpointRoute
from headrace.observe.row_checks import BatchingReport

IsolationOf = Callable[[str], Isolation | None]
"""Returns the isolation of the named replica's process."""
DeviceOf = Callable[[str], DeviceUse | None]
"""Returns the device of the named replica's model, by its last report."""
BatchingOf = Callable[[str, str, str], BatchingReport | None]
"""Returns the batching report of an endpoint, arm and revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One process; `state` is a phase of its life, `reason` why it is not ready."""

    name: str
    state: str
    pid: int | None
    address: str
    restarts: int
    reason: str
    rss_bytes: int | None
    isolation: Isolation | None = None
    """Isolation of its process; null if unknown."""
    device: DeviceUse | None = None
    """Device of its model; null until the model is loaded, for pools, and if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionStatus:
    """One model version behind an endpoint; `weight` is its share of the requests now.

    A revision that is no longer wanted is listed until its last replica is gone. `role`: empty, or
    `baseline` for the fresh copies that a rollout compares with.
    """

    version: str
    model: str
    weight: int
    desired_weight: int
    desired_replicas: int
    replicas: tuple[ReplicaStatus, ...]
    role: str = ""
    runs_code: bool = False
    """Whether its format runs code of the model's author."""
    advice: str = ""
    """Threads and memory that one replica should have, from observations."""
    id: str = ""
    """Digest of all settings that its replicas depend on."""
    batching: BatchingReport | None = None
    """Whether its requests share batches, and why; null until a replica has loaded the model."""
    batching_message: str = ""
    """`batching` as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """One endpoint; `message` says why it is not ready, `note` has further information."""

    name: str
    ready: bool
    failed: bool
    """Whether it cannot become ready without a change."""
    url: str
    revisions: tuple[RevisionStatus, ...]
    message: str
    note: str = ""
    paused: bool = False
    """Whether the gateway refuses its requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """Inputs of a status besides the observed state; see `endpoint_statuses`."""

    first_requests: Mapping[str, FirstRequest] | None
    http_url: str
    rss_bytes: Mapping[int, int | None]
    advice: Callable[[str, str], str]
    arm_problem: Callable[[str, DesiredArm], str]
    isolation: IsolationOf
    device: DeviceOf
    batching: BatchingOf


def endpoint_statuses(
    endpoints: Sequence[DesiredEndpoint],
    observed: Observed,
    *,
    first_requests: Mapping[str, FirstRequest] | None,
    http_url: str,
    rss_bytes: Mapping[int, int | None],
    advice: Callable[[str, str], str] = lambda _endpoint, _arm: "",
    arm_problem: Callable[[str, DesiredArm], str] = lambda _endpoint, _arm: "",
    isolation: IsolationOf = lambda _: None,
    device: DeviceOf = lambda _: None,
    batching: BatchingOf = lambda _endpoint, _arm, _revision: None,
) -> tuple[EndpointStatus, ...]:
    """Return the status of each of `endpoints`.

    Args:
        first_requests: By endpoint; None if they are not sent.
        rss_bytes: Memory by pid.
        advice: What one copy of an endpoint's arm should have.
        trouble: Why an endpoint's arm cannot be had; empty if it can.
        isolation: How the process of the replica of a name is kept apart.
        device: On what the replica of a name runs its model.
        batching: What replicas report of an arm's batching.
    """
    published = {route.name: route for route in observed.published or ()}
    by_host: dict[str, list[Replica]] = {}
    for replica in observed.replicas.values():
        by_host.setdefault(replica.endpoint, []).append(replica)
    facts = _Facts(
        first_requests=first_requests,
        http_url=http_url,
        rss_bytes=rss_bytes,
        advice=advice,
        arm_problem=arm_problem,
        isolation=isolation,
        device=device,
        batching=batching,
    )
    return tuple(
        _endpoint(
            endpoint,
            [r for host in sorted(hosts_of(endpoint)) for r in by_host.get(host, ())],
            published.get(endpoint.name),
            facts,
        )
        for endpoint in endpoints
    )


def is_routed_as_desired(endpoint: DesiredEndpoint, route: EndpointRoute | None) -> bool:
    """Whether requests follow the desired split, and each weighted version can answer.

    An endpoint that is scaled to zero can answer: its first request waits for the first replica.
    """
    if route is None:
        return False
    expected = {arm.key: arm.weight for arm in endpoint.arms}
    have = {arm.key: arm.weight for arm in route.arms}
    # A route that holds requests has neither.
    extras = (None, "") if route.held else (endpoint.mirror, endpoint.split_id)
    if expected != have or (route.mirror, route.split_id) != extras:
        return False
    if route.held:
        return endpoint.scaled_to_zero
    return all(arm.is_live for arm in route.arms if arm.weight)


def revision_ids(endpoint: DesiredEndpoint) -> tuple[str, ...]:
    """Return the ids of the endpoint's revisions, sorted."""
    return tuple(sorted(arm.revision.id for arm in endpoint.arms))


def _endpoint(
    endpoint: DesiredEndpoint,
    replicas: Sequence[Replica],
    route: EndpointRoute | None,
    facts: _Facts,
) -> EndpointStatus:
    name, serving = endpoint.name, _serving_arms(endpoint)
    problems = [line for arm in serving for line in _arm_problems(arm, replicas)]
    failing = [(arm, reason) for arm in serving if (reason := facts.arm_problem(name, arm))]
    for arm, reason in failing:
        upstream = arm.revision.upstream
        location = "" if upstream is None else f": upstream {upstream.url}"
        problems.append(f"version {arm.revision.version}{location}: {reason}")
    if not problems and not _is_reached(endpoint, route):
        problems.append("waiting for the gateway to route to it")
    first = (facts.first_requests or {}).get(name)
    is_asked = endpoint.gets_first_request
    if not problems and facts.first_requests is not None and is_asked:
        problems += _first_request_problems(endpoint, first)
    note = first.note if first and first.revisions == revision_ids(endpoint) else ""
    return EndpointStatus(
        name=name,
        ready=not problems,
        failed=_has_failed(serving, replicas, first if is_asked else None)
        or any(arm.revision.upstream is None for arm, _ in failing),
        url=f"{facts.http_url}/v2/models/{name}/infer",
        revisions=_revisions(endpoint, replicas, route, facts),
        message="; ".join(problems),
        note="paused: the gateway refuses its requests" if endpoint.paused else note,
        paused=endpoint.paused,
    )


def _serving_arms(endpoint: DesiredEndpoint) -> list[DesiredArm]:
    """Return the arms that the endpoint needs to be ready, without a rollout's candidate."""
    if not endpoint.split_id:
        return list(endpoint.arms)
    return [arm for arm in endpoint.arms if arm.required is not None]


def _is_reached(endpoint: DesiredEndpoint, route: EndpointRoute | None) -> bool:
    """Whether requests reach the desired replicas; during a rollout, any replica."""
    if endpoint.split_id and route is not None:
        return any(arm.is_live and arm.weight for arm in route.arms)
    return is_routed_as_desired(endpoint, route)


def _arm_problems(arm: DesiredArm, replicas: Sequence[Replica]) -> list[str]:
    own = [r for r in replicas if r.revision_id == arm.revision.id and not r.is_leaving]
    ready = sum(replica.phase is ReplicaPhase.READY for replica in own)
    if ready >= arm.replicas:
        return []
    reasons = list(
        dict.fromkeys(r.reason for r in own if r.reason and r.phase is not ReplicaPhase.READY)
    )
    detail = f": {'; '.join(reasons)}" if reasons else ""
    return [f"version {arm.revision.version}: {ready} of {arm.replicas} replicas ready{detail}"]


def _first_request_problems(endpoint: DesiredEndpoint, first: FirstRequest | None) -> list[str]:
    if first is None or first.revisions != revision_ids(endpoint):
        return ["waiting for the first answer"]
    if first.answered:
        return []
    status = f" with HTTP status {first.status}" if first.status else ""
    return [f"the first request failed{status}: {first.message}"]


def _has_failed(
    serving: Sequence[DesiredArm], replicas: Sequence[Replica], first: FirstRequest | None
) -> bool:
    revision_ids = {arm.revision.id for arm in serving}
    own = [r for r in replicas if r.revision_id in revision_ids and not r.is_leaving]
    if any(
        r.cannot_load or (r.failures >= MANY_FAILURES and r.phase is not ReplicaPhase.READY)
        for r in own
    ):
        return True
    return first is not None and not first.answered and set(first.revisions) == revision_ids


def _revisions(
    endpoint: DesiredEndpoint,
    replicas: Sequence[Replica],
    route: EndpointRoute | None,
    facts: _Facts,
) -> tuple[RevisionStatus, ...]:
    weights = {arm.key: arm.weight for arm in route.arms} if route else {}
    arms = {arm.revision.id: arm for arm in endpoint.arms}
    own = [replica for replica in replicas if replica.endpoint == endpoint.name]
    previous = {r.revision_id: r.version for r in own if r.revision_id not in arms}
    rows = []
    for revision_id, version in [
        *((arm.revision.id, arm.revision.version) for arm in endpoint.arms),
        *previous.items(),
    ]:
        arm = arms.get(revision_id)
        # Two revisions of one version share its weight; it is shown at the desired one.
        shows_weight = arm is not None or version not in {
            other.revision.version for other in endpoint.arms
        }
        report = facts.batching(endpoint.name, arm.key, revision_id) if arm else None
        pool = arm.revision.pool if arm else ""
        rows.append(
            RevisionStatus(
                id=revision_id,
                batching=report,
                batching_message="" if report is None else report.text,
                version=version,
                model=arm.revision.model if arm else "",
                weight=weights.get(arm.key if arm else version, 0) if shows_weight else 0,
                role=arm.role if arm else "",
                runs_code=arm.revision.runs_code if arm else False,
                advice=facts.advice(endpoint.name, arm.key) if arm else "",
                desired_weight=arm.weight if arm else 0,
                desired_replicas=arm.replicas if arm else 0,
                # Replicas that run it, or belong to the pool that hosts it.
                replicas=tuple(
                    _replica(replica, facts)
                    for replica in sorted(replicas, key=lambda r: r.serial)
                    if (
                        replica.endpoint == f"{POOL_PREFIX}{pool}"
                        if pool
                        else replica.revision_id == revision_id
                    )
                ),
            )
        )
    return tuple(rows)


def _replica(replica: Replica, facts: _Facts) -> ReplicaStatus:
    return ReplicaStatus(
        name=replica.name,
        state=replica.phase.value,
        pid=replica.pid,
        address=replica.address,
        restarts=replica.restarts,
        reason=replica.reason,
        rss_bytes=None if replica.pid is None else facts.rss_bytes.get(replica.pid),
        isolation=None if replica.pid is None else facts.isolation(replica.name),
        device=facts.device(replica.name) if replica.phase is ReplicaPhase.READY else None,
    )
