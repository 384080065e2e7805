"""What do the parts around the replicas carry? Each figure with where it is from."""

from dataclasses import dataclass
from typing import Final

DESIGN: Final = "measured: a 26 kB MLP, one row of JSON, 32 connections (explain/scale)"
KUBERNETES: Final = "https://kubernetes.io/docs/setup/best-practices/cluster-large/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure that was measured, published, or given by who asks."""

    name: str
    value: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`gateway_busy_ratio`: how busy a gateway's cores may be; `gateway_cores`: of each."""

    gateway_rate_per_core: Figure = Figure(
        name="gateway_rate_per_core", value=22_000.0, source=f"{DESIGN}, with JWT, limits and log"
    )
    gateway_busy_ratio: Figure = Figure(
        name="gateway_busy_ratio", value=0.7, source="as of a replica without an SLO"
    )
    gateway_cores: Figure = Figure(
        name="gateway_cores", value=4.0, source="chosen: small enough that losing one is no event"
    )
    pods_per_node: Figure = Figure(name="pods_per_node", value=110.0, source=KUBERNETES)
    nodes_per_cluster: Figure = Figure(name="nodes_per_cluster", value=5_000.0, source=KUBERNETES)
    pods_per_cluster: Figure = Figure(name="pods_per_cluster", value=150_000.0, source=KUBERNETES)
    replicas_per_control_plane: Figure = Figure(
        name="replicas_per_control_plane",
        value=1_000.0,
        source="measured: `make bench ARGS=reports` (explain/scale)",
    )

    @property
    def all(self) -> tuple[Figure, ...]:
        """All figures."""
        return tuple(getattr(self, name) for name in self.__slots__)


def grouped(count: float) -> str:
    """`1,970,000`: four significant digits in full, as nobody reads `1.97e+06` in a table."""
    return f"{float(f'{count:.4g}'):,.15g}"
