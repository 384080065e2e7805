"""Interface of a reconciler, be it of processes on this machine or of pods."""

from collections.abc import MutableMapping
from typing import Protocol

from headrace.control.desired import DesiredArm, DesiredState, Revision
from headrace.control.faults import Faults
from headrace.control.news import News
from headrace.control.observed import Observed, Replica
from headrace.control.publication import RoutePublication
from headrace.control.sandbox import Isolation
from headrace.core import ReplicaSettings


class Reconciling(Protocol):
    """Brings what runs to what should run, for as long as `run` is awaited.

    `hosted`: which revisions a pool's copy answers for, by its name. `faults`: where those of
    replicas are kept.
    """

    desired: DesiredState
    publication: RoutePublication
    replicas: dict[str, Replica]
    hosted: MutableMapping[str, frozenset[str]]
    faults: Faults

    @property
    def news(self) -> News:
        """Changes of anything observed or desired."""

    def observed(self) -> Observed:
        """Everything known now."""

    def want(self, desired: DesiredState) -> None:
        """Aim at `desired` from now on."""

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
