"""Status of a whole control plane, in one document for people, scripts and the console."""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.control.agents.registry import GatewayState
from headrace.control.base.faults import ObjectFault
from headrace.control.features.materialize_plan import FeatureViewStatus
from headrace.control.features.skew_watch import FeatureSkewStatus
from headrace.control.gateway.certificates import CertificateStatus
from headrace.control.jobs.status import JobView
from headrace.control.reconcile.status import EndpointStatus
from headrace.control.streams.status import StreamView


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """The Envoy process on this host, and gateways on others."""

    ready: bool
    pid: int | None
    restarts: int
    reason: str
    certificates: tuple[CertificateStatus, ...] = ()
    """What callers and upstreams are shown or checked against, and the management API shows."""
    gateways: tuple[GatewayState, ...] = ()
    """Those on other hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """Everything; `ready` if the gateway and all endpoints are, and all streams run or pause."""

    ready: bool
    version: str
    generation: int
    pid: int
    metrics_read_at: float | None = None
    """When `/metrics` was last asked for, in seconds since 1970; null if never since the start."""
    home: str
    gateway: GatewayStatus
    endpoints: tuple[EndpointStatus, ...]
    addresses: Mapping[str, str]
    features: tuple[FeatureViewStatus, ...] = ()
    """Feature views that are applied in the home."""
    feature_skew: tuple[FeatureSkewStatus, ...] = ()
    """What was found of services whose features are served."""
    streams: tuple[StreamView, ...] = ()
    """Streams, as the spec has them."""
    jobs: tuple[JobView, ...] = ()
    """Jobs, as the spec has them."""
    faults: tuple[ObjectFault, ...] = ()
    """Objects that wait because looking after them failed; all others go on."""

    @property
    def is_served(self) -> bool:
        """Whether the gateway and all endpoints are ready; streams are none of their business."""
        return self.gateway.ready and all(endpoint.ready for endpoint in self.endpoints)
