"""Controller of the resource `Endpoint`: one more client of the desired state, in the leader.

Each generation of a resource is applied once, and its number is stored with the endpoint. So what
`undo`, a rollback or a promotion led to outlasts restarts: the resource has what is wanted, its
status what runs.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.control.auth.home_token import HOME_OWNER
from headrace.control.base.faults import LOOP, Faults, message_of
from headrace.control.base.journal import wait_for
from headrace.control.base.settings import ClusterSettings
from headrace.control.desired.service import DesiredStateService, ResourceEndpoint
from headrace.control.desired.target import TargetState
from headrace.control.kubernetes.api import (
    RESOURCES,
    ApiUnavailableError,
    ClusterApi,
    ObjectChangedError,
    ObjectFailedError,
    ObjectMissingError,
    connect,
)
from headrace.control.kubernetes.names import (
    ENDPOINT,
    FINALIZER,
    INSTANCE,
    RESOURCE,
    Object,
    label_value,
)
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.control.kubernetes.snapshot import ClusterSnapshot, Watches, is_leaving
from headrace.control.model.desired import DesiredEndpoint, ResourceOrigin, digest_of
from headrace.control.model.records import Event, RolloutRecord
from headrace.control.reconcile.conditions import ConditionType, conditions_of
from headrace.control.reconcile.status import EndpointStatus
from headrace.core import ConflictError, HeadraceError, PermissionDeniedError
from headrace.core.spec.parse import SpecError
from headrace.core.text import iso_text

_STEP_S: Final = 1.0
"""Least time between two steps, and so between two writes of one status."""
_RETRY_S: Final = 60.0
"""Seconds after which a refused resource is tried again: its model may have been pushed."""
_KIND: Final = "endpoint resource"
"""Kind of the faults of resources that are refused."""
_OBJECT: Final = "endpoint object"
"""Kind of the faults of resources that cannot be written."""
_MAX_EVENTS: Final = 4096
"""Events whose number is counted."""
_MAX_MESSAGE: Final = 1024
_DEGRADED: Final = "Degraded"
_WARNINGS: Final = frozenset(
    {"Aborted", "ClusterTrouble", "Died", "DriftFound", "FeatureSkew", "Firing", "RolledBack"}
    | {"RollHeld", "RowsDiffer", "UpstreamFailed", "Waits"}
)
"""Reasons of events that are warnings in Kubernetes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFacts:
    """What the control plane knows of the endpoint of a resource."""

    desired: DesiredEndpoint | None = None
    """None while the resource defines no endpoint, also if another one has its name."""
    status: EndpointStatus | None = None
    rollout: RolloutRecord | None = None
    """The rollout that decides what it serves."""
    error: HeadraceError | None = None
    """Why this generation of the resource is not applied."""


def origin_of(resource: Object) -> ResourceOrigin:
    """Return which generation of which resource it is."""
    metadata = resource["metadata"]
    return ResourceOrigin(uid=str(metadata["uid"]), generation=int(metadata["generation"]))


def endpoint_of(resource: Object) -> ResourceEndpoint:
    """Return the endpoint that a resource defines, as it would be in a spec."""
    spec = dict(resource["spec"])
    pods = spec.pop("kubernetes", None)
    entry = {"name": resource["metadata"]["name"], **spec}
    return ResourceEndpoint(entry=entry, pods=pods, origin=origin_of(resource))


def status_of(resource: Object, facts: ResourceFacts, *, instance: str, now: float) -> Object:
    """Return the status of a resource; unchanged conditions keep their time."""
    metadata, before = resource["metadata"], resource.get("status") or {}
    desired, status, error = facts.desired, facts.status, facts.error
    is_seen = error is not None or (desired is not None and desired.resource == origin_of(resource))
    observed = metadata["generation"] if is_seen else before.get("observedGeneration")
    previous = {condition["type"]: condition for condition in before.get("conditions") or ()}
    result: Object = {
        "conditions": [
            _condition(kind, row, previous.get(kind), generation=observed or 0, now=now)
            for kind, row in _conditions(facts, now).items()
        ]
    }
    if observed is not None:
        result["observedGeneration"] = observed
    if status is None:
        return result
    versions: list[Object] = [
        {
            "version": f"{revision.version} {revision.role}".strip(),
            "model": revision.model,
            "weight": revision.weight,
            "replicas": revision.desired_replicas,
            "ready": sum(replica.state == "ready" for replica in revision.replicas),
        }
        for revision in status.revisions
    ]
    name = label_value(metadata["name"])
    return result | {
        "versions": versions,
        "split": ", ".join(f"{row['version']} ({row['weight']}%)" for row in versions),
        "replicas": sum(len(revision.replicas) for revision in status.revisions),
        "readyReplicas": sum(row["ready"] for row in versions),
        "selector": f"{ENDPOINT}={name},{INSTANCE}={instance}",
        "url": status.url,
    }


