"""Cache of a desired state's manifests and of the differences of live objects.

Only fields that a manifest sets are compared: servers add defaults, and others may add fields. Both
are cached, because few revisions change between events; the cache does not change results.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.kubernetes.manifests import revision_objects
from headrace.control.kubernetes.names import APPLIED, InstallationName, Object
from headrace.control.kubernetes.pods import quantity
from headrace.control.kubernetes.replicas import DecodedObjects
from headrace.control.kubernetes.snapshot import Key, is_contested, key_of
from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.control.reconcile.plan import Memo
from headrace.core.spec.kubernetes import KubernetesSpec
from headrace.core.spec.pod_template import LIST_KEYS

_ITEM_KEYS: Final = {**LIST_KEYS, "ownerReferences": (("uid",),)}
_ATOMIC: Final = frozenset({"selector", "labelSelector", "nodeSelector"})
"""Atomic maps: an added key is a difference."""
TRUCE_S: Final = 300.0
"""How long the count of an autoscaler that is not ours is accepted: two autoscalers that correct
each other make and end pods at each correction."""
_QUANTITIES: Final = frozenset({"requests", "limits", "averageValue", "sizeLimit"})


def differences(desired: object, live: object) -> list[str]:
    """Return the paths at which `live` differs from `desired`, such as `spec.replicas`."""
    return [".".join(path) for path in _differences(desired, live, ())]


def _differences(desired: object, live: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if desired == live:  # most parts are: this comparison is the fastest
        return
    name = path[-1] if path else ""
    if isinstance(desired, dict) and isinstance(live, dict) and name not in _ATOMIC:
        for key, value in desired.items():
            if key in live or value not in ("", [], {}):  # servers omit empty values
                yield from _differences(value, live.get(key), (*path, str(key)))
    elif isinstance(desired, list) and isinstance(live, list):
        desired_items, live_items = _by_identity(name, desired), _by_identity(name, live)
        if name not in _ITEM_KEYS and len(desired_items) != len(live_items):
            yield path
            return
        for identity, item in desired_items.items():
            item_path = (*path, "/".join(map(str, identity)))
            if identity in live_items:
                yield from _differences(item, live_items[identity], item_path)
            else:
                yield item_path
    elif not (_QUANTITIES & {*path[-2:]} and quantity(desired) == quantity(live)):
        yield path


def _by_identity(name: str, items: Sequence[object]) -> dict[tuple[object, ...], object]:
    """Return the items by their key fields, or by their position."""
    choices = _ITEM_KEYS.get(name, ())
    by_identity: dict[tuple[object, ...], object] = {}
    for position, item in enumerate(items):
        identity: tuple[object, ...] = (position,)
        if isinstance(item, dict):
            keys = next((keys for keys in choices if keys[0] in item), ())
            identity = tuple(item.get(key) for key in keys) or identity
        by_identity[identity] = item
    return by_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """The objects of one arm, each with its digest; a Deployment's without `replicas`."""

    objects: tuple[Object, ...]
    replicas: int | None
    """`replicas` of its Deployment; None with an external autoscaler."""


Sizes = tuple[tuple[int, int | None], ...]
"""`replicas` and `required` of an endpoint's arms."""


