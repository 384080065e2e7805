"""Bound on how many Deployments replace their pods at once. Pure.

A Deployment replaces its own pods one by one, but nothing bounds how many Deployments do so: with
another image all would at once, and a broken one would be everywhere.
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
"""Differs where we say less than before, which may be less of the pods."""
_REVISION: Final = "deployment.kubernetes.io/revision"
"""How many templates a Deployment has had; its controller counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodChange:
    """A change of a Deployment's pods: `actions` bring it about, `meanwhile` is for if it waits."""

    deployment: Object
    actions: tuple[Action, ...]
    meanwhile: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """What may change `now`, what `later`; names of Deployments that are `rolling` already."""

    now: tuple[PodChange, ...] = ()
    later: tuple[PodChange, ...] = ()
    rolling: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()
    """Those of them that will not be done without help, as far as the cluster tells."""


def changes_pods(paths: Iterable[str]) -> bool:
    """Whether a Deployment that is corrected at these places makes its pods anew."""
    return any(path.startswith("spec.template") or path == _APPLIED_AT for path in paths)


def most_at_once(count: int, ratio: float) -> int:
    """How many of `count` Deployments may roll at once: one at least, or nothing ever would."""
    return max(math.floor(count * ratio + 1e-9), 1)


def next_roll(
    changes: Sequence[PodChange], deployments: Iterable[Object], *, max_rolling_ratio: float
) -> Roll:
    """Which of `changes` may be brought about.

    Whoever rolls already, as with a broken image, may be changed again: that is the way out. Of the
    others those go first whose pods are well, so that what was broken before holds up nobody.

    Args:
        deployments: All of ours.
    """
    ours = {_name(deployment): deployment for deployment in deployments}
    changing = {_name(change.deployment) for change in changes}
    rolling = {
        name: deployment
        for name, deployment in sorted(ours.items())
        if is_rolling(deployment, is_current=name not in changing)
    }
    under_way = [change for change in changes if has_former_pods(change.deployment)]
    waiting = [change for change in changes if not has_former_pods(change.deployment)]
    waiting.sort(
        key=lambda change: (not _is_available(change.deployment), _name(change.deployment))
    )
    # One that was only just told something may be chosen, and is counted already.
    free = max(most_at_once(len(ours), max_rolling_ratio) - len(rolling), 0)
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
    """Whether a Deployment's pods are being replaced, or were and are not there since.

    Args:
        is_current: Whether its pods are to be as it says: if not, that none of them is well is
            nothing that the change has brought about.
    """
    status = deployment.get("status") or {}
    generation = deployment["metadata"].get("generation") or 0
    if int(status.get("observedGeneration") or 0) < int(generation):
        return True  # what it was told last is not begun
    if has_former_pods(deployment):
        return True
    annotations = deployment["metadata"].get("annotations") or {}
    was_replaced = annotations.get(_REVISION) != "1"
    return is_current and was_replaced and _is_down(deployment)


def has_former_pods(deployment: Object) -> bool:
    """Whether pods are there that are not as a Deployment says now."""
    status = deployment.get("status") or {}
    return int(status.get("replicas") or 0) > int(status.get("updatedReplicas") or 0)


def deadline_exceeded(deployment: Object) -> str:
    """The cluster's message if new pods did not get ready in time; empty if they may yet."""
    return condition_message(deployment, "Progressing", "False")


def is_hopeless(replica: Replica) -> bool:
    """Whether a pod will not get ready by itself."""
    is_failing = replica.cannot_load or replica.failures >= MANY_FAILURES
    return replica.phase is not ReplicaPhase.READY and is_failing


def _is_down(deployment: Object) -> bool:
    """Whether it shall have pods and none is well, though none of an earlier kind is there."""
    is_wanted = int(deployment["spec"].get("replicas", 1)) > 0
    return is_wanted and not _is_available(deployment) and not has_former_pods(deployment)


def _is_available(deployment: Object) -> bool:
    return int((deployment.get("status") or {}).get("availableReplicas") or 0) > 0


def _name(deployment: Object) -> str:
    return str(deployment["metadata"]["name"])


def roll_events(before: Roll, now: Roll, *, timestamp: float) -> Iterator[Event]:
    """Events when Deployments begin to wait for others, are held up, or wait no more."""
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
