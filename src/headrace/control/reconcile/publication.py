"""Publication of routes: what the gateway acknowledged, what is on its way, and who publishes."""

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

_LOG: Final = logging.getLogger("headrace.control")
_REPUBLISH_S: Final = 1.0
"""Seconds between a failed publication and the next one."""


async def _no_record(_routes: tuple[EndpointRoute, ...]) -> None:
    """Routes are recorded by the publisher itself."""


@dataclass(slots=True, kw_only=True)
class RoutePublication:
    """Routes that the gateway follows, those that it may follow too, and the next attempt."""

    publisher: RoutePublisher
    changes: ChangeSignal = field(default_factory=ChangeSignal)
    """Notified when any of the fields below changed."""
    record: Callable[[tuple[EndpointRoute, ...]], Awaitable[None]] = _no_record
    """Stores what is in force, for the next control plane; part of a publication's success."""
    published: tuple[EndpointRoute, ...] | None = None
    """What the gateway acknowledged last; None while that is not known."""
    attempted: tuple[EndpointRoute, ...] | None = None
    """What was sent and not acknowledged: it may be in force."""
    can_publish: bool = True
    """False during a publication, and after a failure until the next attempt is due."""
    is_confirmed: bool = False
    """Whether the gateway acknowledged routes of this process, the last time it was asked."""
    error: str = ""
    """Why the newest routes are not in force; empty if they are."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why the newest route of an endpoint is not in force although others are, by endpoint."""

    def observed(
        self,
        replicas: Mapping[str, Replica],
        hosted: Mapping[str, frozenset[str]],
        next_serial: int,
    ) -> Observed:
        """These replicas, and what is published."""
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
        """What the gateway acknowledged last; nothing while that is not known."""
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
        self.published, self.left_out = in_force, left_out
        self.attempted = tuple(route for route in routes if route.name in left_out) or None
        await self.record(in_force)

    def _note_failure(self, error: Exception) -> None:
        self.is_confirmed = isinstance(error, RoutesLeftOutError)
        message = message_of(error)
        if message != self.error:
            traceback = None if isinstance(error, HeadraceError) else error
            extra = {"error": message}
            _LOG.log(log_level_of(error), "cannot publish routes", extra=extra, exc_info=traceback)
        self.error = message


class Reconciling(PoolState, Protocol):
    """What brings replicas to the desired state: processes on this machine, or pods of a cluster.

    The two implementations are `Reconciler` and `KubernetesReconciler`.
    """

    replicas: dict[str, Replica]
    """What runs, by name."""

    @property
    def publication(self) -> RoutePublication:
        """The routes that the gateway follows."""

    def set_desired(self, desired: DesiredState) -> None:
        """Aim at `desired` from now on."""

    def isolation_of(self, name: str) -> Isolation | None:
        """How the process of the replica of a name is kept apart; None if nobody knows."""

    def arm_problem(self, endpoint: str, arm: DesiredArm) -> str:
        """Why an arm's copies cannot be had; empty if they can."""

    async def run(self) -> None:
        """Reconcile until cancelled."""
