"""Pods and EndpointSlices in the form that this driver reads, and their replicas. Pure.

Unused fields are ignored, including those of newer clusters. lightkube's models decode all fields
and take 30x as long. A pod is ready when its condition says so and a slice offers its address; the
reason why it is not has the form of a local process's end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from headrace.control.kubernetes.names import (
    ENDPOINT,
    REVISION_ID,
    VERSION,
    InstallationName,
    Object,
)
from headrace.control.kubernetes.pods import CONTAINER, FETCHER, HTTP_PORT
from headrace.control.kubernetes.snapshot import ClusterSnapshot, Key, key_of
from headrace.control.model.observed import MANY_FAILURES, Replica, ReplicaPhase, exit_reason

_NEEDS_HELP: Final = frozenset(
    {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)
_STILL: Final = frozenset({"ContainerCreating", "PodInitializing", ""})
_MAX_MESSAGE: Final = 500
_SIGNALS: Final = 128
_MAX_SIGNALS: Final = 64


class ObjectPart(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an object."""


T = TypeVar("T", bound=ObjectPart)


class OwnerReference(ObjectPart, frozen=True):
    """Owner of an object, whose deletion deletes the object."""

    name: str = ""
    controller: bool | None = None
    """Whether the owner manages the object."""


class Metadata(ObjectPart, frozen=True):
    """Metadata of an object."""

    name: str
    uid: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    def annotation(self, key: str) -> str:
        """Return an annotation; empty if absent."""
        return (self.annotations or {}).get(key, "")

    def label(self, key: str) -> str:
        """Return a label; empty if absent."""
        return (self.labels or {}).get(key, "")

    @property
    def controller(self) -> OwnerReference | None:
        """Owner that manages the object."""
        owners = self.owner_references or ()
        return next((owner for owner in owners if owner.controller), None)


class Waiting(ObjectPart, frozen=True):
    """A container that does not run yet."""

    reason: str = ""
    message: str = ""


class Terminated(ObjectPart, frozen=True):
    """A container that ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class ContainerState(ObjectPart, frozen=True):
    """State of a container; one field is set."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(ObjectPart, frozen=True):
    """Status of one container of a pod."""

    name: str
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodCondition(ObjectPart, frozen=True):
    """One condition of a pod."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class PodStatus(ObjectPart, frozen=True):
    """Status of a pod."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[PodCondition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None

    def condition(self, kind: str) -> PodCondition | None:
        """Return the condition of this type."""
        return next(
            (condition for condition in self.conditions or () if condition.type == kind), None
        )


class Pod(ObjectPart, frozen=True):
    """One pod."""

    metadata: Metadata
    status: PodStatus = PodStatus()
    is_ending: bool = False
    """Whether a request of ours ends it."""

    @property
    def is_leaving(self) -> bool:
        """Whether it is terminating."""
        return self.is_ending or self.metadata.deletion_timestamp is not None

    @property
    def is_over(self) -> bool:
        """Whether it has ended and its Deployment no longer counts it."""
        return self.status.phase in {"Succeeded", "Failed"}

    @property
    def is_ready(self) -> bool:
        """Whether its `Ready` condition is true."""
        ready = self.status.condition("Ready")
        return ready is not None and ready.status == "True"


class TargetReference(ObjectPart, frozen=True):
    """The pod behind an address."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class SliceConditions(ObjectPart, frozen=True):
    """Conditions of an endpoint; None is unknown, which counts as ready, as in Kubernetes."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(ObjectPart, frozen=True):
    """Addresses of one pod, of which the first is used."""

    addresses: list[str]
    conditions: SliceConditions = SliceConditions()
    target_ref: TargetReference | None = None

    @property
    def takes_requests(self) -> bool:
        """Whether it accepts new requests."""
        conditions = self.conditions
        return (
            conditions.ready is not False
            and conditions.serving is not False
            and not conditions.terminating
        )


class SlicePort(ObjectPart, frozen=True):
    """Port of all endpoints of a slice."""

    name: str = ""
    port: int | None = None


