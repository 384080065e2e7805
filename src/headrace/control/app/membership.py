"""Membership in a cluster: how a control plane becomes the one that acts."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from headrace.control.app.settings import ControlSettings
from headrace.control.state.records import Event
from headrace.core import FailedPreconditionError, HeadraceError

if TYPE_CHECKING:
    from headrace.control.kubernetes.standby import ClusterMembership

Emit: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]


async def nobody(_events: Sequence[Event]) -> None:
    """Nobody keeps events."""


LOCAL: Final = "local"
KUBERNETES: Final = "kubernetes"


class StoppedError(HeadraceError):
    """It was told to end before it led."""


async def join(settings: ControlSettings) -> "ClusterMembership | None":
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
