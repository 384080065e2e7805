"""Which replicas do pods and EndpointSlices show, in the words of the rest of the control plane?

Pure. A pod is ready when it says so and a slice offers its address; why it is not is told as a
local process's end would be.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from headrace.control.backoff import MANY_FAILURES
from headrace.control.kubernetes.messages import (
    Condition,
    ContainerStatus,
    EndpointSlice,
    Pod,
    Terminated,
)
from headrace.control.kubernetes.names import ENDPOINT, REVISION_ID, VERSION
from headrace.control.kubernetes.pods import CONTAINER, FETCHER, HTTP_PORT
from headrace.control.observed import Phase, Replica, exit_reason

_NEEDS_HELP: Final = frozenset(
    {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)
_STILL: Final = frozenset({"ContainerCreating", "PodInitializing", ""})
_MOST_SAID: Final = 500
_SIGNALS: Final = 128
_MOST_SIGNALS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a pod's state means; `failures` None leaves the count to what is known."""

    phase: Phase
    reason: str = ""
    exit_code: int | None = None
    failures: int | None = None


def replicas_of(
    pods: Iterable[Pod],
    slices: Iterable[EndpointSlice],
    known: Mapping[str, Replica],
    *,
    routed: frozenset[str],
    next_serial: int,
    now: float,
) -> dict[str, Replica]:
    """Replicas by the names of their pods.

    Args:
        known: What was found last time, which says since when.
        routed: Addresses that get requests: whoever has one was ready.
        next_serial: For those that are new.
        now: Monotonic seconds.
    """
    places = _places(slices)
    found: dict[str, Replica] = {}
    for pod in sorted(pods, key=_age):
        endpoint = pod.metadata.annotation(ENDPOINT)
        revision_id = pod.metadata.annotation(REVISION_ID)
        if pod.is_over or not endpoint or not revision_id:
            continue
        before = known.get(pod.metadata.name)
        serial = next_serial if before is None else before.serial
        next_serial += before is None
        address, is_offered = places.get(pod.metadata.uid, ("", False))
        address = address or _own_address(pod)
        was_ready = address in routed or (before is not None and before.was_ready)
        said = state_of(pod, is_offered=is_offered, was_ready=was_ready)
        found[pod.metadata.name] = _replica(
            pod, said, before, serial=serial, address=address, was_ready=was_ready, now=now
        )
    return found


def state_of(pod: Pod, *, is_offered: bool, was_ready: bool) -> Said:
    """Where a pod is in its life.

    Args:
        is_offered: Whether a slice says that its address takes requests.
        was_ready: Whether it has been ready at least once.
    """
    if pod.is_leaving:
        return Said(phase=Phase.DRAINING)
    if pod.is_ready and is_offered:
        return Said(phase=Phase.READY, failures=0)
    ended = _fetcher_ended(pod) or _ended(_status(pod, CONTAINER))
    if ended is not None:
        return ended
    said = _waits(pod)
    if was_ready:
        return Said(phase=Phase.UNREADY, reason=said.reason or "says that it is not ready")
    return said


def _replica(
    pod: Pod,
    said: Said,
    before: Replica | None,
    *,
    serial: int,
    address: str,
    was_ready: bool,
    now: float,
) -> Replica:
    status = _status(pod, CONTAINER)
    restarts = 0 if status is None else status.restart_count
    is_same = before is not None and before.phase is said.phase
    return Replica(
        name=pod.metadata.name,
        serial=serial,
        endpoint=pod.metadata.annotation(ENDPOINT),
        version=pod.metadata.label(VERSION),
        revision_id=pod.metadata.annotation(REVISION_ID),
        address=address,
        phase=said.phase,
        since=before.since if before is not None and is_same else now,
        was_ready=was_ready or said.phase is Phase.READY,
        restarts=restarts,
        deaths=restarts,
        death_reason=said.reason[:_MOST_SAID],
        failures=_failures(said, before, restarts),
        # An unchanged pod is an unchanged value: nobody is woken by it.
        answered_at=before.answered_at if before is not None and is_same else now,
        exit_code=said.exit_code,
        reason=said.reason[:_MOST_SAID],
    )


