"""Leader election by a Lease, as in Kubernetes' own components.

Clocks of different machines are never compared: a candidate takes a Lease that did not change for
its duration by the candidate's own clock, and a leader stops well before.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from headrace.control.kubernetes.api import (
    ClusterApi,
    LeadershipLostError,
    ObjectChangedError,
    ObjectMissingError,
)
from headrace.control.kubernetes.names import InstallationName, Object, control_metadata, owned_by
from headrace.control.kubernetes.snapshot import OwnerLookup, version_of
from headrace.core import Clock, HeadraceError

_LOG: Final = logging.getLogger("headrace.control")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Periods of a Lease, in seconds."""

    duration_s: float = 15.0
    """Duration of the Lease without a renewal."""
    margin_s: float = 5.0
    """Time before the end of the duration at which the holder stops acting."""
    renew_s: float = 2.0
    """Time between renewals."""

    def __post_init__(self) -> None:
        assert self.renew_s < self.duration_s - self.margin_s, "a leader renews before it stops"

    @property
    def timeout_s(self) -> float:
        """Timeout of one read and write, so that a second try fits before the leader stops."""
        return (self.duration_s - self.margin_s) / 2


class ElectionStep(StrEnum):
    """Next action of a candidate on the Lease."""

    CREATE = "create"
    RENEW = "renew"
    TAKE = "take"
    """Take a Lease that has no holder, or that was not renewed in time."""
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """A Lease, and the monotonic time at which this process last saw it change."""

    lease: Object
    changed_at: float
    is_deleted: bool = False
    """Whether it was deleted; its holder may lead until it notices."""

    @property
    def holder(self) -> str:
        """Identity of its holder; empty for none."""
        return str((self.lease.get("spec") or {}).get("holderIdentity") or "")

    @property
    def duration_s(self) -> float:
        """Duration in seconds that its holder wrote."""
        return float((self.lease.get("spec") or {}).get("leaseDurationSeconds") or 0)


def observed_lease(
    lease: Object | None, before: LeaseState | None, *, now: float
) -> LeaseState | None:
    """Return the state after a read: an unchanged Lease keeps its time.

    None without a Lease now and before.
    """
    if lease is None:
        if before is None or before.is_deleted:
            return before
        return replace(before, is_deleted=True, changed_at=now)
    if before is not None and before.lease.get("spec") == lease.get("spec"):
        return replace(before, lease=lease, is_deleted=False)
    return LeaseState(lease=lease, changed_at=now)


def next_step(lease: LeaseState | None, *, identity: str, now: float) -> ElectionStep:
    """Return the next action of `identity` on the Lease."""
    if lease is None:
        return ElectionStep.CREATE
    is_held = lease.holder not in {"", identity}
    if is_held and now < lease.changed_at + lease.duration_s:
        return ElectionStep.WAIT
    if lease.is_deleted:
        return ElectionStep.CREATE
    return ElectionStep.RENEW if lease.holder == identity else ElectionStep.TAKE


def is_leading(renewed_at: float | None, times: LeaseTimes, *, now: float) -> bool:
    """Whether a leader may act.

    Args:
        renewed_at: Send time of the last successful renewal; None before the first.
    """
    return renewed_at is not None and now < renewed_at + times.duration_s - times.margin_s


def lease_name(installation: InstallationName) -> str:
    """Return the name of the Lease."""
    return f"{installation.instance}-control"


def lease_object(
    lease: LeaseState | None,
    *,
    installation: InstallationName,
    identity: str,
    times: LeaseTimes,
    wall: float,
) -> Object:
    """Return the Lease as `identity` writes it: new, renewed or taken over.

    Args:
        wall: Seconds since 1970, for information only.
    """
    stamp = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = dict((lease.lease.get("spec") or {}) if lease is not None else {})
    if lease is None or lease.holder != identity:
        changes = int(spec.get("leaseTransitions") or 0)
        spec["leaseTransitions"] = changes if lease is None else changes + 1
        spec["acquireTime"] = stamp
    spec["holderIdentity"] = identity
    spec["leaseDurationSeconds"] = max(round(times.duration_s), 1)
    spec["renewTime"] = stamp
    if lease is not None and not lease.is_deleted:
        metadata = lease.lease["metadata"] | owned_by(installation)
        return {**lease.lease, "metadata": metadata, "spec": spec}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": control_metadata(lease_name(installation), installation),
        "spec": spec,
    }


