"""What is planned for, and what does a plan say? Plain data."""

from dataclasses import dataclass, field

from headrace.advise.capacity.fleet import Promise
from headrace.advise.capacity.forecast import Forecast
from headrace.advise.capacity.limits import Limits
from headrace.advise.capacity.nodes import Headroom, NodeType, Shape
from headrace.advise.capacity.service import ServiceCurve


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is planned for.

    `request_bytes`, `response_bytes`: on the wire; None where the network is not reckoned.
    `clusters`: at least so many; of these `spare_clusters` may fail as a whole.
    """

    curve: ServiceCurve
    shape: Shape
    promise: Promise
    forecast: Forecast
    headroom: Headroom = field(default_factory=Headroom)
    limits: Limits = field(default_factory=Limits)
    request_bytes: int | None = None
    response_bytes: int | None = None
    clusters: int = 1
    spare_clusters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a rate takes in one cluster. `replicas` are needed; `running` of them with headroom."""

    rate: float
    replicas: int
    running: int
    gateways: int
    nodes_needed: int
    nodes: int
    spare_nodes: int
    headroom_why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """All on one type of node, at the forecast's end.

    Rates and sizes are of all clusters together, unless `need`'s, which are of one. `p99_s`,
    `load_ratio` (of the capacity) and `busy_ratio` (of the time; with batches a replica is nearly
    always busy, and takes more): at the peak, with the replicas needed and no more.
    `autoscaled_cost_per_month`: if nodes followed the curve. `why`: for people.
    """

    node: NodeType
    fits: bool
    why: tuple[str, ...]
    clusters: int = 0
    need: Need | None = None
    replicas_per_node: int = 0
    limited_by: str = ""
    p99_s: float | None = None
    load_ratio: float = 0.0
    busy_ratio: float = 0.0
    batch_rows: float = 1.0
    rate_per_replica: float = 0.0
    replicas: int = 0
    nodes: int = 0
    gateway_cores: int = 0
    cores: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    network_bits_per_s: float | None = None
    connections_per_gateway: int = 0
    cost_per_month: float = 0.0
    cost_per_million: float = 0.0
    autoscaled_cost_per_month: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month of the forecast on the recommended type of node."""

    month: int
    peak_rate: float
    mean_rate: float
    replicas: int
    nodes: int
    clusters: int
    cost_per_month: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """What an autoscaler of one cluster is told: its bounds and target."""

    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """Options by cost, the cheapest that fits, and how it grows; None where none fits."""

    peak_rate: float
    mean_rate: float
    options: tuple[Option, ...]
    recommended: str | None
    months: tuple[Month, ...]
    autoscale: Autoscaling | None
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
