"""Pods and EndpointSlices as this driver reads them, and the replicas that they are. Pure.

Fields that are not read are left out: a newer cluster says more. lightkube's models of the same
objects decode them all, 30 times as slowly. A pod is ready when it says so and a slice offers its
address; why it is not is written as a local process's end would be.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from headrace.control.kubernetes.snapshot import ClusterSnapshot
from headrace.control.model.observed import MANY_FAILURES, Replica, ReplicaPhase, exit_reason

T = TypeVar("T")
_NEEDS_HELP: Final = frozenset(
    {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)
_STILL: Final = frozenset({"ContainerCreating", "PodInitializing", ""})
_MAX_MESSAGE: Final = 500
_SIGNALS: Final = 128
_MOST_SIGNALS: Final = 64


class ObjectPart(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an object."""


class OwnerReference(ObjectPart, frozen=True):
    """Owner of an object, whose deletion deletes the object."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    """Whether the owner manages the object."""


class Metadata(ObjectPart, frozen=True):
    """Of every object."""

    name: str
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    def annotation(self, key: str) -> str:
        """The annotation; empty if there is none."""
        return (self.annotations or {}).get(key, "")

    def label(self, key: str) -> str:
        """The label; empty if there is none."""
        return (self.labels or {}).get(key, "")

    @property
    def controller(self) -> OwnerReference | None:
        """Who decides about it."""
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
    """One of them is set."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(ObjectPart, frozen=True):
    """Status of one container of a pod."""

    name: str
    ready: bool = False
    started: bool | None = None
    """Its startup probe passed, so it was ready once."""
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodCondition(ObjectPart, frozen=True):
    """One fact of a pod."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class PodStatus(ObjectPart, frozen=True):
    """How a pod is."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[PodCondition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None

    def condition(self, kind: str) -> PodCondition | None:
        """The condition of this type."""
        return next(
            (condition for condition in self.conditions or () if condition.type == kind), None
        )


class Pod(ObjectPart, frozen=True):
    """One pod."""

    metadata: Metadata
    status: PodStatus = PodStatus()

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to end."""
        return self.metadata.deletion_timestamp is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs, or will: its Deployment counts it no more."""
        return self.status.phase in {"Succeeded", "Failed"}

    @property
    def is_ready(self) -> bool:
        """Whether it says so."""
        ready = self.status.condition("Ready")
        return ready is not None and ready.status == "True"


class TargetReference(ObjectPart, frozen=True):
    """The pod behind an address."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class SliceConditions(ObjectPart, frozen=True):
    """None is unknown; of `ready` that counts as yes, as Kubernetes has it."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(ObjectPart, frozen=True):
    """One pod's addresses, of which the first counts."""

    addresses: list[str]
    conditions: SliceConditions = SliceConditions()
    target_ref: TargetReference | None = None

    @property
    def takes_requests(self) -> bool:
        """Whether new requests may go there."""
        conditions = self.conditions
        return (
            conditions.ready is not False
            and conditions.serving is not False
            and not conditions.terminating
        )


class SlicePort(ObjectPart, frozen=True):
    """One port that all of a slice's endpoints have."""

    name: str = ""
    port: int | None = None


class EndpointSlice(ObjectPart, frozen=True):
    """Some of the addresses of a Service."""

    metadata: Metadata
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None

    @property
    def http_port(self) -> int | None:
        """Where its endpoints take requests."""
        return next((port.port for port in self.ports or () if port.name == "http"), None)


def _read(kind: type[T], live: Object) -> T | None:
    """`live` as a message; None if it is none: one odd object must not stop all others."""
    try:
        return msgspec.convert(live, kind)
    except msgspec.ValidationError:
        return None


def pods_in(cluster: ClusterSnapshot, installation: InstallationName) -> list[Pod]:
    """The pods that ReplicaSets of our Deployments made: anybody can write our labels on a pod."""
    pods = (_read(Pod, live) for live in cluster.of_kind("Pod"))
    return [
        pod
        for pod in pods
        if pod is not None
        and (owner := pod.metadata.controller) is not None
        and owner.name.startswith(installation.instance)
    ]


def slices_in(cluster: ClusterSnapshot) -> list[EndpointSlice]:
    """The addresses of Services."""
    slices = (_read(EndpointSlice, live) for live in cluster.of_kind("EndpointSlice"))
    return [parsed for parsed in slices if parsed is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodState:
    """The phase of a pod, and why it is not ready."""

    phase: ReplicaPhase
    reason: str = ""
    exit_code: int | None = None
    failures: int | None = None
    """None leaves the count as it is."""


def replicas_of(
    pods: Iterable[Pod],
    slices: Iterable[EndpointSlice],
    previous: Mapping[str, Replica],
    *,
    routed: frozenset[str],
    next_serial: int,
    now: float,
) -> dict[str, Replica]:
    """Replicas by the names of their pods.

    Args:
        previous: The former result, which says since when.
        routed: Addresses that get requests: whoever has one was ready.
        next_serial: For new pods.
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
    # The older first; times are in UTC, so that they sort as text.
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
        if failures is None:  # ends in a row, since it was ready last
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
            # An unchanged pod is an unchanged value: nobody is woken by it.
            answered_at=before.answered_at if before is not None and is_same else now,
            exit_code=state.exit_code,
            reason=state.reason[:_MAX_MESSAGE],
        )
        next_serial += before is None
    return replicas


def state_of(pod: Pod, *, is_offered: bool, was_ready: bool) -> PodState:
    """Where a pod is in its life.

    Args:
        is_offered: Whether a slice says that its address takes requests.
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
    """How a container ended, if it did and does not run again."""
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
        # Negative for a signal, which shells and kubelets add to 128.
        is_signal = _SIGNALS < ended.exit_code <= _SIGNALS + _MOST_SIGNALS
        exit_code = _SIGNALS - ended.exit_code if is_signal else ended.exit_code
        reason = exit_reason(exit_code, _last_line(ended.message))
    return PodState(phase=ReplicaPhase.EXITED, reason=reason, exit_code=ended.exit_code)


def _fetcher_ended(pod: Pod) -> PodState | None:
    """The state of a pod whose model could not be fetched."""
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
    """The state of a pod that is not ready and did not end, with what it waits for."""
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
