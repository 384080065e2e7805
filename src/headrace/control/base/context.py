"""Context that all services of one control plane share, and its audit log entries."""

from dataclasses import dataclass

from headrace.control.base.faults import Faults
from headrace.control.base.home import Home
from headrace.control.base.journal import EventJournal
from headrace.control.model.audit_log import AuditEntry
from headrace.control.state.store import Store
from headrace.core import Clock
from headrace.core.redact import redact
from headrace.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Addresses of the gateway and of the control plane."""

    http_url: str
    grpc_target: str
    metrics_url: str
    admin_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceContext:
    """Dependencies that all services share."""

    home: Home
    store: Store
    registry: Registry
    journal: EventJournal
    faults: Faults
    clock: Clock
    addresses: Addresses
    runs_here: bool = True
    """Whether replicas run on this machine, whose size limits them. Otherwise the chart
    starts streams and jobs."""

    async def note(
        self, action: str, about: str, *, before: object = None, after: object = None, actor: str
    ) -> None:
        """Add a change that was made outside the store to the audit log."""
        change = AuditEntry(
            at=self.clock.now(),
            actor=actor,
            action=action,
            object=about,
            before=redact(before),
            after=redact(after),
        )
        await self.store.add_changes([change])
