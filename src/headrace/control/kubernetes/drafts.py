"""What was worked out for the last decision, and still holds? For speed; changes nothing else.

Of thousands of revisions few change from one event to the next, and what a server told us is the
same object until it tells something new.
"""

import hashlib
from dataclasses import dataclass, field

import msgspec

from headrace.control.desired import DesiredArm, DesiredEndpoint
from headrace.control.kubernetes.cluster import Key, key_of
from headrace.control.kubernetes.compare import differences
from headrace.control.kubernetes.names import APPLIED, Object, Place
from headrace.control.kubernetes.objects import revision_objects
from headrace.control.plan import Memo
from headrace.core.spec_kubernetes import KubernetesSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The objects of one arm, each with its digest; a Deployment's without `replicas`.

    `replicas`: what its Deployment is to have; None where another scales.
    """

    objects: tuple[Object, ...]
    replicas: int | None


@dataclass(slots=True)
class Drafts:
    """Objects by arm, and how they differed from what was found; and the plan's own memo."""

    memo: Memo = field(default_factory=Memo)
    _known: dict[tuple[str, str], tuple[DesiredEndpoint, KubernetesSpec, Place, Draft]] = field(
        default_factory=dict
    )
    _compared: dict[Key, tuple[Object, Object, tuple[str, ...]]] = field(default_factory=dict)

    def draft(
        self,
        endpoint: DesiredEndpoint,
        arm: DesiredArm,
        *,
        place: Place,
        settings: KubernetesSpec,
    ) -> Draft:
        """The objects of `arm`; errors as `revision_objects`."""
        known = self._known.get((endpoint.name, arm.key))
        if known is not None and known[0] is endpoint and known[1:3] == (settings, place):
            return known[3]
        draft = make_draft(revision_objects(endpoint, arm, place=place, settings=settings))
        if known is not None and known[3].objects == draft.objects:
            # The same objects, so that what they were compared with need not be compared again.
            draft = Draft(objects=known[3].objects, replicas=draft.replicas)
        self._known[endpoint.name, arm.key] = (endpoint, settings, place, draft)
        return draft

    def differences(self, wanted: Object, found: Object) -> tuple[str, ...]:
        """As `headrace.control.kubernetes.compare` has it."""
        key = key_of(wanted)
        known = self._compared.get(key)
        if known is not None and known[0] is wanted and known[1] is found:
            return known[2]
        places = tuple(differences(wanted, found))
        self._compared[key] = (wanted, found, places)
        return places

    def forget_all_but(self, arms: set[tuple[str, str]], keys: set[Key]) -> None:
        """Let go of what is not wanted any more."""
        for arm in self._known.keys() - arms:
            del self._known[arm]
        for key in self._compared.keys() - keys:
            del self._compared[key]


def make_draft(objects: list[Object]) -> Draft:
    """`objects` with their digests, and the count taken out."""
    replicas: int | None = None
    drafted = []
    for one in objects:
        plain = one
        if one["kind"] == "Deployment" and "replicas" in one["spec"]:
            replicas = one["spec"]["replicas"]
            spec = {key: value for key, value in one["spec"].items() if key != "replicas"}
            plain = {**one, "spec": spec}
        drafted.append(_digested(plain))
    return Draft(objects=tuple(drafted), replicas=replicas)


def with_replicas(wanted: Object, count: int | None) -> Object:
    """A Deployment with its number of pods; None for whatever it has."""
    if count is None:
        return wanted
    return {**wanted, "spec": {**wanted["spec"], "replicas": count}}


def _digested(wanted: Object) -> Object:
    told = msgspec.json.encode(wanted, order="deterministic")
    digest = hashlib.sha256(told).hexdigest()[:16]
    annotations = {**wanted["metadata"].get("annotations", {}), APPLIED: digest}
    return {**wanted, "metadata": {**wanted["metadata"], "annotations": annotations}}
