"""What does the spec promise of each endpoint, as far as alerts need to know?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.core.settings import BatchingSpec
from headrace.core.spec_base import parsed
from headrace.core.spec_rollout import SloSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One endpoint's promise; None where it promises nothing.

    `latency_s`: of the 99th percentile. `window_ratio`: length of all windows over the usual ones.
    `queue_size`: requests that may wait in one replica.
    """

    endpoint: str
    latency_s: float | None = None
    availability: float | None = None
    window_ratio: float = 1.0
    queue_size: int = BatchingSpec().max_queue_size

    @property
    def error_budget(self) -> float | None:
        """Share of the requests that may fail; None where nothing is promised."""
        # 1 - 0.999 is 0.0010000000000000009, which nobody wants to read in a rule.
        return None if self.availability is None else round(1.0 - self.availability, 12)


def objectives_of(document: Mapping[str, Any]) -> tuple[Objective, ...]:
    """The promises in a spec document that was checked before, in its order."""
    return tuple(_objective(entry) for entry in document.get("endpoints") or ())


def _objective(entry: Mapping[str, Any]) -> Objective:
    slo = parsed(SloSpec, entry.get("slo") or {})
    batching = entry.get("batching") or {}
    return Objective(
        endpoint=entry["name"],
        latency_s=slo.latency_s,
        availability=slo.availability,
        window_ratio=slo.alert_window_ratio,
        queue_size=batching.get("max_queue_size", BatchingSpec().max_queue_size),
    )
