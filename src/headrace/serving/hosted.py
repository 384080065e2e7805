"""One model of a pool: its routes and counters are there all the time, itself when it is used."""

from enum import StrEnum

import msgspec

from headrace.core import ReplicaSettings
from headrace.observe import ModelStatistics
from headrace.serving.application import Application
from headrace.serving.report import HostedReport
from headrace.serving.room import Key, Resident
from headrace.serving.state import ReplicaState


class HostedPhase(StrEnum):
    """Where a hosted model is."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"
    """The last load failed; requests are refused until it may be tried again."""


class HostedModel:
    """A declared model; the pool moves it between its phases.

    `size_bytes`: what it takes when loaded, None before it was tried. `has_room`: memory is set
    aside for it. `used_at`: when it last got a request. `retry_at`: when a failed one may be tried
    again. `is_retired`: it was declared no more, or in other words.
    """

    def __init__(self, settings: ReplicaSettings, *, replica: str) -> None:
        self.settings = settings
        # One thread inside a run: a session then has no threads of its own, and as many models as
        # have requests run beside each other.
        own = msgspec.structs.replace(settings, intra_op_threads=1, replica=replica)
        statistics = ModelStatistics(name=settings.model_name, version=settings.model_version)
        self.state = ReplicaState(settings=own, statistics=statistics, loads_on_demand=True)
        self.application = Application(self.state, has_repository=False)
        self.phase = HostedPhase.UNLOADED
        self.size_bytes: int | None = None
        self.has_room = False
        self.used_at = 0.0
        self.loads = self.unloads = self.failures = 0
        self.retry_at = 0.0
        self.reason = ""
        self.is_retired = False

    @property
    def key(self) -> Key:
        """Its name and version."""
        return self.state.name, self.state.version

    @property
    def is_used(self) -> bool:
        """Whether it ever got a request."""
        statistics = self.state.statistics
        return bool(statistics.success.count or statistics.fail.count or self.loads)

    @property
    def in_flight(self) -> int:
        """Its requests in the queue and in runs."""
        served = self.state.served
        return served.engine.in_flight if served else 0

    def resident(self) -> Resident:
        """What it counts for when room is made."""
        is_busy = (
            self.phase is not HostedPhase.LOADED
            or self.is_retired
            or self.in_flight > 0
            or self.state.waiting > 0
            or (self.state.served is not None and self.state.served.engine.is_running)
        )
        return Resident(
            key=self.key,
            size_bytes=self.size_bytes or 0,
            used_at=self.used_at,
            is_busy=is_busy,
        )

    def report(self) -> HostedReport:
        """What it is doing."""
        name, version = self.key
        return HostedReport(
            model=name,
            version=version,
            phase=self.phase.value,
            size_bytes=self.size_bytes or 0,
            in_flight=self.in_flight,
            waiting=self.state.waiting,
            loads=self.loads,
            unloads=self.unloads,
            reason=self.reason,
            device=self.state.served.loaded.device if self.state.served else None,
        )
