"""Records of control plane state: history, rollouts, events, rewards."""

from typing import Any

import msgspec

from headrace.control.model.desired import DesiredEndpoint
from headrace.gateway.statistics import TokenUse
from headrace.rollout.state import RolloutState


class EndpointGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of an endpoint's history."""

    name: str
    generation: int
    at: float
    """Seconds since 1970."""
    reason: str
    """Reason of the change (`applied`, `undone to generation 3`, `rollout r4 started`)."""
    actor: str = ""
    """The principal that made the change."""
    document: dict[str, Any] | None = None
    """The endpoint's part of the spec, None if it was removed."""
    endpoint: DesiredEndpoint | None = None
    """The endpoint with every model pinned."""


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout: source, target and state.

    `evidence` is what the metrics have counted so far, as `headrace.rollout` encodes it. `revision`
    grows by one with every change: a writer that read an older one loses.
    """

    id: str
    endpoint: str
    created: float
    source: DesiredEndpoint
    target: DesiredEndpoint
    state: RolloutState
    actor: str = ""
    evidence: bytes = b""
    revision: int = 0
    carried_to: int = 0
    """Newest generation of the endpoint that has the same versions as the target; 0 for its own."""

    @property
    def generations(self) -> range:
        """Return the endpoint's generations to which this rollout leads."""
        first = self.target.generation
        return range(first, max(first, self.carried_to) + 1)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of an endpoint; immutable."""

    at: float
    endpoint: str
    kind: str
    """`spec`, `rollout`, `scale`, `replica`, `gateway`, `cluster`, `stream`, `fault`."""
    reason: str
    """One CamelCase word for programs."""
    message: str
    generation: int = 0
    rollout: str = ""
    actor: str = ""
    data: dict[str, Any] = {}
    """Numbers behind the decision. `id` is assigned by the store and increases."""
    id: int = 0


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The arm that served a request, to which feedback is attributed."""

    request_id: str
    rollout: str
    arm: str
    unit: str
    """Digest of the sticky key."""
    at: float


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """Reward of one response."""

    request_id: str
    reward: float
    at: float


class UnitBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Response counts by caller from one read, at one traffic share of the candidate."""

    share: float = 0.0
    requests: dict[str, int] = {}
    of_candidate: frozenset[str] = frozenset()
    """Callers whose first response in this batch came from the candidate."""
    positions: dict[str, tuple[int, int]] = {}
    """Read position in the responses of each replica: its process, and the cursor."""


class UnitReward(msgspec.Struct, frozen=True, kw_only=True):
    """All rewards of one unit in a rollout: a user, or a request where assignment is random."""

    unit: str
    arm: str
    count: int
    total: float


class TokenReading(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a gateway since its start."""

    epoch: str
    """Run of the gateway's Envoy: counts restart with another one."""
    counts: tuple[TokenUse, ...]
    """Without a day."""
    day: str = ""
    """When it was read; empty if unknown."""


class QuotaUse(msgspec.Struct, frozen=True, kw_only=True):
    """Number of requests that a subject has used on a day (`2026-11-25`, UTC)."""

    day: str
    subject: str
    used: int
