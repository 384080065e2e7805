"""Under which paths does the API server have the kinds that we use?"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind, and where it is. `is_optional`: a cluster need not have it."""

    kind: str
    api_version: str
    plural: str
    is_optional: bool = False

    def path(self, namespace: str, name: str = "") -> str:
        """Of all objects of this kind in a namespace, or of one."""
        root = "api" if "/" not in self.api_version else "apis"
        base = f"/{root}/{self.api_version}/namespaces/{namespace}/{self.plural}"
        return f"{base}/{name}" if name else base


RESOURCES: Final = {
    resource.kind: resource
    for resource in (
        Resource(kind="ConfigMap", api_version="v1", plural="configmaps"),
        Resource(kind="Service", api_version="v1", plural="services"),
        Resource(kind="Pod", api_version="v1", plural="pods"),
        Resource(kind="Deployment", api_version="apps/v1", plural="deployments"),
        Resource(
            kind="PodDisruptionBudget", api_version="policy/v1", plural="poddisruptionbudgets"
        ),
        Resource(
            kind="HorizontalPodAutoscaler",
            api_version="autoscaling/v2",
            plural="horizontalpodautoscalers",
            is_optional=True,
        ),
        Resource(
            kind="ScaledObject",
            api_version="keda.sh/v1alpha1",
            plural="scaledobjects",
            is_optional=True,
        ),
        Resource(kind="EndpointSlice", api_version="discovery.k8s.io/v1", plural="endpointslices"),
        Resource(kind="Lease", api_version="coordination.k8s.io/v1", plural="leases"),
    )
}
WATCHED: Final = tuple(kind for kind in RESOURCES if kind != "Lease")
"""What a decision follows from."""
