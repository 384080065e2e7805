"""State that all APIs of a replica share."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

import msgspec

from headrace.core import (
    BatchingSpec,
    HeadraceError,
    ModelNotReadyError,
    ModelSignature,
    ReplicaSettings,
    RowIndependence,
)
from headrace.core.settings import DEFAULT_ROW_CHECK_RATIO
from headrace.engine import (
    Accounts,
    Batch,
    Engine,
    RowChecker,
    Ticket,
    TicketState,
    usable_cores,
)
from headrace.observe import ModelStatistics, PhaseHistograms
from headrace.observe.row_checks import RowCheckCounts
from headrace.protocol import IndexEntry, model_config
from headrace.runtimes import Model
from headrace.runtimes.gguf import LlmLoad
from headrace.scoring.loading import LoadedModel

NOT_READY_AFTER_S: Final = 10.0
"""A model that is stuck for this time gets no more requests: their callers would time out as well.
"""
NOT_ALIVE_AFTER_S: Final = 60.0
"""Time that a stuck model has to recover: a new process has to load the model again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded model and the engine that runs it."""

    loaded: LoadedModel
    engine: Engine

    @property
    def signature(self) -> ModelSignature:
        """Return the model's signature."""
        return self.loaded.signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Source data of a model's metadata."""

    runtime: str
    signature: ModelSignature


