"""How do the objects that the driver would make become values of the chart's? Pure.

The driver says what a revision's pods are like; the chart only says it in its own words, so that
both make the same of a spec.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from headrace.control.desired import DesiredArm, DesiredEndpoint, DesiredState
from headrace.control.kubernetes import Place, objects_of
from headrace.control.kubernetes.pods import GRPC_PORT
from headrace.core import FailedPreconditionError
from headrace.deploy.gateway_api import GRACE_S, duration
from headrace.deploy.helm_export import Values

_WINDOW: Final = re.compile(r"\[([0-9]+s)\]")
_OURS: Final = "headrace.dev/"
_OWN_ENV: Final = ({"name": "HOME", "value": "/tmp"},)  # noqa: S108  # a volume of the pod's own


def version_values(
    endpoint: DesiredEndpoint, arm: DesiredArm, *, spec: Mapping[str, Any], place: Place
) -> Values:
    """The values of one version.

    Args:
        place: Where the driver would make its objects; their names and namespace are the chart's.

    Raises:
        FailedPreconditionError: It cannot run on a cluster; the text says what to do.
    """
    alone = msgspec.structs.replace(endpoint, arms=(with_grpc(arm),))
    desired = DesiredState(spec=dict(spec), endpoints=(alone,))
    objects = {one["kind"]: one for one in objects_of(desired, place=place)}
    pod = objects["Deployment"]["spec"]["template"]
    (fetcher,) = pod["spec"]["initContainers"]
    timeout_s = endpoint.timeout_s
    values: Values = {
        "endpoint": str(endpoint.name),
        "version": arm.revision.version,
        "revision": arm.revision.id,
        "model": arm.revision.model,
        "digest": fetcher["args"][0],
        "weight": arm.weight,
        "replicas": arm.replicas,
        "drainTimeoutSeconds": math.ceil(place.drain_timeout_s),
        "requestTimeout": duration(0.0 if timeout_s is None else timeout_s + GRACE_S),
        "settings": objects["ConfigMap"]["data"]["replica.json"],
        "pod": dict(_pod_values(pod)),
    }
    for kind, told in (("HorizontalPodAutoscaler", _hpa), ("ScaledObject", _keda)):
        if kind in objects:
            values["autoscaling"] = told(objects[kind]["spec"])
    return values


def with_grpc(arm: DesiredArm) -> DesiredArm:
    """The same, whose replicas serve gRPC too: there is no gateway of ours that translates.

    Its id, and with it the names of its objects, stay those that a control plane would give.
    """
    settings = msgspec.structs.replace(arm.revision.settings, grpc_port=GRPC_PORT)
    revision = msgspec.structs.replace(arm.revision, settings=settings)
    return msgspec.structs.replace(arm, revision=revision)


def arms_of(
    endpoints: tuple[DesiredEndpoint, ...],
) -> Iterator[tuple[int, DesiredEndpoint, DesiredArm]]:
    """Every version that runs in pods of ours, with its number among its endpoint's."""
    for endpoint in endpoints:
        for number, arm in enumerate(endpoint.arms):
            if arm.revision.upstream is None:
                yield number, endpoint, arm


def _pod_values(pod: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What of a pod's template a spec may say."""
    (container,) = pod["spec"]["containers"]
    yield "image", container["image"]
    yield "imagePullPolicy", container["imagePullPolicy"]
    yield "resources", container["resources"]
    if env := [one for one in container["env"] if one not in _OWN_ENV]:
        yield "env", env
    annotations = pod["metadata"]["annotations"]
    if others := {key: said for key, said in annotations.items() if not key.startswith(_OURS)}:
        yield "annotations", others
    for name in (
        "serviceAccountName", "runtimeClassName", "priorityClassName", "nodeSelector",
        "tolerations", "imagePullSecrets",
    ):  # fmt: skip
        if name in pod["spec"]:
            yield name, pod["spec"][name]


def _hpa(spec: Mapping[str, Any]) -> Values:
    (metric,) = spec["metrics"]
    return {
        "type": "hpa",
        "minReplicas": spec["minReplicas"],
        "maxReplicas": spec["maxReplicas"],
        "targetInFlight": metric["pods"]["target"]["averageValue"],
        "behavior": spec["behavior"],
    }


def _keda(spec: Mapping[str, Any]) -> Values:
    flight, *wait = (trigger["metadata"] for trigger in spec["triggers"])
    window = _WINDOW.search(flight["query"])
    if window is None:
        raise FailedPreconditionError(f"no window in {flight['query']!r}")
    values: Values = {
        "type": "keda",
        "minReplicas": spec["minReplicaCount"],
        "maxReplicas": spec["maxReplicaCount"],
        "targetInFlight": flight["threshold"],
        "window": window[1],
        "prometheusUrl": flight["serverAddress"],
        "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
    }
    if wait:
        values["targetQueueWaitSeconds"] = wait[0]["threshold"]
    return values
