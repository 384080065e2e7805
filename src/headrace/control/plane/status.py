"""Status of a whole control plane as one document for people, scripts and the console."""

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
    """Status of the Envoy process on this host, and of gateways on other hosts."""

    ready: bool
    pid: int | None
    restarts: int
    reason: str
    certificates: tuple[CertificateStatus, ...] = ()
    """Certificates for callers, for upstreams and of the management API."""
    gateways: tuple[GatewayState, ...] = ()
    """Gateways on other hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """Status of the system; `ready`: gateway and endpoints are, and streams run or pause."""

    ready: bool
    version: str
    generation: int
    pid: int
    metrics_read_at: float | None = None
    """When `/metrics` was last scraped, in seconds since 1970; null if never since the start."""
    home: str
    gateway: GatewayStatus
    endpoints: tuple[EndpointStatus, ...]
    addresses: Mapping[str, str]
    features: tuple[FeatureViewStatus, ...] = ()
    """Feature views that are applied in the home."""
    feature_skew: tuple[FeatureSkewStatus, ...] = ()
    """Results of skew detection for features that are served."""
    streams: tuple[StreamView, ...] = ()
    """Streams of the spec."""
    jobs: tuple[JobView, ...] = ()
    """Jobs of the spec."""
    faults: tuple[ObjectFault, ...] = ()
    """Objects that wait because processing them failed; all others continue."""

    @property
    def is_served(self) -> bool:
        """Whether the gateway and all endpoints are ready, regardless of streams."""
        return self.gateway.ready and all(endpoint.ready for endpoint in self.endpoints)
