"""What is asked of whatever brings about the desired state, be it processes here or pods?"""

import asyncio
from collections.abc import MutableMapping
from typing import Protocol

from headrace.control.desired import DesiredArm, DesiredState, Revision
from headrace.control.faults import Faults
from headrace.control.observed import Observed, Replica, Route
from headrace.control.sandbox import Isolation
from headrace.core import ReplicaSettings


class Reconciling(Protocol):
    """Brings what runs to what should run, for as long as `run` is awaited.

    `published`: the routes that the gateway acknowledged; None while that is not known.
    `publish_error`: why it takes no newer ones. `hosted`: which revisions a pool's copy answers
    for, by its name. `faults`: where those of replicas are kept.
    """

    desired: DesiredState
    published: tuple[Route, ...] | None
    publish_error: str
    replicas: dict[str, Replica]
    hosted: MutableMapping[str, frozenset[str]]
    faults: Faults

    def observed(self) -> Observed:
        """Everything known now."""

    def want(self, desired: DesiredState) -> None:
        """Aim at `desired` from now on."""

    @property
    def next_change(self) -> asyncio.Event:
        """Set at the next change of anything observed or desired; another one is next then."""

    async def wait_change(self) -> None:
        """Return at the next change of anything observed or desired."""

    def note_change(self) -> None:
        """Wake everybody who waits for a change."""

    def may_act(self) -> bool:
        """Whether it is this control plane that says what runs."""

    def told_of(self, revision: Revision) -> ReplicaSettings | None:
        """How a copy of a pool is told of a model; None if it cannot host it where it runs."""

    async def run(self) -> None:
        """Reconcile until cancelled."""

    def isolation_of(self, name: str) -> Isolation | None:
        """How the process of the replica of a name is kept apart; None if nobody here knows."""

    def trouble(self, endpoint: str, arm: DesiredArm) -> str:
        """Why nothing runs for an arm until somebody helps; empty if nothing is known."""