@dataclass(slots=True)
class ManifestCache:
    """Manifests by arm, their differences from live objects, decoded pods, the planner's memo."""

    memo: Memo = field(default_factory=Memo)
    decoded: DecodedObjects = field(default_factory=DecodedObjects)
    settled: dict[tuple[str, str], tuple[object, ...]] = field(default_factory=dict)
    """What was compared of arms that needed no action."""
    _manifests: dict[
        tuple[str, str], tuple[DesiredEndpoint, KubernetesSpec, InstallationName, Manifests]
    ] = field(default_factory=dict)
    _resized: dict[str, tuple[DesiredEndpoint, Sizes, DesiredEndpoint]] = field(
        default_factory=dict
    )
    _compared: dict[Key, tuple[Object, Object, tuple[str, ...]]] = field(default_factory=dict)
    _truces: dict[str, float] = field(default_factory=dict)
    """Ends of truces with other autoscalers, by the uid of the Deployment."""

    def manifests(
        self,
        endpoint: DesiredEndpoint,
        arm: DesiredArm,
        *,
        installation: InstallationName,
        settings: KubernetesSpec,
    ) -> Manifests:
        """Return the manifests of `arm`; raises the errors of `revision_objects`."""
        cached = self._manifests.get((endpoint.name, arm.key))
        if cached is not None and cached[0] is endpoint and cached[1:3] == (settings, installation):
            return cached[3]
        fresh = digested(
            revision_objects(endpoint, arm, installation=installation, settings=settings)
        )
        if cached is not None and cached[3].objects == fresh.objects:
            # Return the same objects, so that cached differences stay valid.
            fresh = Manifests(objects=cached[3].objects, replicas=fresh.replicas)
        self._manifests[endpoint.name, arm.key] = (endpoint, settings, installation, fresh)
        return fresh

    def resized(self, endpoint: DesiredEndpoint, sizes: Sizes) -> DesiredEndpoint:
        """Return `endpoint` with these sizes of its arms; the same object each time.

        The planner's memo compares endpoints by identity.
        """
        if sizes == tuple((arm.replicas, arm.required) for arm in endpoint.arms):
            return endpoint
        cached = self._resized.get(endpoint.name)
        if cached is None or cached[0] is not endpoint or cached[1] != sizes:
            arms = tuple(
                msgspec.structs.replace(arm, replicas=replicas, required=required)
                for arm, (replicas, required) in zip(endpoint.arms, sizes, strict=True)
            )
            cached = endpoint, sizes, msgspec.structs.replace(endpoint, arms=arms)
            self._resized[endpoint.name] = cached
        return cached[2]

    def differences(self, manifest: Object, live: Object) -> tuple[str, ...]:
        """Return the cached result of the function `differences`."""
        key = key_of(manifest)
        cached = self._compared.get(key)
        if cached is not None and cached[0] is manifest and cached[1] is live:
            return cached[2]
        paths = tuple(differences(manifest, live))
        self._compared[key] = (manifest, live, paths)
        return paths

    def accepts(self, deployment: Object, *, now: float) -> bool:
        """Whether the count that another autoscaler gave a Deployment is accepted for now.

        After `TRUCE_S` it is not, once, which shows whether that autoscaler still exists.
        """
        uid = str(deployment["metadata"].get("uid", ""))
        if not is_contested(deployment):
            self._truces.pop(uid, None)
            return False
        return now < self._truces.setdefault(uid, now + TRUCE_S)

    def keep_only(self, arms: set[tuple[str, str]], names: set[str]) -> None:
        """Drop entries that are no longer desired."""
        for arm in self._manifests.keys() - arms:
            del self._manifests[arm]
            self.settled.pop(arm, None)
        for name in self._resized.keys() - {endpoint for endpoint, _ in arms}:
            del self._resized[name]
        for key in [key for key in self._compared if key[1] not in names]:
            del self._compared[key]


def digested(objects: Iterable[Object]) -> Manifests:
    """Return `objects` with their digests, and without `replicas`."""
    replicas: int | None = None
    manifests = []
    for item in objects:
        manifest = item
        if item["kind"] == "Deployment" and "replicas" in item["spec"]:
            replicas = item["spec"]["replicas"]
            spec = {key: value for key, value in item["spec"].items() if key != "replicas"}
            manifest = {**item, "spec": spec}
        text = msgspec.json.encode(manifest, order="deterministic")
        metadata = manifest["metadata"]
        annotations = {
            **metadata.get("annotations", {}),
            APPLIED: hashlib.sha256(text).hexdigest()[:16],
        }
        manifests.append({**manifest, "metadata": {**metadata, "annotations": annotations}})
    return Manifests(objects=tuple(manifests), replicas=replicas)


def with_spec(manifest: Object, **fields: int | None) -> Object:
    """Return `manifest` with these fields of its `spec`; None leaves a field out."""
    present = {name: value for name, value in fields.items() if value is not None}
    return {**manifest, "spec": {**manifest["spec"], **present}} if present else manifest
