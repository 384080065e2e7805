"""Publication of routes: acknowledged routes, routes in transit, and the publisher."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from headrace.control.base.faults import message_of
from headrace.control.base.journal import ChangeSignal
from headrace.control.gateway.routes import RoutePublisher, RoutesLeftOutError, log_level_of
from headrace.control.local.sandbox import Isolation
from headrace.control.model.desired import DesiredArm, DesiredState
from headrace.control.model.observed import Observed, Replica, perhaps_in_force
from headrace.control.reconcile.pools import PoolState
from headrace.core import HeadraceError
from headrace.gateway import EndpointRoute
from headrace.observe.metrics import Family

_LOG: Final = logging.getLogger("headrace.control")
_REPUBLISH_S: Final = 1.0
"""Seconds between a failed publication and the next one."""


async def _no_record(_routes: tuple[EndpointRoute, ...]) -> None:
    """Do nothing: the publisher records the routes itself."""


@dataclass(slots=True, kw_only=True)
class RoutePublication:
    """Routes in force at the gateway, routes that may be in force, and the next attempt."""

    publisher: RoutePublisher
    changes: ChangeSignal = field(default_factory=ChangeSignal)
    """Signal for changes of the fields below."""
    record: Callable[[tuple[EndpointRoute, ...]], Awaitable[None]] = _no_record
    """Stores the routes in force for the next control plane; if it fails, the publication fails."""
    published: tuple[EndpointRoute, ...] | None = None
    """Routes that the gateway acknowledged last; None while unknown."""
    attempted: tuple[EndpointRoute, ...] | None = None
    """Routes that were sent but not acknowledged, so they may be in force."""
    can_publish: bool = True
    """False during a publication, and after a failure until the next attempt is due."""
    is_confirmed: bool = False
    """Whether the gateway acknowledged the newest publication of this process."""
    error: str = ""
    """Reason why the newest routes are not in force; empty if they are."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Reason by endpoint why its newest route is not in force although others are."""

    def observed(
        self,
        replicas: Mapping[str, Replica],
        hosted: Mapping[str, frozenset[str]],
        next_serial: int,
    ) -> Observed:
        """Return the observed state of these replicas and the published routes."""
        return Observed(
            replicas=dict(replicas),
            published=self.published,
            attempted=self.attempted,
            can_publish=self.can_publish,
            hosted=dict(hosted),
            next_serial=next_serial,
        )

    @property
    def routes(self) -> tuple[EndpointRoute, ...]:
        """Routes that the gateway acknowledged last; empty while unknown."""
        return self.published or ()

    def begin(self, routes: tuple[EndpointRoute, ...], group: asyncio.TaskGroup) -> None:
        """Send `routes` to the gateway, in a task of `group`."""
        self.can_publish = False
        self.attempted = perhaps_in_force(routes, self.attempted)
        group.create_task(self._publish(routes))

    async def _publish(self, routes: tuple[EndpointRoute, ...]) -> None:
        try:
            try:
                await self.publisher.publish(routes)
            except RoutesLeftOutError as error:
                await self._acknowledge(routes, error.in_force, error.reasons)
                raise
            await self._acknowledge(routes, routes, {})
        except Exception as error:  # noqa: BLE001  # a fault of one publication stops no later one
            self._note_failure(error)
            self.changes.notify()
            await asyncio.sleep(_REPUBLISH_S)
        else:
            self.is_confirmed, self.error = True, ""
        self.can_publish = True
        self.changes.notify()

    async def _acknowledge(
        self,
        routes: tuple[EndpointRoute, ...],
        in_force: tuple[EndpointRoute, ...],
        left_out: Mapping[str, str],
    ) -> None:
        await self.record(in_force)  # first: replicas that `published` lacks may be removed
        self.published, self.left_out = in_force, left_out
        self.attempted = tuple(route for route in routes if route.name in left_out) or None

    def _note_failure(self, error: Exception) -> None:
        self.is_confirmed = isinstance(error, RoutesLeftOutError)
        message = message_of(error)
        if message != self.error:
            traceback = None if isinstance(error, HeadraceError) else error
            extra = {"error": message}
            _LOG.log(log_level_of(error), "cannot publish routes", extra=extra, exc_info=traceback)
        self.error = message


class Reconciling(PoolState, Protocol):
    """Reconciler of replicas: processes on this machine, or pods of a cluster.

    The two implementations are `Reconciler` and `KubernetesReconciler`.
    """

    replicas: dict[str, Replica]
    """Observed replicas by name."""

    @property
    def publication(self) -> RoutePublication:
        """Publication of routes to the gateway."""

    def set_desired(self, desired: DesiredState) -> None:
        """Set the desired state."""

    def isolation_of(self, name: str) -> Isolation | None:
        """Return the isolation of the named replica's process; None if unknown."""

    def arm_problem(self, endpoint: str, arm: DesiredArm) -> str:
        """Return why an arm's replicas cannot run; empty if they can."""

    def families(self) -> list[Family]:
        """Return the metrics of the driver of replicas."""

    async def run(self) -> None:
        """Reconcile until cancelled."""
