"""What does the cluster hold, as far as it told us? A copy that watches keep up to date."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes.messages import EndpointSlice, Pod, read
from headrace.control.kubernetes.names import (
    FIELD_MANAGER,
    INSTANCE,
    MANAGED_BY,
    Object,
    Place,
)

_MOST_SAID: Final = 500

Key = tuple[str, str]
"""Kind and name."""


def key_of(one: Object) -> Key:
    """What names an object in its namespace."""
    return one["kind"], one["metadata"]["name"]


@dataclass(slots=True)
class Cluster:
    """Objects by kind and name. Those of a kind are replaced as a whole, or one by one."""

    objects: dict[Key, Object] = field(default_factory=dict)

    def find(self, kind: str, name: str) -> Object | None:
        """The object, if it is there."""
        return self.objects.get((kind, name))

    def of_kind(self, kind: str) -> Iterator[Object]:
        """All of a kind, in the order of their names."""
        for key in sorted(key for key in self.objects if key[0] == kind):
            yield self.objects[key]

    def replace_all(self, kind: str, found: Iterable[Object]) -> bool:
        """These are all of a kind; whether that is news."""
        fresh = {key_of(one): one for one in found}
        before = {key: one for key, one in self.objects.items() if key[0] == kind}
        if fresh == before:
            return False
        for key in before.keys() - fresh.keys():
            del self.objects[key]
        self.objects.update(fresh)
        return True

    def put(self, found: Object) -> bool:
        """One was made or changed; whether that is news. What is older than known is no news."""
        key = key_of(found)
        known = self.objects.get(key)
        if known is not None and _is_older(found, known):
            return False
        self.objects[key] = found
        return known != found

    def knows_newer(self, found: Object) -> bool:
        """Whether what is known of this very object is of a later version."""
        known = self.objects.get(key_of(found))
        return known is not None and _is_older(found, known)

    def drop(self, found: Object) -> bool:
        """One is gone; whether it was known. Another one of its name, made since, stays."""
        key = key_of(found)
        known = self.objects.get(key)
        if known is None or _uid(known) != _uid(found):
            return False
        del self.objects[key]
        return True

    def pods(self, place: Place) -> list[Pod]:
        """The pods that our Deployments made."""
        found = (read(Pod, one) for one in self.of_kind("Pod"))
        return [pod for pod in found if pod is not None and _is_made_for_us(pod, place)]

    def slices(self) -> list[EndpointSlice]:
        """Where pods answer."""
        found = (read(EndpointSlice, one) for one in self.of_kind("EndpointSlice"))
        return [one for one in found if one is not None]


def is_ours(found: Object, place: Place) -> bool:
    """Whether we made `found`: by its labels, by who manages its fields, and by its owner."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    if labels.get(MANAGED_BY) != "headrace" or labels.get(INSTANCE) != place.instance:
        return False
    if not any(
        one.get("manager") == FIELD_MANAGER and one.get("operation") == "Apply"
        for one in metadata.get("managedFields") or ()
    ):
        return False
    ours = place.owner.uid if place.owner is not None else None
    owners = metadata.get("ownerReferences") or ()
    return not any(owner.get("controller") and owner.get("uid") != ours for owner in owners)


def is_leaving(found: Object) -> bool:
    """Whether it was deleted, and only waits for what belongs to it."""
    return found["metadata"].get("deletionTimestamp") is not None


def owns_replicas(found: Object) -> bool:
    """Whether we say how many pods a Deployment has."""
    return any(
        "f:replicas" in ((one.get("fieldsV1") or {}).get("f:spec") or {})
        for one in found["metadata"].get("managedFields") or ()
        if one.get("manager") == FIELD_MANAGER
    )


def refused_pods(deployment: Object) -> str:
    """Why the cluster lets a Deployment make no pod, as for a quota; empty if it does."""
    for one in (deployment.get("status") or {}).get("conditions") or ():
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
            said = str(one.get("message") or one.get("reason") or "")[:_MOST_SAID]
            return f"the cluster refuses its pods: {said}"
    return ""


def _is_made_for_us(pod: Pod, place: Place) -> bool:
    """Whether a Deployment's ReplicaSet made it: anybody can write our labels on a pod."""
    owner = pod.metadata.controller
    return owner is not None and owner.name.startswith(place.instance)


def _is_older(one: Object, other: Object) -> bool:
    """Whether `one` is an earlier version of the same object; versions are whole numbers."""
    if _uid(one) != _uid(other):
        return False
    versions = [each["metadata"].get("resourceVersion", "") for each in (one, other)]
    return all(v.isdigit() for v in versions) and int(versions[0]) < int(versions[1])


def _uid(one: Object) -> str:
    return str(one["metadata"].get("uid", ""))
