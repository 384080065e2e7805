"""Manifests of a desired state's objects. Pure.

Per revision: a ConfigMap with the settings of its replicas, a Deployment, a headless Service whose
EndpointSlices have their addresses; for several pods, a PodDisruptionBudget; and with an external
autoscaler, an HPA or a ScaledObject of KEDA.
"""

import math
from typing import Final

from headrace.control.kubernetes.names import (
    FIELD_MANAGER,
    InstallationName,
    Object,
    labels_of,
    name_of,
    owned_by,
    selector_of,
)
from headrace.control.kubernetes.pods import (
    LOAD_TIMEOUT_S,
    SETTINGS_KEY,
    digest_of,
    model_and_settings,
    pod_template,
    pods_of_pool,
    pool_settings_text,
    ports_of,
)
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    pool_endpoint,
)
from headrace.core import FailedPreconditionError
from headrace.core.spec.base import parsed
from headrace.core.spec.kubernetes import Autoscaler, KubernetesSpec, PodsSpec
from headrace.core.spec.scale import AutoscaleSpec

IN_FLIGHT: Final = "headrace_requests_in_flight"
_WAIT: Final = "headrace_queue_wait_seconds"
_PERIOD_S: Final = 15


def settings_in(desired: DesiredState) -> KubernetesSpec:
    """Return the settings of the spec's section `kubernetes`."""
    return parsed(KubernetesSpec, desired.spec.get("kubernetes") or {})


def objects_of(
    desired: DesiredState,
    *,
    installation: InstallationName,
    settings: KubernetesSpec | None = None,
) -> list[Object]:
    """Return all objects of our pools and revisions, in the order of their creation.

    A revision that a pool hosts has no objects.

    Args:
        settings: None for the settings in the spec of `desired`.

    Raises:
        FailedPreconditionError: A revision cannot run on a cluster; the text has the remedy.
    """
    if settings is None:
        settings = settings_in(desired)
    objects: list[Object] = []
    for endpoint in (*map(pool_endpoint, desired.pools), *desired.endpoints):
        for arm in endpoint.arms:
            if arm.revision.upstream is None and not arm.revision.pool:
                objects += revision_objects(
                    endpoint, arm, installation=installation, settings=settings
                )
    labels: dict[tuple[str, str], Object] = {}
    for manifest in objects:
        key = manifest["kind"], manifest["metadata"]["name"]
        own = manifest["metadata"]["labels"]
        if labels.setdefault(key, own) is not own:
            raise FailedPreconditionError(
                f"two revisions would both be the {key[0]} {key[1]} of manager {FIELD_MANAGER}: "
                "rename one endpoint"
            )
    return objects


def revision_objects(
    endpoint: DesiredEndpoint,
    arm: DesiredArm,
    *,
    installation: InstallationName,
    settings: KubernetesSpec,
) -> list[Object]:
    """Return the objects of one revision; raises the errors of `objects_of`."""
    revision = arm.revision
    digest = path = ""
    pods: PodsSpec
    if revision.hosts is None:
        pods = settings.pods_of(endpoint.name)
        digest, path, text = model_and_settings(revision, pods, installation)
    else:
        text = pool_settings_text(revision.hosts, installation)
        pods = pods_of_pool(revision.hosts, settings)
    metadata: Object = {
        "name": name_of(revision, instance=installation.instance),
        "namespace": installation.namespace,
        "labels": labels_of(revision, instance=installation.instance),
        **owned_by(installation),
    }
    scaler = scaler_of(endpoint, arm, metadata=metadata, settings=settings)
    selector = selector_of(revision, instance=installation.instance)
    ports = ports_of(revision.settings)
    count = {} if is_scaled_elsewhere(endpoint, settings) else {"replicas": arm.replicas}
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "data": {SETTINGS_KEY: text}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "spec": {
                # Headless: the gateway balances over pods itself, and only needs addresses.
                "clusterIP": "None",
                "selector": selector,
                "ports": [_service_port(name, port) for name, port in ports],
            },
        },
        *([] if count == {"replicas": 1} else [_disruption_budget(selector)]),
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "spec": {
                **count,
                "revisionHistoryLimit": 2,
                "progressDeadlineSeconds": LOAD_TIMEOUT_S,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                },
                "selector": {"matchLabels": selector},
                "template": pod_template(
                    revision,
                    pods,
                    digest=digest,
                    path=path,
                    settings_digest=digest_of(text),
                    installation=installation,
                ),
            },
        },
    ]
    objects = [{**manifest, "metadata": metadata} for manifest in objects]
    return objects if scaler is None else [*objects, scaler]


