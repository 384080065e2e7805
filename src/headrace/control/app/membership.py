"""Membership in a cluster: how a control plane becomes the one that acts."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeAlias

from headrace.control.app.faults import Faults
from headrace.control.app.settings import ControlSettings
from headrace.control.reconcile.publication import Reconciling, RoutePublisher
from headrace.control.state.records import Event
from headrace.core import Clock, FailedPreconditionError, HeadraceError

Emit: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]


async def nobody(_events: Sequence[Event]) -> None:
    """Nobody keeps events."""


class Membership(Protocol):
    """A leader's place in a cluster; whoever has it is the only one who acts there."""

    def reconciler(
        self, publisher: RoutePublisher, clock: Clock, emit: Emit, faults: Faults
    ) -> Reconciling:
        """What brings about the desired state there; `emit` stores its events."""

    async def run(self) -> None:
        """Lead until cancelled.

        Raises:
            LeadershipLostError: Another may lead now; the control plane has to end.
        """

    async def close(self) -> None:
        """Give the place back, and let go of every connection."""


LOCAL: Final = "local"
KUBERNETES: Final = "kubernetes"


class StoppedError(HeadraceError):
    """It was told to end before it led."""


async def join(settings: ControlSettings) -> Membership | None:
    """The place in the cluster once this control plane leads; None for the driver `local`.

    Raises:
        StoppedError: SIGTERM or SIGINT came first.
        FailedPreconditionError: There is no such driver, or no way to the cluster.
    """
    if settings.driver == LOCAL:
        return None
    if settings.driver != KUBERNETES or settings.cluster is None:
        raise FailedPreconditionError(
            f"there is no driver {settings.driver!r} of these settings: local, or kubernetes with "
            "a namespace"
        )
    from headrace.control.kubernetes.standby import stand_by  # noqa: PLC0415  # few have one

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    membership = await stand_by(settings, settings.cluster, stopped)
    if membership is None:
        raise StoppedError("told to stop while standing by")
    return membership
