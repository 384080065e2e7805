"""Limit of Deployments that replace their pods at once. Pure.

A Deployment replaces its pods one by one, but Kubernetes does not limit how many Deployments do so:
after a change of the image all would, and a broken image would be everywhere.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.control.kubernetes.executor import Action
from headrace.control.kubernetes.names import APPLIED, Object
from headrace.control.kubernetes.snapshot import condition_message
from headrace.control.model.observed import MANY_FAILURES, Replica, ReplicaPhase
from headrace.control.model.records import Event

_APPLIED_AT: Final = f"metadata.annotations.{APPLIED}"
"""Path that differs when a manifest has fewer fields, possibly fewer of the pods."""
_REVISION: Final = "deployment.kubernetes.io/revision"
"""Annotation with the number of a Deployment's templates, counted by its controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodChange:
    """A change of a Deployment's pods: its `actions`, and those to take `meanwhile` if it waits."""

    deployment: Object
    actions: tuple[Action, ...]
    meanwhile: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """Changes to execute `now` and `later`; `rolling` are names of Deployments already rolling."""

    now: tuple[PodChange, ...] = ()
    later: tuple[PodChange, ...] = ()
    rolling: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()
    """Rolling Deployments that are stuck, according to the cluster."""


def changes_pods(paths: Iterable[str]) -> bool:
    """Whether a Deployment replaces its pods when these paths are corrected."""
    return any(path.startswith("spec.template") or path == _APPLIED_AT for path in paths)


def most_at_once(count: int, ratio: float) -> int:
    """Return how many of `count` Deployments may roll at once, at least 1."""
    return max(math.floor(count * ratio + 1e-9), 1)


def next_roll(
    changes: Sequence[PodChange], deployments: Iterable[Object], *, max_rolling_ratio: float
) -> Roll:
    """Return which of `changes` may be executed now.

    A Deployment that already rolls may be changed again, which repairs a broken image. Of the
    others, those with healthy pods go first, so that earlier failures do not block them.

    Args:
        deployments: All our Deployments.
    """
    by_name = {_name(deployment): deployment for deployment in deployments}
    changing = {_name(change.deployment) for change in changes}
    rolling = {
        name: deployment
        for name, deployment in sorted(by_name.items())
        if is_rolling(deployment, is_current=name not in changing)
    }
    under_way = [change for change in changes if has_old_pods(change.deployment)]
    waiting = [change for change in changes if not has_old_pods(change.deployment)]
    waiting.sort(
        key=lambda change: (not _is_available(change.deployment), _name(change.deployment))
    )
    # A Deployment that was just changed may be chosen, and is counted already.
    free = max(most_at_once(len(by_name), max_rolling_ratio) - len(rolling), 0)
    now: list[PodChange] = []
    later: list[PodChange] = []
    for change in waiting:
        is_free = len(now) < free and _name(change.deployment) not in rolling
        (now if is_free else later).append(change)
    held_by = [
        name
        for name, deployment in rolling.items()
        if deadline_exceeded(deployment) or _is_down(deployment)
    ]
    return Roll(
        now=(*under_way, *now),
        later=tuple(later),
        rolling=tuple(rolling),
        held_by=tuple(held_by),
    )


def is_rolling(deployment: Object, *, is_current: bool) -> bool:
    """Whether a Deployment's pods are being replaced, or were replaced and are missing since.

    Args:
        is_current: Whether the Deployment has its desired template; if not, unhealthy pods are not
            a result of the change.
    """
    status = deployment.get("status") or {}
    generation = deployment["metadata"].get("generation") or 0
    if int(status.get("observedGeneration") or 0) < int(generation):
        return True  # the last change is not observed yet
    if has_old_pods(deployment):
        return True
    annotations = deployment["metadata"].get("annotations") or {}
    was_replaced = annotations.get(_REVISION) != "1"
    return is_current and was_replaced and _is_down(deployment)


def has_old_pods(deployment: Object) -> bool:
    """Whether a Deployment has pods of an earlier template."""
    status = deployment.get("status") or {}
    return int(status.get("replicas") or 0) > int(status.get("updatedReplicas") or 0)


def deadline_exceeded(deployment: Object) -> str:
    """Return the cluster's message if new pods missed their deadline; empty if not."""
    return condition_message(deployment, "Progressing", "False")


def is_hopeless(replica: Replica) -> bool:
    """Whether a pod cannot become ready without a change."""
    is_failing = replica.cannot_load or replica.failures >= MANY_FAILURES
    return replica.phase is not ReplicaPhase.READY and is_failing


def _is_down(deployment: Object) -> bool:
    """Whether it should have pods and none is healthy, without pods of an earlier template."""
    is_wanted = int(deployment["spec"].get("replicas", 1)) > 0
    return is_wanted and not _is_available(deployment) and not has_old_pods(deployment)


def _is_available(deployment: Object) -> bool:
    return int((deployment.get("status") or {}).get("availableReplicas") or 0) > 0


def _name(deployment: Object) -> str:
    return str(deployment["metadata"]["name"])


def roll_events(before: Roll, now: Roll, *, timestamp: float) -> Iterator[Event]:
    """Yield events when Deployments begin to wait for others, are blocked, or stop waiting."""
    names = [_name(change.deployment) for change in now.later]
    count = f"{len(names)} Deployment(s) keep the pods they have"
    if now.held_by and names and now.held_by != before.held_by:
        held = ", ".join(now.held_by)
        reason = "RollHeld"
        message = f"{count}: new pods of {held} do not get ready (mend or remove what they serve)"
    elif names and not before.later:
        reason = "RollBegun"
        message = f"{count} until those of others are replaced (kubernetes.max_rolling_ratio)"
    elif before.later and not names:
        reason, message = "RollDone", "no Deployment waits to have its pods replaced"
    else:
        return
    data = {"waiting": names, "rolling": list(now.rolling), "held_by": list(now.held_by)}
    yield Event(
        at=timestamp, endpoint="", kind="cluster", reason=reason, message=message, data=data
    )