class EndpointSlice(ObjectPart, frozen=True):
    """Slice of the addresses of a Service."""

    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None

    @property
    def http_port(self) -> int | None:
        """The HTTP port of its endpoints."""
        return next((port.port for port in self.ports or () if port.name == "http"), None)


@dataclass(slots=True)
class DecodedObjects:
    """Decoded pods and EndpointSlices: few of thousands change between two steps."""

    _known: dict[Key, tuple[Object, ObjectPart | None]] = field(default_factory=dict)

    def of_kind(self, cluster: ClusterSnapshot, type_: type[T]) -> list[T]:
        """Return the objects of a kind; one invalid object does not block the others."""
        kind = type_.__name__
        known: dict[Key, tuple[Object, ObjectPart | None]] = {}
        for live in cluster.of_kind(kind):
            key = key_of(live)
            cached = self._known.get(key)
            if cached is None or cached[0] is not live:
                cached = live, self._decoded(live, type_)
            known[key] = cached
        for key in [key for key in self._known if key[0] == kind and key not in known]:
            del self._known[key]
        self._known.update(known)
        return [part for _, part in known.values() if isinstance(part, type_)]

    @staticmethod
    def _decoded(live: Object, type_: type[T]) -> T | None:
        try:
            return msgspec.convert(live, type_)
        except msgspec.ValidationError:
            return None


