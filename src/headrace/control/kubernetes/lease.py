"""Who leads, where several control planes run? Decided by a Lease, as Kubernetes' own parts do.

Pure: clocks of different machines are never compared. A holder is given up when its Lease did not
change for as long as it said, by our own clock; a leader stops well before others may do that.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from headrace.control.kubernetes.names import COMPONENT, INSTANCE, MANAGED_BY, Object, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """A Lease lasts `duration_s`; its holder renews every `renew_s`, and stops `margin_s` early."""

    duration_s: float = 15.0
    margin_s: float = 5.0
    renew_s: float = 2.0

    def __post_init__(self) -> None:
        assert self.renew_s < self.duration_s - self.margin_s, "a leader renews before it stops"

    @property
    def patience_s(self) -> float:
        """How long one look or write may take: a second one fits before the leader stops."""
        return (self.duration_s - self.margin_s) / 2


class Step(StrEnum):
    """What a control plane does next about its Lease."""

    CREATE = "create"
    RENEW = "renew"
    TAKE = "take"
    """Nobody holds it, or whoever did says nothing any more."""
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Lease as it is known, and when it was last seen to change (monotonic)."""

    found: Object
    changed_at: float

    @property
    def holder(self) -> str:
        """Who has it; empty for nobody."""
        return str((self.found.get("spec") or {}).get("holderIdentity") or "")

    @property
    def duration_s(self) -> float:
        """How long its holder said that it lasts."""
        return float((self.found.get("spec") or {}).get("leaseDurationSeconds") or 0)


def seen(found: Object | None, before: Seen | None, *, now: float) -> Seen | None:
    """What is known after a look: a Lease that did not change keeps its time."""
    if found is None:
        return None
    if before is not None and before.found.get("spec") == found.get("spec"):
        return replace(before, found=found)
    return Seen(found=found, changed_at=now)


def next_step(known: Seen | None, *, identity: str, now: float) -> Step:
    """What to do about the Lease now."""
    if known is None:
        return Step.CREATE
    if known.holder == identity:
        return Step.RENEW
    if not known.holder or now >= known.changed_at + known.duration_s:
        return Step.TAKE
    return Step.WAIT


def is_leading(renewed_at: float | None, times: LeaseTimes, *, now: float) -> bool:
    """Whether a leader may act.

    Args:
        renewed_at: When the last renewal that succeeded was sent; None before the first.
    """
    return renewed_at is not None and now < renewed_at + times.duration_s - times.margin_s


def lease_name(place: Place) -> str:
    """What the Lease is called."""
    return f"{place.instance}-control"


def lease_object(
    known: Seen | None, *, place: Place, identity: str, times: LeaseTimes, wall: float
) -> Object:
    """The Lease as `identity` writes it: new, renewed or taken over.

    Args:
        wall: Seconds since 1970, for people to read; nobody decides by it.
    """
    stamp = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = dict((known.found.get("spec") or {}) if known is not None else {})
    if known is None or known.holder != identity:
        changes = int(spec.get("leaseTransitions") or 0)
        spec["leaseTransitions"] = changes if known is None else changes + 1
        spec["acquireTime"] = stamp
    spec["holderIdentity"] = identity
    spec["leaseDurationSeconds"] = max(round(times.duration_s), 1)
    spec["renewTime"] = stamp
    return _lease(known, place, spec)


def released(known: Seen, *, place: Place) -> Object:
    """The Lease as a leader leaves it that ends: the next one need not wait."""
    return _lease(known, place, {**(known.found.get("spec") or {}), "holderIdentity": ""})


def _lease(known: Seen | None, place: Place, spec: Object) -> Object:
    if known is not None:
        return {**known.found, "spec": spec}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": lease_name(place),
            "namespace": place.namespace,
            "labels": {
                "app.kubernetes.io/name": "headrace",
                INSTANCE: place.instance,
                COMPONENT: "control",
                MANAGED_BY: "headrace",
            },
        },
        "spec": spec,
    }
