"""Which objects should a cluster hold for a desired state? Pure.

Per revision: a ConfigMap with what its replicas are told, a Deployment, a headless Service whose
EndpointSlices say where they answer, a PodDisruptionBudget; and where somebody else scales, an HPA
or a ScaledObject.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from headrace.control.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    pool_endpoint,
)
from headrace.control.kubernetes.names import (
    FIELD_MANAGER,
    Object,
    Place,
    labels_of,
    name_of,
    selector_of,
)
from headrace.control.kubernetes.pods import pod_template, ports_of
from headrace.control.kubernetes.pooled import pods_of_pool, pool_text
from headrace.control.kubernetes.scalers import scaler_of
from headrace.control.kubernetes.told import SETTINGS_KEY, digest_of, told_to
from headrace.core import FailedPreconditionError
from headrace.core.spec_base import parsed
from headrace.core.spec_kubernetes import Autoscaler, KubernetesSpec

_LOAD_TIMEOUT_S: Final = 600


def settings_in(desired: DesiredState) -> KubernetesSpec:
    """What the spec says under `kubernetes`."""
    return parsed(KubernetesSpec, desired.spec.get("kubernetes") or {})


def objects_of(
    desired: DesiredState,
    *,
    place: Place,
    settings: KubernetesSpec | None = None,
) -> list[Object]:
    """All objects of all pools and revisions of ours, in the order in which they are to be made.

    A revision that a pool hosts has none of its own.

    Args:
        settings: None for what the spec of `desired` says.

    Raises:
        FailedPreconditionError: A revision cannot run on a cluster; the text says what to do.
    """
    if settings is None:
        settings = settings_in(desired)
    objects: list[Object] = []
    for endpoint in (*map(pool_endpoint, desired.pools), *desired.endpoints):
        for arm in endpoint.arms:
            if arm.revision.upstream is None and not arm.revision.pool:
                objects += revision_objects(endpoint, arm, place=place, settings=settings)
    _check_unique(objects)
    return objects


def revision_objects(
    endpoint: DesiredEndpoint, arm: DesiredArm, *, place: Place, settings: KubernetesSpec
) -> list[Object]:
    """The objects of one revision; errors as `objects_of`."""
    revision = arm.revision
    digest = ""
    if revision.hosts is None:
        artifact, told = told_to(revision, place)
        digest, pods = artifact.digest, settings.pods_of(endpoint.name)
    else:
        told = pool_text(revision.hosts, place)
        pods = pods_of_pool(revision.hosts, settings)
    template = pod_template(
        revision, pods, digest=digest, settings_digest=digest_of(told), place=place
    )
    metadata = _metadata(revision, place)
    scaler = scaler_of(endpoint, arm, metadata=metadata, settings=settings)
    objects = [
        _config_map(revision, told, place),
        _service(revision, place),
        _disruption_budget(revision, place),
        _deployment(endpoint, arm, template, place=place, settings=settings),
    ]
    return objects if scaler is None else [*objects, scaler]


def is_scaled_elsewhere(endpoint: DesiredEndpoint, settings: KubernetesSpec) -> bool:
    """Whether an HPA or KEDA says how many pods there are."""
    return endpoint.autoscale is not None and settings.autoscaler is not Autoscaler.HEADRACE


def _metadata(revision: Revision, place: Place) -> Object:
    metadata: Object = {
        "name": name_of(revision, instance=place.instance),
        "namespace": place.namespace,
        "labels": labels_of(revision, instance=place.instance),
    }
    if place.owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": place.owner.api_version,
                "kind": place.owner.kind,
                "name": place.owner.name,
                "uid": place.owner.uid,
                "controller": False,
                "blockOwnerDeletion": False,
            }
        ]
    return metadata


def _config_map(revision: Revision, told: str, place: Place) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(revision, place),
        "data": {SETTINGS_KEY: told},
    }


def _service(revision: Revision, place: Place) -> Object:
    """Headless: the gateway balances over pods by itself, and only asks where they are."""
    ports = ports_of(serves_grpc=revision.settings.grpc_port is not None)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(revision, place),
        "spec": {
            "clusterIP": "None",
            "selector": selector_of(revision, instance=place.instance),
            "ports": [_service_port(name, port) for name, port in ports],
        },
    }


def _service_port(name: str, port: int) -> Object:
    found: Object = {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
    # A gateway that is no Envoy of ours takes it for HTTP/1.1 otherwise.
    return found | ({"appProtocol": "kubernetes.io/h2c"} if name == "grpc" else {})


def _disruption_budget(revision: Revision, place: Place) -> Object:
    """One at a time; a pod that is not ready holds up nobody who empties a node."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(revision, place),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector_of(revision, instance=place.instance)},
        },
    }


def _deployment(
    endpoint: DesiredEndpoint,
    arm: DesiredArm,
    template: Object,
    *,
    place: Place,
    settings: KubernetesSpec,
) -> Object:
    revision = arm.revision
    count = {} if is_scaled_elsewhere(endpoint, settings) else {"replicas": arm.replicas}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(revision, place),
        "spec": {
            **count,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": _LOAD_TIMEOUT_S,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "selector": {"matchLabels": selector_of(revision, instance=place.instance)},
            "template": template,
        },
    }


def _check_unique(objects: Iterable[Object]) -> None:
    seen: dict[tuple[str, str], Mapping[str, str]] = {}
    for one in objects:
        key = one["kind"], one["metadata"]["name"]
        labels = one["metadata"]["labels"]
        if seen.setdefault(key, labels) is not labels:
            raise FailedPreconditionError(
                f"two revisions would both be the {key[0]} {key[1]} of manager {FIELD_MANAGER}: "
                "rename one endpoint"
            )
