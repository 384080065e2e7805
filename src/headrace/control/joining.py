"""How does a control plane become the one that acts? Here it is at once; on a cluster, by election.

Until it leads it does nothing: it opens no database, tells no gateway, and answers only whether it
is alive.
"""

import asyncio
import signal
from typing import Final

from headrace.control.membership import Membership
from headrace.control.settings import ControlSettings
from headrace.core import FailedPreconditionError, HeadraceError

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