def released(lease: LeaseState) -> Object:
    """Return the Lease without a holder, so that the next leader need not wait."""
    return {**lease.lease, "spec": {**(lease.lease.get("spec") or {}), "holderIdentity": ""}}


@dataclass(slots=True, kw_only=True)
class Elector:
    """A candidate of the election.

    It may run in another thread than those that read its state.
    """

    api: ClusterApi
    installation: InstallationName
    identity: str
    """Unique among all processes: two of one identity would both lead."""
    clock: Clock
    times: LeaseTimes = field(default_factory=LeaseTimes)
    on_change: Callable[[], None] = lambda: None
    owners: OwnerLookup = field(default_factory=OwnerLookup)
    """Owners of the Lease."""
    _lease: LeaseState | None = None
    _renewed_at: float | None = None
    _error: str = ""

    @property
    def leader(self) -> str:
        """Identity of the leader as last read; empty for none."""
        return "" if self._lease is None else self._lease.holder

    def is_leading(self) -> bool:
        """Whether this control plane may act now."""
        return is_leading(self._renewed_at, self.times, now=self.clock.monotonic())

    async def run(self) -> None:
        """Run for election, and lead, until cancelled.

        Raises:
            LeadershipLostError: It lost the leadership. The process must exit.
        """
        while True:
            error = ""
            try:
                async with asyncio.timeout(self.times.timeout_s):
                    await self._attempt()
            except LeadershipLostError:
                raise
            except (HeadraceError, TimeoutError) as failure:
                error = str(failure) or "no answer in time"
                if error != self._error:
                    _LOG.warning("cannot acquire or renew the lease", extra={"error": error})
            self._error = error
            if self._renewed_at is not None and not self.is_leading():
                raise LeadershipLostError(
                    f"{self.identity} leads no more: its lease could not be renewed in "
                    f"{self.times.duration_s - self.times.margin_s:g} s"
                )
            await asyncio.sleep(self.times.renew_s)

    async def resign(self) -> None:
        """Release the Lease, so that the next leader need not wait; errors are logged."""
        lease, self._renewed_at = self._lease, None
        if lease is None or lease.holder != self.identity:
            return
        try:
            async with asyncio.timeout(self.times.timeout_s):
                # An interrupted renewal may have changed it.
                live = await self.api.get("Lease", lease_name(self.installation))
                lease = observed_lease(live, lease, now=self.clock.monotonic())
                if lease is not None and lease.holder == self.identity and not lease.is_deleted:
                    await self.api.update(released(lease))
        except (HeadraceError, TimeoutError) as error:
            _LOG.warning("cannot release the lease", extra={"error": str(error)})

    async def _attempt(self) -> None:
        sent_at = self.clock.monotonic()
        if self._renewed_at is not None:
            # A leader renews with one request; the server refuses it if the Lease has changed.
            with contextlib.suppress(ObjectChangedError, ObjectMissingError):
                await self._write(ElectionStep.RENEW, sent_at)
                return
        live = await self.api.get("Lease", lease_name(self.installation))
        before = self._lease
        self._lease = observed_lease(live, before, now=sent_at)
        if self._renewed_at is not None and self.leader != self.identity:
            is_restored = (
                live is not None
                and before is not None
                and version_of(live) < version_of(before.lease)
            )
            reason = ": the cluster was put back to an earlier state" if is_restored else ""
            raise LeadershipLostError(f"{self.leader or 'no process'} holds the lease now{reason}")
        step = next_step(self._lease, identity=self.identity, now=sent_at)
        if step is not ElectionStep.WAIT:
            with contextlib.suppress(ObjectChangedError):  # another candidate was faster
                await self._write(step, sent_at)

    async def _write(self, step: ElectionStep, sent_at: float) -> None:
        manifest = lease_object(
            self._lease,
            installation=replace(self.installation, owners=self.owners.current),
            identity=self.identity,
            times=self.times,
            wall=self.clock.now(),
        )
        write = self.api.create if step is ElectionStep.CREATE else self.api.update
        written = await write(manifest)
        self._lease = observed_lease(written, self._lease, now=sent_at)
        is_elected, self._renewed_at = self._renewed_at is None, sent_at
        if is_elected:
            _LOG.info("leading", extra={"identity": self.identity})
            self.on_change()