_Row = tuple[bool, str, str]
"""Status, reason and message of a condition."""


def _conditions(facts: ResourceFacts, now: float) -> dict[str, _Row]:
    """Return the conditions of a resource by type."""
    desired, status, error = facts.desired, facts.status, facts.error
    pending: _Row = (False, "Pending", "waiting to be applied")
    rows = {
        str(kind): pending
        for kind in (ConditionType.READY, ConditionType.PROGRESSING, ConditionType.ROLLED_BACK)
    }
    rows[_DEGRADED] = (False, "AsExpected", "")
    if desired is not None and status is not None:
        rows |= {
            str(one.type): (one.status, one.reason, one.message)
            for one in conditions_of(status, facts.rollout, now=now)
            if one.type in rows
        }
        if desired.spec_source and facts.rollout is None:
            runs = " and ".join(arm.revision.model for arm in desired.arms)
            named = " and ".join(model for _, model, _, _ in desired.spec_source)
            message = f"{runs} runs, and the resource names {named}"
            rows[ConditionType.ROLLED_BACK] = (True, "Undone", message)
        if status.failed:
            rows[_DEGRADED] = (True, "Failed", status.message)
    if error is not None:
        # What was applied before may serve, but `kubectl wait` must not take it for this.
        reason, message = _reason_of(error), message_of(error)
        rows |= {ConditionType.READY: (False, reason, message), _DEGRADED: (True, reason, message)}
    return rows


def _reason_of(error: HeadraceError) -> str:
    match error:
        case SpecError():
            return "InvalidSpec"
        case PermissionDeniedError():
            return "NotAllowed"
        case _:
            return "Conflict"


def _condition(
    kind: str, row: _Row, previous: Object | None, *, generation: int, now: float
) -> Object:
    status, reason, message = "True" if row[0] else "False", row[1], row[2]
    since = iso_text(now)
    if previous is not None and previous.get("status") == status:
        since = previous["lastTransitionTime"]
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:_MAX_MESSAGE],
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }


def event_of(event: Event, resource: Object, *, first: float, count: int) -> Object:
    """Return an event of the journal as the cluster's event of a resource."""
    metadata = resource["metadata"]
    digest = digest_of([metadata["uid"], event.reason, event.message])
    api_version = RESOURCES["Event"].api_version
    return {
        "apiVersion": api_version,
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{digest}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": RESOURCES[RESOURCE].api_version,
            "kind": RESOURCE,
            **{key: metadata[key] for key in ("name", "namespace", "uid")},
        },
        "type": "Warning" if event.reason in _WARNINGS else "Normal",
        "reason": event.reason,
        "message": event.message[:_MAX_MESSAGE],
        "firstTimestamp": iso_text(first),
        "lastTimestamp": iso_text(event.at),
        "count": count,
        "source": {"component": "headrace"},
    }


def finalizer_change(resource: Object, *, is_set: bool) -> Object | None:
    """Return the merge patch that adds or removes our finalizer; None if nothing changes."""
    metadata = resource["metadata"]
    finalizers = metadata.get("finalizers") or []
    if (FINALIZER in finalizers) is is_set:
        return None
    others = [name for name in finalizers if name != FINALIZER]
    return {
        "metadata": {
            "finalizers": [*others, *([FINALIZER] if is_set else [])],
            "resourceVersion": metadata["resourceVersion"],
        }
    }