def pods_in(
    cluster: ClusterSnapshot,
    installation: InstallationName,
    decoded: DecodedObjects | None = None,
) -> list[Pod]:
    """Return the pods of our Deployments' ReplicaSets, because any pod may have our labels."""
    return [
        msgspec.structs.replace(pod, is_ending=True) if pod.metadata.uid in cluster.ending else pod
        for pod in (decoded or DecodedObjects()).of_kind(cluster, Pod)
        if (owner := pod.metadata.controller) is not None
        and owner.name.startswith(installation.instance)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodState:
    """Phase of a pod, and the reason why it is not ready."""

    phase: ReplicaPhase
    reason: str = ""
    exit_code: int | None = None
    failures: int | None = None
    """Number of failures; None keeps the count."""


def replicas_of(
    pods: Iterable[Pod],
    slices: Iterable[EndpointSlice],
    previous: Mapping[str, Replica],
    *,
    routed: frozenset[str],
    next_serial: int,
    now: float,
) -> dict[str, Replica]:
    """Return the replicas by pod name.

    Args:
        previous: The last result, which has the start times of phases.
        routed: Addresses that get requests; a pod with such an address was ready.
        next_serial: Serial of the next new pod.
        now: Monotonic seconds.
    """
    addresses = {
        target.uid: (_address(endpoint.addresses[0], port), endpoint.takes_requests)
        for item in slices
        if (port := item.http_port) is not None
        for endpoint in item.endpoints or ()
        if (target := endpoint.target_ref) is not None
        and target.kind == "Pod"
        and endpoint.addresses
    }
    replicas: dict[str, Replica] = {}
    # Oldest first; times are in UTC, so they sort as text.
    for pod in sorted(pods, key=lambda p: (p.metadata.creation_timestamp or "", p.metadata.name)):
        name, endpoint_name = pod.metadata.name, pod.metadata.annotation(ENDPOINT)
        revision_id = pod.metadata.annotation(REVISION_ID)
        if pod.is_over or not endpoint_name or not revision_id:
            continue
        before = previous.get(name)
        address, is_offered = addresses.get(pod.metadata.uid, ("", False))
        if not address and pod.status.pod_ip:
            address = _address(pod.status.pod_ip, HTTP_PORT)
        was_ready = address in routed or (before is not None and before.was_ready)
        state = state_of(pod, is_offered=is_offered, was_ready=was_ready)
        status = _status(pod, CONTAINER)
        restarts = 0 if status is None else status.restart_count
        failures = state.failures
        if failures is None:  # ends in a row since it was last ready
            new = restarts if before is None else max(restarts - before.restarts, 0)
            failures = new + (0 if before is None else before.failures)
        is_same = before is not None and before.phase is state.phase
        replicas[name] = Replica(
            name=name,
            serial=next_serial if before is None else before.serial,
            endpoint=endpoint_name,
            version=pod.metadata.label(VERSION),
            revision_id=revision_id,
            address=address,
            phase=state.phase,
            since=before.since if before is not None and is_same else now,
            was_ready=was_ready or state.phase is ReplicaPhase.READY,
            restarts=restarts,
            deaths=restarts,
            death_reason=state.reason[:_MAX_MESSAGE],
            failures=failures,
            # An unchanged pod keeps its value, so it triggers no event.
            answered_at=before.answered_at if before is not None and is_same else now,
            exit_code=state.exit_code,
            reason=state.reason[:_MAX_MESSAGE],
        )
        next_serial += before is None
    return replicas


def state_of(pod: Pod, *, is_offered: bool, was_ready: bool) -> PodState:
    """Return the state of a pod.

    Args:
        is_offered: Whether a slice offers its address for requests.
        was_ready: Whether it has been ready at least once.
    """
    if pod.is_leaving:
        return PodState(phase=ReplicaPhase.DRAINING)
    if pod.is_ready and is_offered:
        return PodState(phase=ReplicaPhase.READY, failures=0)
    ended = _fetcher_ended(pod) or _replica_ended(pod)
    if ended is not None:
        return ended
    state = _starting(pod)
    if was_ready:
        return PodState(phase=ReplicaPhase.UNREADY, reason=state.reason or "reports not ready")
    return state


def _address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _status(pod: Pod, name: str) -> ContainerStatus | None:
    statuses = (*(pod.status.container_statuses or ()), *(pod.status.init_container_statuses or ()))
    return next((status for status in statuses if status.name == name), None)


def _terminated(status: ContainerStatus | None) -> Terminated | None:
    """Return how a container ended; None if it did not, or runs again."""
    if status is None or status.state.terminated is not None:
        return None if status is None else status.state.terminated
    waiting = status.state.waiting
    if waiting is None or waiting.reason != "CrashLoopBackOff":
        return None
    return status.last_state.terminated or Terminated(exit_code=1, message=waiting.message)


def _replica_ended(pod: Pod) -> PodState | None:
    ended = _terminated(_status(pod, CONTAINER))
    if ended is None:
        return None
    if ended.reason == "OOMKilled":
        reason = "killed: it needed more memory than its limit (resources.memory_limit)"
    else:
        # Negative for a signal, which shells and kubelets report as 128 + signal.
        is_signal = _SIGNALS < ended.exit_code <= _SIGNALS + _MAX_SIGNALS
        exit_code = _SIGNALS - ended.exit_code if is_signal else ended.exit_code
        reason = exit_reason(exit_code, _last_line(ended.message))
    return PodState(phase=ReplicaPhase.EXITED, reason=reason, exit_code=ended.exit_code)


def _fetcher_ended(pod: Pod) -> PodState | None:
    """Return the state of a pod whose model could not be fetched, or None."""
    status = _status(pod, FETCHER)
    ended = _terminated(status)
    if status is None or ended is None or ended.exit_code == 0:
        return None
    message = _last_line(ended.message) or f"exit status {ended.exit_code}"
    return PodState(
        phase=ReplicaPhase.EXITED,
        reason=f"cannot fetch its model: {message}",
        failures=max(status.restart_count, 1),
    )


def _starting(pod: Pod) -> PodState:
    """Return the state of a pod that is starting, with the reason for waiting."""
    scheduled = pod.status.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        reason = f"{scheduled.reason}: {scheduled.message}".strip(": ")
        return PodState(phase=ReplicaPhase.STARTING, reason=reason)
    for name in (FETCHER, CONTAINER):
        status = _status(pod, name)
        waiting = None if status is None else status.state.waiting
        if waiting is not None and waiting.reason not in _STILL:
            reason = f"{waiting.reason}: {_last_line(waiting.message)}".rstrip(": ")
            failures = MANY_FAILURES if waiting.reason in _NEEDS_HELP else None
            return PodState(phase=ReplicaPhase.STARTING, reason=reason, failures=failures)
    return PodState(phase=ReplicaPhase.STARTING)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
