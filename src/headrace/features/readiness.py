"""Can a service be served now? Whether each of its views was materialized, and how long ago."""

from dataclasses import dataclass
from datetime import datetime

from headrace.core import Clock
from headrace.features.definitions import FeatureService, FeatureView, Status
from headrace.features.online import OnlineStore
from headrace.features.times import moment


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewReadiness:
    """How far a view was materialized with its present schema.

    `newest` is the newest event time; values that were pushed since are not counted.
    """

    view: str
    status: Status
    newest: datetime | None
    age_s: float | None
    ttl_s: float | None


def watermark_name(view: FeatureView) -> str:
    """What the store calls how far a view was materialized; another schema begins anew."""
    return f"{view.name}:{view.schema_hash.hex()}"


def service_readiness(
    service: FeatureService, store: OnlineStore, clock: Clock
) -> list[ViewReadiness]:
    """Each view of a service, in its order.

    Raises:
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: It cannot be read; the message says how to mend it.
    """
    return [_readiness(view, store, clock.now()) for view in service.views]


def _readiness(view: FeatureView, store: OnlineStore, now: float) -> ViewReadiness:
    watermark_us = store.watermark(watermark_name(view))
    newest = None if watermark_us is None else moment(watermark_us)
    age_s = None if newest is None else now - newest.timestamp()
    status = Status.PRESENT
    if age_s is None:
        status = Status.MISSING
    elif view.ttl_s is not None and age_s > view.ttl_s:
        status = Status.STALE
    return ViewReadiness(
        view=view.name, status=status, newest=newest, age_s=age_s, ttl_s=view.ttl_s
    )
