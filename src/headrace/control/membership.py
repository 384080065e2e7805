"""What does a control plane have of a cluster that its replicas run on?"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from headrace.control.publication import RoutePublisher
from headrace.control.reconciling import Reconciling
from headrace.control.state.records import Event
from headrace.core import Clock

Emit: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]


async def nobody(_events: Sequence[Event]) -> None:
    """Nobody keeps events."""


class Membership(Protocol):
    """A leader's place in a cluster; whoever has it is the only one who acts there."""

    def reconciler(self, publisher: RoutePublisher, clock: Clock) -> Reconciling:
        """What brings about the desired state there."""

    def tell_events(self, emit: Emit) -> None:
        """From now on have events kept by `emit`."""

    async def lead(self) -> None:
        """Lead until cancelled.

        Raises:
            LeadershipLostError: Another may lead now; the control plane has to end.
        """

    async def close(self) -> None:
        """Give the place back, and let go of every connection."""
