"""What does a control plane have of a cluster that its replicas run on?"""

from typing import Protocol

from headrace.control.reconciler import RoutePublisher
from headrace.control.reconciling import Reconciling
from headrace.core import Clock


class Membership(Protocol):
    """A leader's place in a cluster; whoever has it is the only one who acts there."""

    def reconciler(self, publisher: RoutePublisher, clock: Clock) -> Reconciling:
        """What brings about the desired state there."""

    async def lead(self) -> None:
        """Lead until cancelled.

        Raises:
            LeadershipLostError: Another may lead now; the control plane has to end.
        """

    async def close(self) -> None:
        """Give the place back, and let go of every connection."""