@dataclass(slots=True, kw_only=True)
class ReplicaState:
    """One model of a process: its settings, its counters, and the model while it is loaded.

    `described` remains after an unload.
    """

    settings: ReplicaSettings
    statistics: ModelStatistics
    phases: PhaseHistograms = field(default_factory=PhaseHistograms)
    served: ServedModel | None = None
    is_draining: bool = False
    described: Described | None = None
    loads_on_demand: bool = False
    """Whether the model is loaded on the first request; `waiting` counts requests that wait for
    that.
    """
    waiting: int = 0
    since: float = field(default_factory=monotonic)
    """Start of counting, monotonic time."""
    llm: LlmLoad | None = None
    """Newest load of a language model, whose requests reach no engine; None for other models."""
    split: dict[Ticket, Callable[[], None]] = field(default_factory=dict)
    """Requests that run in parts, with the function that cancels these."""
    row_checks: RowCheckCounts | None = None
    """Counts of rows that ran alone and were compared; None without such checks."""
    _on_batch: Callable[[Batch], None] | None = None
    _on_checked: Callable[[Batch], None] | None = None
    _checker: RowChecker | None = None

    def watch_batches(self, on_batch: Callable[[Batch], None] | None) -> None:
        """Register `on_batch` for each batch that ran; it also applies to later engines."""
        self._on_batch = on_batch
        self._set_listener()

    def _check_batches(self, on_batch: Callable[[Batch], None] | None) -> None:
        """Register `on_batch` as `watch_batches` does, for the live row check."""
        self._on_checked = on_batch
        self._set_listener()

    def _set_listener(self) -> None:
        if self.served is None:
            return
        watching, checking = self._on_batch, self._on_checked
        if watching is None or checking is None:
            self.served.engine.on_batch = watching or checking
            return

        def both(batch: Batch) -> None:
            watching(batch)
            checking(batch)

        self.served.engine.on_batch = both

    @property
    def name(self) -> str:
        """Return the name that callers use for the model."""
        return self.settings.model_name

    @property
    def version(self) -> str:
        """Return the version of the model."""
        return self.settings.model_version

    @property
    def is_ready(self) -> bool:
        """Whether the model answers, at least soon, and takes new requests."""
        is_there = self.served is not None or self.loads_on_demand
        return is_there and not self.is_draining and self.stuck_s < NOT_READY_AFTER_S

    @property
    def is_alive(self) -> bool:
        """Whether the model may answer again; otherwise only a new process helps."""
        return self.stuck_s < NOT_ALIVE_AFTER_S

    @property
    def stuck_s(self) -> float:
        """Return the current `Engine.stuck_s`; 0 while no model is loaded."""
        return self.served.engine.stuck_s(monotonic()) if self.served is not None else 0.0

    def not_ready(self) -> ModelNotReadyError:
        """Return the error for a request that arrives before the model is loaded."""
        return ModelNotReadyError(self.name, self.version)

    def refused(self, ticket: Ticket, error: HeadraceError) -> None:
        """Count a request that failed before it reached the engine, which counts all others."""
        if ticket.state is TicketState.NEW:
            accounts = Accounts(self.statistics, self.phases)
            accounts.failed(error, monotonic() - ticket.received_at)

    @property
    def model(self) -> ServedModel:
        """Return the loaded model.

        Raises:
            ModelNotReadyError: It is not loaded yet.
        """
        if self.served is None:
            raise self.not_ready()
        return self.served

    @property
    def description(self) -> Described:
        """Return the metadata of the model, which exist since its first load.

        Raises:
            ModelNotReadyError: It was never loaded.
        """
        if self.described is None:
            raise self.not_ready()
        return self.described

    def serve(self, loaded: LoadedModel) -> Engine:
        """Start to serve a loaded model and return its engine."""
        engine = Engine(
            loaded.model,
            settings=planned_batching(self.settings, loaded.intra_op_threads),
            statistics=self.statistics,
            phases=self.phases,
            times=loaded.times,
            plan=loaded.plan,
        )
        self.served = ServedModel(loaded=loaded, engine=engine)
        self.described = Described(runtime=loaded.runtime, signature=loaded.signature)
        if self._checker is None:
            self._checker = self._make_checker(loaded)
        if self._checker is not None:
            self._checker.start()
        self._set_listener()
        return engine

    def _make_checker(self, loaded: LoadedModel) -> RowChecker | None:
        """Return the row checker of a model without proven row independence, else None."""
        ratio = self.settings.batching.row_check_ratio
        ratio = DEFAULT_ROW_CHECK_RATIO if isinstance(ratio, msgspec.UnsetType) else ratio
        signature = loaded.signature
        is_declared = signature.row_independence is RowIndependence.DECLARED
        if not signature.batched or ratio <= 0 or not (is_declared or loaded.plan):
            return None
        self.row_checks = RowCheckCounts()
        loop = asyncio.get_running_loop()
        return RowChecker(
            statistics=self.statistics,
            plan=loaded.plan,
            only_padded=not is_declared,
            ratio=ratio,
            counts=self.row_checks,
            listen=self._check_batches,
            run_in_thread=self._run_in_thread,
            later=loop.call_later,
            soon=loop.call_soon,
        )

    def _run_in_thread(self, work: Callable[[Model], None], on_ended: Callable[[], None]) -> bool:
        """Call `Engine.run_in_thread`; return False while the model is not loaded."""
        return self.served is not None and self.served.engine.run_in_thread(work, on_ended)

    @property
    def intra_op_threads(self) -> int:
        """Return the threads per run: as configured, as the optimizer chose, or 1."""
        selected = self.served and self.served.loaded.intra_op_threads
        return selected or self.settings.intra_op_threads or 1

    def cancel(self, ticket: Ticket) -> None:
        """Cancel the request of a caller that left before the response."""
        if ticket in self.split:
            self.split[ticket]()
        elif self.served is not None:
            self.served.engine.cancel(ticket)

    @property
    def max_batch_size(self) -> int | None:
        """Return the row limit of one request; None for a model that is not batched."""
        model = self.model
        return model.engine.max_batch_size if model.signature.batched else None

    def submit(self, ticket: Ticket, limit_s: float) -> None:
        """Queue a decoded request whose caller waits for `limit_s`; infinity means forever.

        Raises:
            HeadraceError: As `Engine.submit`.
        """
        if limit_s != math.inf:
            ticket.deadline = ticket.received_at + limit_s
        now = monotonic()
        self.phases.preprocess.observe(now - ticket.received_at)
        self.model.engine.submit(ticket, now)

    def config(self) -> dict[str, object]:
        """Return the model's configuration in Triton's format.

        Raises:
            ModelNotReadyError: It was never loaded.
        """
        described, formats = self.description, self.settings.formats
        return model_config(
            self.name,
            self.version,
            described.signature,
            runtime=described.runtime,
            batching=self.settings.batching,
            formats={} if isinstance(formats, msgspec.UnsetType) else formats,
        )

    def index_entry(self) -> IndexEntry:
        """Return the model's entry in the repository index."""
        return IndexEntry(self.name, self.version, "READY" if self.is_ready else "UNAVAILABLE")


def planned_batching(
    settings: ReplicaSettings, threads: int | None, cores: Callable[[], int] = usable_cores
) -> BatchingSpec:
    """Return the batching settings of a model that uses `threads` threads per run.

    By default the engine runs one single-threaded run per core. A model that was optimized for more
    threads gets as many concurrent runs as the cores allow; configured numbers do not change.
    """
    batching = settings.batching
    is_pinned = batching.max_concurrent_runs is not None or settings.intra_op_threads is not None
    if is_pinned or threads is None or threads <= 1:
        return batching
    runs = max(1, cores() // threads)
    return msgspec.structs.replace(batching, max_concurrent_runs=runs)