def released(settings: ClusterSettings) -> list[str]:
    """Remove our finalizer from all resources, which stay; return their names. Blocking."""

    async def release() -> list[str]:
        http = connect(identity="release", url=settings.url, context=settings.context)
        async with http:
            api, names = ClusterApi(http=http, namespace=settings.namespace), list[str]()
            while True:
                try:
                    listed = await api.list(RESOURCE, "")
                except (ObjectMissingError, PermissionDeniedError):
                    return names  # without the resource or the right, none was held
                changes = {
                    item["metadata"]["name"]: change
                    for item in listed.items
                    if (change := finalizer_change(item, is_set=False)) is not None
                }
                if not changes:
                    return names
                for name, change in changes.items():
                    with contextlib.suppress(ObjectChangedError, ObjectMissingError):  # once more
                        await api.merge(RESOURCE, name, change)
                        names.append(name)

    return asyncio.run(release())


@dataclass(slots=True, kw_only=True)
class EndpointController:
    """Applies the `Endpoint` resources of a namespace, and writes their status and events.

    Without the definition of the resource in the cluster it does nothing.
    """

    api: ClusterApi
    reconciler: KubernetesReconciler
    desired_state: DesiredStateService
    statuses: Callable[[Sequence[DesiredEndpoint]], Sequence[EndpointStatus]]
    has_file: bool
    """Whether a spec file is applied too, without which its endpoints would be removed."""
    cluster: ClusterSnapshot = field(default_factory=ClusterSnapshot)
    watches: Watches = field(init=False)
    _refused: dict[str, tuple[ResourceOrigin, HeadraceError, float]] = field(default_factory=dict)
    _counts: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.watches = Watches(
            api=self.api,
            cluster=self.cluster,
            selector="",
            on_change=self._wake.set,
            kinds=(RESOURCE,),
        )

    @property
    def _faults(self) -> Faults:
        return self.desired_state.faults

    @property
    def _target(self) -> TargetState:
        return self.desired_state.target_state

    async def run(self) -> None:
        """Control until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watches.run())
            group.create_task(self._follow_changes())
            group.create_task(self._write_events())
            while True:
                self._wake.clear()
                with self._faults.contain(LOOP, "endpoint resources"):
                    await self.step()
                await asyncio.sleep(_STEP_S)
                await wait_for(self._wake, _RETRY_S)

    async def step(self) -> None:
        """Apply and remove endpoints, and write statuses that differ."""
        is_ready = self._target.desired.generation > 0 or not self.has_file
        if not (is_ready and self.reconciler.is_leader() and self.watches.is_synced):
            return
        if RESOURCE in self.watches.lacking:
            return  # its objects are unknown, and not gone
        resources = {item["metadata"]["name"]: item for item in self.cluster.of_kind(RESOURCE)}
        for kind in (_KIND, _OBJECT):
            self._faults.keep_only(kind, resources)
        await self._apply(resources)
        await self._remove(resources)
        await self._write_statuses(resources)

    async def _apply(self, resources: Mapping[str, Object]) -> None:
        """Apply each generation that was not applied yet."""
        now = self.reconciler.clock.monotonic()
        due: dict[str, ResourceEndpoint] = {}
        for name, resource in resources.items():
            served, origin = self._target.desired.endpoint(name), origin_of(resource)
            if is_leaving(resource) or (served is not None and served.resource == origin):
                self._refused.pop(name, None)
                continue
            refused = self._refused.get(name)
            if refused is not None and refused[0] == origin and now < refused[2]:
                continue
            with self._contained(name):
                # Without it the resource could vanish, and leave its endpoint.
                await self._set_finalizer(resource, is_set=True)
                due[name] = endpoint_of(resource)
        if not due:
            return
        with contextlib.suppress(ConflictError):  # other changes were faster: the next step
            errors = await self.desired_state.apply_endpoints(due)
            for name in due:
                with self._faults.contain(_KIND, name):
                    self._refused.pop(name, None)
                    if name in errors:
                        retry_at = now + _RETRY_S
                        self._refused[name] = (origin_of(resources[name]), errors[name], retry_at)
                        raise errors[name]

    async def _remove(self, resources: Mapping[str, Object]) -> None:
        """Remove the endpoints of deleted resources, and let the resources go."""
        for endpoint in self._target.desired.endpoints:
            resource = resources.get(endpoint.name)
            if endpoint.resource is None or (resource is not None and not is_leaving(resource)):
                continue
            with self._contained(endpoint.name):
                await self.desired_state.remove_endpoint(
                    endpoint.name, caller=HOME_OWNER, with_resource=True
                )
        for name, resource in resources.items():
            if is_leaving(resource) and self._is_gone(name):
                with self._contained(name):
                    await self._set_finalizer(resource, is_set=False)

    def _is_gone(self, name: str) -> bool:
        """Whether gateways route to no endpoint of a resource, and its pods' objects are gone."""
        served = self._target.desired.endpoint(name)
        if served is not None:
            return served.resource is None
        publication = self.reconciler.publication
        routes = (*publication.routes, *(publication.attempted or ()))
        return (
            publication.is_confirmed
            and self.reconciler.watches.is_synced
            and all(route.name != name for route in routes)
            and not any(
                (item["metadata"].get("labels") or {}).get(ENDPOINT) == label_value(name)
                for item in self.reconciler.cluster.of_kind("Deployment")
            )
        )

    async def _set_finalizer(self, resource: Object, *, is_set: bool) -> None:
        change = finalizer_change(resource, is_set=is_set)
        if change is not None:
            self.cluster.put(await self.api.merge(RESOURCE, resource["metadata"]["name"], change))

    async def _write_statuses(self, resources: Mapping[str, Object]) -> None:
        desired = {str(endpoint.name): endpoint for endpoint in self._target.desired.endpoints}
        own = {
            name: desired[name]
            for name, resource in resources.items()
            if name in desired
            and (origin := desired[name].resource) is not None
            and origin.uid == resource["metadata"]["uid"]
        }
        effective = [e for e in self._target.effective.endpoints if e.name in own]
        statuses = {status.name: status for status in self.statuses(effective)}
        for name, resource in resources.items():
            refused = self._refused.get(name)
            facts = ResourceFacts(
                desired=own.get(name),
                status=statuses.get(name),
                rollout=self._target.rollout(name) if name in own else None,
                error=None if refused is None else refused[1],
            )
            now = self.reconciler.clock.now()
            instance = self.reconciler.installation.instance
            status = status_of(resource, facts, instance=instance, now=now)
            if status == resource.get("status"):
                continue
            with self._contained(name):
                manifest = {
                    "apiVersion": RESOURCES[RESOURCE].api_version,
                    "kind": RESOURCE,
                    "metadata": {"name": name, "uid": resource["metadata"]["uid"]},
                    "status": status,
                }
                self.cluster.put(await self.api.apply(manifest, force=True, subresource="status"))

    @contextlib.contextmanager
    def _contained(self, name: str) -> Iterator[None]:
        """Make an error of one resource its fault; an absent API server is the loop's."""
        away: ApiUnavailableError | None = None
        # A ConflictError: another change was faster, and the next step sees it.
        with contextlib.suppress(ConflictError), self._faults.contain(_OBJECT, name):
            try:
                yield
            except ObjectMissingError:
                pass  # the watch reports it
            except ApiUnavailableError as error:
                if isinstance(error, ObjectFailedError):
                    raise
                away = error
        if away is not None:
            raise away

    async def _follow_changes(self) -> None:
        while True:
            await self.reconciler.changes.wait()
            self._wake.set()

    async def _write_events(self) -> None:
        """Write each new event of an endpoint to the cluster, with its number of repetitions."""
        newest = await self.desired_state.journal.events(limit=1)
        async for event in self.desired_state.journal.watch(after=newest[-1].id if newest else 0):
            resource = self.cluster.find(RESOURCE, event.endpoint)
            if resource is None or not self.reconciler.is_leader():
                continue
            key = digest_of([resource["metadata"]["uid"], event.reason, event.message])
            first, count = self._counts.pop(key, (event.at, 0))
            self._counts[key] = (first, count + 1)
            if len(self._counts) > _MAX_EVENTS:
                self._counts.popitem(last=False)
            with (
                self._faults.contain(LOOP, "events of resources"),
                contextlib.suppress(ObjectChangedError, ObjectMissingError),
            ):
                await self.api.apply(
                    event_of(event, resource, first=first, count=count + 1), force=True
                )