def _failures(said: Said, before: Replica | None, restarts: int) -> int:
    """Ends in a row, since it was ready last."""
    if said.failures is not None:
        return said.failures
    if before is None:
        return restarts
    return before.failures + max(restarts - before.restarts, 0)


def _places(slices: Iterable[EndpointSlice]) -> dict[str, tuple[str, bool]]:
    """Address, and whether it takes requests, by pod's uid."""
    places: dict[str, tuple[str, bool]] = {}
    for one in slices:
        port = one.http_port
        for endpoint in one.endpoints or () if port is not None else ():
            target = endpoint.target_ref
            if target is not None and target.kind == "Pod" and endpoint.addresses:
                address = f"{_bracketed(endpoint.addresses[0])}:{port}"
                places[target.uid] = (address, endpoint.takes_requests)
    return places


def _own_address(pod: Pod) -> str:
    return f"{_bracketed(pod.status.pod_ip)}:{HTTP_PORT}" if pod.status.pod_ip else ""


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _status(pod: Pod, name: str) -> ContainerStatus | None:
    statuses = (*(pod.status.container_statuses or ()), *(pod.status.init_container_statuses or ()))
    return next((one for one in statuses if one.name == name), None)


def _ended(status: ContainerStatus | None) -> Said | None:
    """How the replica's process ended, if it did and was not started again."""
    if status is None:
        return None
    waits = status.state.waiting
    ended = status.state.terminated
    if ended is None and waits is not None and waits.reason == "CrashLoopBackOff":
        ended = status.last_state.terminated or Terminated(exit_code=1, message=waits.message)
    if ended is None:
        return None
    if ended.reason == "OOMKilled":
        reason = "killed: it needed more memory than its limit (resources.memory_limit)"
        return Said(phase=Phase.EXITED, reason=reason, exit_code=ended.exit_code)
    reason = exit_reason(_signed(ended.exit_code), _last_line(ended.message))
    return Said(phase=Phase.EXITED, reason=reason, exit_code=ended.exit_code)


def _fetcher_ended(pod: Pod) -> Said | None:
    """Why the model could not be fetched."""
    status = _status(pod, FETCHER)
    if status is None:
        return None
    waits = status.state.waiting
    ended = status.state.terminated
    if ended is None and waits is not None and waits.reason == "CrashLoopBackOff":
        ended = status.last_state.terminated
    if ended is None or ended.exit_code == 0:
        return None
    said = _last_line(ended.message) or f"exit status {ended.exit_code}"
    failures = max(status.restart_count, 1)
    return Said(phase=Phase.EXITED, reason=f"cannot fetch its model: {said}", failures=failures)


def _waits(pod: Pod) -> Said:
    """What a pod that never was ready waits for."""
    scheduled = pod.status.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return Said(phase=Phase.STARTING, reason=_because(scheduled))
    for name in (FETCHER, CONTAINER):
        status = _status(pod, name)
        waits = None if status is None else status.state.waiting
        if waits is not None and waits.reason not in _STILL:
            said = f"{waits.reason}: {_last_line(waits.message)}".rstrip(": ")
            failures = MANY_FAILURES if waits.reason in _NEEDS_HELP else None
            return Said(phase=Phase.STARTING, reason=said, failures=failures)
    return Said(phase=Phase.STARTING)


def _because(condition: Condition) -> str:
    return f"{condition.reason}: {condition.message}".strip(": ")


def _signed(exit_code: int) -> int:
    """As we count it: negative for a signal, which shells and kubelets add to 128."""
    is_signal = _SIGNALS < exit_code <= _SIGNALS + _MOST_SIGNALS
    return _SIGNALS - exit_code if is_signal else exit_code


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _age(pod: Pod) -> tuple[str, str]:
    """The older first; times are in UTC, so that they sort as text."""
    return pod.metadata.creation_timestamp or "", pod.metadata.name