def _disruption_budget(selector: Object) -> Object:
    """Return the budget of several pods; one pod may be evicted in any case."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {
            "maxUnavailable": 1,
            # A pod that is not ready does not block a node drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector},
        },
    }


def _service_port(name: str, port: int) -> Object:
    # A gateway other than our Envoy assumes HTTP/1.1 otherwise.
    protocol = {"appProtocol": "kubernetes.io/h2c"} if name == "grpc" else {}
    return {"name": name, "port": port, "targetPort": name, "protocol": "TCP", **protocol}


def is_scaled_elsewhere(endpoint: DesiredEndpoint, settings: KubernetesSpec) -> bool:
    """Whether an HPA or KEDA sets the number of pods."""
    return endpoint.autoscale is not None and settings.autoscaler is not Autoscaler.HEADRACE


def scaler_of(
    endpoint: DesiredEndpoint, arm: DesiredArm, *, metadata: Object, settings: KubernetesSpec
) -> Object | None:
    """Return the HPA or ScaledObject of one arm; None if the control plane scales it.

    Args:
        metadata: Metadata of all objects of the arm's revision.

    Raises:
        FailedPreconditionError: The endpoint has no target.
    """
    scale = endpoint.autoscale
    if scale is None or settings.autoscaler is Autoscaler.HEADRACE:
        return None
    if scale.target_in_flight is None:
        raise FailedPreconditionError(
            f"endpoint {endpoint.name}: autoscaler {settings.autoscaler} derives no target by "
            "itself: give autoscale.target_in_flight"
        )
    minimum, maximum = bounds_of(scale, arm.weight)
    if settings.autoscaler is Autoscaler.HPA:
        of = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]}
        return hpa_of(metadata, scale, minimum, maximum, target=scale.target_in_flight, of=of)
    triggers = _triggers(scale, metadata, settings.prometheus_url, target=scale.target_in_flight)
    return _scaled_object(metadata, scale, minimum, maximum, triggers)


def bounds_of(scale: AutoscaleSpec, weight: int) -> tuple[int, int]:
    """Return minimum and maximum pods of an arm: its share of the endpoint's, at least 1."""
    minimum = max(math.ceil(scale.min_replicas * weight / 100), 1)
    return minimum, max(math.ceil(scale.max_replicas * weight / 100), minimum)


def scaler_bounds(kind: str, minimum: int, maximum: int) -> dict[str, int]:
    """Return the fields of a scaler's `spec` with its minimum and maximum number of pods."""
    suffix = "Replicas" if kind == "HorizontalPodAutoscaler" else "ReplicaCount"
    return {f"min{suffix}": minimum, f"max{suffix}": maximum}


def hpa_of(  # all settings of an HPA
    metadata: Object,
    scale: AutoscaleSpec,
    minimum: int,
    maximum: int,
    *,
    target: float,
    of: Object,
) -> Object:
    """Return the HPA of the object `of`, with `target` requests in flight per pod."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": of,
            **scaler_bounds("HorizontalPodAutoscaler", minimum, maximum),
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": IN_FLIGHT},
                        "target": {"type": "AverageValue", "averageValue": _quantity(target)},
                    },
                }
            ],
            "behavior": _behavior(scale),
        },
    }


def _scaled_object(
    metadata: Object, scale: AutoscaleSpec, minimum: int, maximum: int, triggers: list[Object]
) -> Object:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"name": metadata["name"]},
            **scaler_bounds("ScaledObject", minimum, maximum),
            "pollingInterval": _PERIOD_S,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scale)}},
            "triggers": triggers,
        },
    }


def _triggers(
    scale: AutoscaleSpec, metadata: Object, prometheus_url: str, *, target: float
) -> list[Object]:
    """Return the triggers: requests in flight per pod, and queue time if it has a target."""
    pods = f'namespace="{metadata["namespace"]}",pod=~"{metadata["name"]}-.+"'
    window = f"[{max(math.ceil(scale.stable_window_s), 2 * _PERIOD_S)}s]"
    triggers = [("AverageValue", f"sum(avg_over_time({IN_FLIGHT}{{{pods}}}{window}))", target)]
    if scale.target_queue_wait_s is not None:
        waited, count = (
            f"sum(rate({_WAIT}_{part}{{{pods}}}{window}))" for part in ("sum", "count")
        )
        query = f"{waited} / ({count} > 0) or vector(0)"
        triggers.append(("Value", query, scale.target_queue_wait_s))
    return [
        {
            "type": "prometheus",
            "metricType": metric_type,
            "metadata": {
                "serverAddress": prometheus_url,
                "query": query,
                "threshold": f"{threshold:g}",
            },
        }
        for metric_type, query, threshold in triggers
    ]


def _behavior(scale: AutoscaleSpec) -> Object:
    """Return our autoscaler's scaling steps, as far as an HPA supports them."""
    up = max(round((scale.max_scale_up_ratio - 1.0) * 100), 1)
    down = min(max(round((1.0 - 1.0 / scale.max_scale_down_ratio) * 100), 1), 100)
    window_s = min(math.ceil(scale.scale_down_delay_s), 3600)
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [
                {"type": "Percent", "value": up, "periodSeconds": _PERIOD_S},
                {"type": "Pods", "value": 1, "periodSeconds": _PERIOD_S},
            ],
            "selectPolicy": "Max",
        },
        "scaleDown": {
            "stabilizationWindowSeconds": window_s,
            "policies": [
                {"type": "Percent", "value": down, "periodSeconds": _PERIOD_S},
                {"type": "Pods", "value": 1, "periodSeconds": _PERIOD_S},
            ],
            "selectPolicy": "Max",
        },
    }


def _quantity(number: float) -> str:
    """Return a Kubernetes quantity: whole, or in thousandths."""
    return f"{number:.0f}" if number == round(number) else f"{round(number * 1000)}m"
