"""Who scales pods that somebody else's rollouts replace: an HPA, as the driver would make it."""

from typing import Final

from headrace.control.kubernetes.scalers import bounds_of, hpa_of
from headrace.core.kubernetes_settings import Autoscaler
from headrace.deploy.export import Body, Place
from headrace.deploy.facts import Endpoint, Facts
from headrace.deploy.names import labels

API: Final = "autoscaling/v2"
KIND: Final = "HorizontalPodAutoscaler"
_FULL: Final = 100


def hpa(place: Place, facts: Facts, endpoint: Endpoint, of: Body) -> Body | None:
    """The HPA of what `of` refers to, called like it; None where no HPA scales the endpoint."""
    scaling = endpoint.spec.autoscale
    is_by_hpa = facts.spec.kubernetes.autoscaler == Autoscaler.HPA
    if scaling is None or scaling.target_in_flight is None or not is_by_hpa:
        return None
    scale = scaling.settings(slo_latency_s=None)
    least, most = bounds_of(scale, _FULL)
    metadata = place.metadata(of["name"], labels(place.instance, "replica", endpoint=endpoint.name))
    return hpa_of(metadata, scale, least, most, target=scaling.target_in_flight, of=of)
