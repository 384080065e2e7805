"""The state that all of a replica's APIs share."""

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
from headrace.scoring.loading import LoadedModel

NOT_READY_AFTER_S: Final = 10.0
"""A model that is stuck for so long gets no more requests: its callers left, as others would."""
NOT_ALIVE_AFTER_S: Final = 60.0
"""For so long it is given the time to come back: a new process has to load the model again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded model and the engine that runs it."""

    loaded: LoadedModel
    engine: Engine

    @property
    def signature(self) -> ModelSignature:
        """What the model takes and gives."""
        return self.loaded.signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a model's metadata are made of."""

    runtime: str
    signature: ModelSignature


@dataclass(slots=True, kw_only=True)
class ReplicaState:
    """One model of a process: what was told of it, what it counts, and itself once it is loaded.

    `described` outlives an unloading.
    """

    settings: ReplicaSettings
    statistics: ModelStatistics
    phases: PhaseHistograms = field(default_factory=PhaseHistograms)
    served: ServedModel | None = None
    is_draining: bool = False
    described: Described | None = None
    loads_on_demand: bool = False
    """The model is loaded when a request comes; `waiting` counts requests that wait for that."""
    waiting: int = 0
    since: float = field(default_factory=monotonic)
    """When it began to count, in monotonic time."""
    row_checks: RowCheckCounts | None = None
    """Of rows that are run alone and compared; None where none are."""
    _on_batch: Callable[[Batch], None] | None = None
    _on_checked: Callable[[Batch], None] | None = None
    _checker: RowChecker | None = None

    def watch_batches(self, on_batch: Callable[[Batch], None] | None) -> None:
        """Have `on_batch` called for each batch that ran, also once another engine runs them."""
        self._on_batch = on_batch
        self._set_listener()

    def _check_batches(self, on_batch: Callable[[Batch], None] | None) -> None:
        """The same for the live check of rows."""
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
        """The name that callers use for the model."""
        return self.settings.model_name

    @property
    def version(self) -> str:
        """The version of the model that runs here."""
        return self.settings.model_version

    @property
    def is_ready(self) -> bool:
        """Whether the model answers, soon at least, and new requests are welcome."""
        is_there = self.served is not None or self.loads_on_demand
        return is_there and not self.is_draining and self.stuck_s < NOT_READY_AFTER_S

    @property
    def is_alive(self) -> bool:
        """Whether it may answer again; else only a new process helps."""
        return self.stuck_s < NOT_ALIVE_AFTER_S

    @property
    def stuck_s(self) -> float:
        """As `Engine.stuck_s`, now; 0 while no model is loaded."""
        return self.served.engine.stuck_s(monotonic()) if self.served is not None else 0.0

    def not_ready(self) -> ModelNotReadyError:
        """The error for a request that comes before the model is loaded."""
        return ModelNotReadyError(self.name, self.version)

    def refused(self, ticket: Ticket, error: HeadraceError) -> None:
        """Count a request that failed before the engine took it; the engine counts its own."""
        if ticket.state is TicketState.NEW:
            accounts = Accounts(self.statistics, self.phases)
            accounts.failed(error, monotonic() - ticket.received_at)

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
    def description(self) -> Described:
        """What is known of the model since it was loaded first.

        Raises:
            ModelNotReadyError: It was never loaded.
        """
        if self.described is None:
            raise self.not_ready()
        return self.described

    def serve(self, loaded: LoadedModel) -> Engine:
        """Take over a loaded model: requests may come from now on."""
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
        """What checks rows of a model that nothing has proven to be right in batches."""
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
            run_aside=self._run_aside,
            later=loop.call_later,
            soon=loop.call_soon,
        )

    def _run_aside(self, work: Callable[[Model], None], on_ended: Callable[[], None]) -> bool:
        """As `Engine.run_aside`; false while the model is not loaded."""
        return self.served is not None and self.served.engine.run_aside(work, on_ended)

    @property
    def intra_op_threads(self) -> int:
        """Threads inside one run: as pinned, or else as the optimizer chose, or one."""
        chosen = self.served and self.served.loaded.intra_op_threads
        return chosen or self.settings.intra_op_threads or 1

    def cancel(self, ticket: Ticket) -> None:
        """The caller left before its answer."""
        if self.served is not None:
            self.served.engine.cancel(ticket)

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
        now = monotonic()
        self.phases.preprocess.observe(now - ticket.received_at)
        self.model.engine.submit(ticket, now)

    def config(self) -> dict[str, object]:
        """The model's configuration as Triton has it.

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
        """The model in the repository index."""
        return IndexEntry(self.name, self.version, "READY" if self.is_ready else "UNAVAILABLE")


def planned_batching(
    settings: ReplicaSettings, threads: int | None, cores: Callable[[], int] = usable_cores
) -> BatchingSpec:
    """How to batch a model that takes so many threads for a run.

    As many runs as cores, of one thread each, is what the engine does by itself. A model that was
    optimized to take more threads gets as many runs as its threads leave room for; numbers that
    are pinned stay as they are.
    """
    batching = settings.batching
    is_pinned = batching.max_concurrent_runs is not None or settings.intra_op_threads is not None
    if is_pinned or threads is None or threads <= 1:
        return batching
    runs = max(1, cores() // threads)
    return msgspec.structs.replace(batching, max_concurrent_runs=runs)
