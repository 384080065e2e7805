"""What are an HPA or KEDA told, where one of them scales instead of the control plane? Pure."""

import math
from typing import Final

from headrace.control.desired import DesiredArm, DesiredEndpoint
from headrace.control.kubernetes.names import Object
from headrace.core import FailedPreconditionError
from headrace.core.spec_kubernetes import Autoscaler, KubernetesSpec
from headrace.core.spec_scale import AutoscaleSpec

IN_FLIGHT: Final = "headrace_requests_in_flight"
_WAIT: Final = "headrace_queue_wait_seconds"
_PERIOD_S: Final = 15


def scaler_of(
    endpoint: DesiredEndpoint, arm: DesiredArm, *, metadata: Object, settings: KubernetesSpec
) -> Object | None:
    """The HPA or the ScaledObject of one arm; None where the control plane says how many.

    Args:
        metadata: As of all objects of the arm's revision.

    Raises:
        FailedPreconditionError: The endpoint names no target.
    """
    scale = endpoint.autoscale
    if scale is None or settings.autoscaler is Autoscaler.HEADRACE:
        return None
    if scale.target_in_flight is None:
        raise FailedPreconditionError(
            f"endpoint {endpoint.name}: autoscaler {settings.autoscaler} derives no target by "
            "itself: give autoscale.target_in_flight"
        )
    least, most = bounds_of(scale, arm.weight)
    if settings.autoscaler is Autoscaler.HPA:
        of = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]}
        return hpa_of(metadata, scale, least, most, target=scale.target_in_flight, of=of)
    triggers = _triggers(scale, metadata, settings.prometheus_url, target=scale.target_in_flight)
    return _scaled_object(metadata, scale, least, most, triggers)


def bounds_of(scale: AutoscaleSpec, weight: int) -> tuple[int, int]:
    """Least and most pods of an arm: its part of the endpoint's, and one at least."""
    least = max(math.ceil(scale.min_replicas * weight / 100), 1)
    return least, max(math.ceil(scale.max_replicas * weight / 100), least)


def hpa_of(  # all that an HPA is told
    metadata: Object,
    scale: AutoscaleSpec,
    least: int,
    most: int,
    *,
    target: float,
    of: Object,
) -> Object:
    """The HPA of what `of` refers to, by requests in flight per pod: `target` of them."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": of,
            "minReplicas": least,
            "maxReplicas": most,
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
    metadata: Object, scale: AutoscaleSpec, least: int, most: int, triggers: list[Object]
) -> Object:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"name": metadata["name"]},
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "pollingInterval": _PERIOD_S,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scale)}},
            "triggers": triggers,
        },
    }


def _triggers(
    scale: AutoscaleSpec, metadata: Object, prometheus_url: str, *, target: float
) -> list[Object]:
    """Requests in flight per pod; and how long they wait, where a target says so."""
    pods = f'namespace="{metadata["namespace"]}",pod=~"{metadata["name"]}-.+"'
    window = f"[{max(math.ceil(scale.stable_window_s), 2 * _PERIOD_S)}s]"
    told = [("AverageValue", f"sum(avg_over_time({IN_FLIGHT}{{{pods}}}{window}))", target)]
    if scale.target_queue_wait_s is not None:
        waited, count = (
            f"sum(rate({_WAIT}_{part}{{{pods}}}{window}))" for part in ("sum", "count")
        )
        query = f"{waited} / ({count} > 0) or vector(0)"
        told.append(("Value", query, scale.target_queue_wait_s))
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
        for metric_type, query, threshold in told
    ]


def _behavior(scale: AutoscaleSpec) -> Object:
    """Our own scaler's steps, as far as an HPA can be told them."""
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
    """As a quantity of Kubernetes': whole, or in thousandths."""
    return f"{number:.0f}" if number == round(number) else f"{round(number * 1000)}m"
