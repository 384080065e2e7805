"""The state that all of a replica's APIs share."""

import math
import time
from dataclasses import dataclass, field

from headrace.core import HeadraceError, ModelNotReadyError, ModelSignature, ReplicaSettings
from headrace.engine import Accounts, Engine, Ticket, TicketState
from headrace.observe import ModelStatistics, PhaseHistograms
from headrace.protocol import IndexEntry
from headrace.serving.loading import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded model and the engine that runs it."""

    loaded: LoadedModel
    engine: Engine

    @property
    def signature(self) -> ModelSignature:
        """What the model takes and gives."""
        return self.loaded.signature


@dataclass(slots=True, kw_only=True)
class ReplicaState:
    """One replica: what it was told, what it counts, and its model once that is loaded."""

    settings: ReplicaSettings
    statistics: ModelStatistics
    phases: PhaseHistograms = field(default_factory=PhaseHistograms)
    served: ServedModel | None = None
    is_draining: bool = False

    @property
    def name(self) -> str:
        """The name that callers use for the model."""
        return self.settings.model_name

    @property
    def version(self) -> str:
        """The version of the model that runs here."""
        return self.settings.model_version

    @property
    def is_ready(self) -> bool:
        """Whether the model answers and new requests are welcome."""
        return self.served is not None and not self.is_draining

    def not_ready(self) -> ModelNotReadyError:
        """The error for a request that comes before the model is loaded."""
        return ModelNotReadyError(self.name, self.version)

    def refused(self, ticket: Ticket, error: HeadraceError) -> None:
        """Count a request that failed before the engine took it; the engine counts its own."""
        if ticket.state is TicketState.NEW:
            accounts = Accounts(self.statistics, self.phases)
            accounts.failed(error, time.monotonic() - ticket.received_at)

    @property
    def model(self) -> ServedModel:
        """The model, once it is loaded.

        Raises:
            ModelNotReadyError: It is not loaded yet.
        """
        if self.served is None:
            raise self.not_ready()
        return self.served

    @property
    def max_batch_size(self) -> int | None:
        """The most rows of one request; None for a model that is not batched."""
        model = self.model
        return model.engine.max_batch_size if model.signature.batched else None

    def submit(self, ticket: Ticket, limit_s: float) -> None:
        """Queue a decoded request whose caller waits for `limit_s`, infinity for ever.

        Raises:
            HeadraceError: As `Engine.submit`.
        """
        if limit_s != math.inf:
            ticket.deadline = ticket.received_at + limit_s
        now = time.monotonic()
        self.phases.preprocess.observe(now - ticket.received_at)
        self.model.engine.submit(ticket, now)

    def index_entry(self) -> IndexEntry:
        """The model in the repository index."""
        return IndexEntry(self.name, self.version, "READY" if self.is_ready else "UNAVAILABLE")
