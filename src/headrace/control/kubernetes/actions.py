"""What can be done to a cluster, one step at a time?"""

from dataclasses import dataclass
from typing import Final

from headrace.control.kubernetes.cluster import Key
from headrace.control.kubernetes.messages import Pod
from headrace.control.kubernetes.names import Object
from headrace.control.plan import PublishRoutes

DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
VICTIM_COST: Final = -1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyObject:
    """Make an object say this; `is_new` if there is none yet, so far as we know."""

    wanted: Object
    why: str
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldReplicas:
    """Let go of a Deployment's `replicas`, as many as there are: another scales now."""

    wanted: Object
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDeployment:
    """Say how many pods a Deployment has, and nothing else: the rest has to wait."""

    found: Object
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkPod:
    """Say how readily a pod may be taken when there are too many; 0 for as any other."""

    name: str
    uid: str
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteObject:
    """Remove this very object, by its uid, and what belongs to it."""

    found: Object
    why: str


Action = ApplyObject | YieldReplicas | ScaleDeployment | MarkPod | DeleteObject | PublishRoutes


def foreign(key: Key) -> str:
    """What is told of an object that has the name of one of ours, and is somebody else's."""
    kind, name = key
    return (
        f"there is a {kind} {name} that Headrace did not make, and it is left alone: delete or "
        "rename it, or give this installation another instance name"
    )


def fixed(key: Key) -> str:
    """What is told of an object of ours whose fixed part is not as it has to be."""
    kind, name = key
    way_out = f"delete it (kubectl delete {kind.lower()} {name}), and it is made anew"
    if kind == "Deployment":
        way_out += (
            "; with --cascade=orphan its pods go on until the new ones are ready, then delete "
            "their ReplicaSet"
        )
    elif kind == "Service":
        way_out += "; requests to this version may fail for the moment in which it is not there"
    return f"a cluster never changes this part of a {kind}: {way_out}"


def cost_of(pod: Pod) -> int:
    """How readily a pod may be taken, as it was told."""
    said = pod.metadata.annotation(DELETION_COST)
    try:
        return int(said) if said else 0
    except ValueError:
        return 1  # nothing of ours: it is corrected
