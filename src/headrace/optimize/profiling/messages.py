"""Messages of the profiling worker: the request, and events as JSON lines."""

from dataclasses import dataclass

import msgspec

from headrace.core import PaddingSpec

NO_LENGTH = 0
"""Length of inputs without a variable dimension."""


class ProfileRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Request of a profile. An empty tuple leaves the choice to the worker."""

    path: str
    runtime: str = ""
    allow_code: bool = False
    cores: int = 1
    """Cores of the replica, and limit of concurrent threads."""
    rows: tuple[int, ...] = ()
    """Batch sizes."""
    lengths: tuple[int, ...] = ()
    """Sizes of variable dimensions."""
    threads: tuple[int, ...] = ()
    """Threads per run."""
    runs: tuple[int, ...] = ()
    """Concurrent runs."""
    max_rows: int = 256
    budget_s: float = 45.0
    """Time budget of the whole measurement."""
    memory_bytes: int = 1 << 40
    """Memory limit beyond which larger batches are not tried."""
    rows_independent: bool = False
    """See `LoadOptions`."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Mean time of a cell's runs in one round."""

    at_s: float
    """Start of the round, in seconds since the measurement began."""
    mean_s: float


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """Times of single runs that began after a pause of about `pause_s`."""

    pause_s: float
    samples_s: tuple[float, ...]
    """See `GridCell`."""
    count: int
    """See `GridCell`."""
    mean_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Measured setting: a grid cell without figures."""

    threads: int
    runs: int
    rows: int
    length: int

    @property
    def text(self) -> str:
        """Text for the report."""
        length = f", length {self.length}" if self.length else ""
        at_once = f", {self.runs} at once" if self.runs > 1 else ""
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.rows} row{'' if self.rows == 1 else 's'}{length}{at_once}{threads}"


class GridCell(msgspec.Struct, frozen=True, kw_only=True, tag="cell"):
    """Run times in one setting."""

    threads: int
    """Threads per run."""
    runs: int
    """Concurrent runs on one model instance."""
    rows: int
    length: int
    samples_s: tuple[float, ...]
    """Run times, ascending; many are averaged over neighbours, which preserves the mean."""
    count: int
    """Number of timed runs."""
    mean_s: float
    p50_s: float
    p99_s: float
    rows_per_s: float
    """Rows per second of all runs together."""
    foreign_ratio: float = 0.0
    """CPU share of other processes meanwhile."""
    rounds: tuple[Round, ...] = ()
    """Mean of each round, if measured in rounds; cells have the same rounds."""
    paused: tuple[Paused, ...] = ()
    """Runs after pauses, by pause length; empty if not measured."""

    @property
    def setting(self) -> Setting:
        """Setting of the cell."""
        return Setting(threads=self.threads, runs=self.runs, rows=self.rows, length=self.length)


class ModelMemory(msgspec.Struct, frozen=True, kw_only=True, tag="memory"):
    """Resident memory of a process before and after loading the model, and after runs.

    `largest_bytes` is after concurrent batches of `largest_rows` at `length` on all cores.
    """

    before_bytes: int
    loaded_bytes: int
    one_row_bytes: int
    largest_bytes: int
    largest_rows: int
    length: int


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """Operator kind: its share of the time, and seconds and calls per run."""

    name: str
    share_ratio: float
    run_s: float
    calls: float


class Operators(msgspec.Struct, frozen=True, kw_only=True, tag="operators"):
    """Time by operator kind, largest first; `reason` explains a missing profile."""

    rows: int = 0
    length: int = 0
    items: tuple[Operator, ...] = ()
    reason: str = ""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """Event: the model is loaded and runs."""

    runtime: str
    load_s: float
    batched: bool
    concurrent: bool
    length: int
    """Length at which the grid is measured."""
    lengths: tuple[int, ...]
    padding: PaddingSpec | None = None
    """Padding that lets rows of different lengths share a batch, verified by runs; None if not."""


class ProfileProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Event: current measurement, and the approximate remaining time."""

    text: str
    left_s: float


class ProfileNote(msgspec.Struct, frozen=True, kw_only=True, tag="note"):
    """Event: note for readers of the figures."""

    text: str


class ProfileFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Event: the measurement failed."""

    error: str
    code: str = ""
    needs_code: str = ""
    """Runtime that would run the author's code, if that is not allowed."""
    why_code: str = ""
    """The code that would run."""


class ProfileDone(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """Event: the measurement is complete."""


Event = (
    Loaded
    | GridCell
    | ModelMemory
    | Operators
    | ProfileProgress
    | ProfileNote
    | ProfileFailed
    | ProfileDone
)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Collected measurements of a worker."""

    loaded: Loaded
    cells: tuple[GridCell, ...] = ()
    memory: ModelMemory | None = None
    operators: Operators = Operators(reason="not measured")
    notes: tuple[str, ...] = ()
    complete: bool = False
    """Whether the measurement ran to its end."""


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a request besides its run, measured at a real replica."""

    way: str
    """How the replica was queried."""
    count: int
    p50_s: float
    """Median latency of single requests."""
    run_s: float
    """Median run time of single requests."""
    wall_s: float
    """Wait of a single request beyond its run. It includes the event loop's CPU time: `wake_s` per
    batch and `cpu_s` per request."""
    wake_s: float
    cpu_s: float
    spread: tuple[float, ...] = ()
    """Overhead of single requests over its mean, ascending; empty if the runs vary more."""


def gathered(events: list[Event]) -> Measured | None:
    """Collect a worker's events; None if the model was not loaded.

    The last event of a cell supersedes earlier ones.
    """
    loaded = next((event for event in events if isinstance(event, Loaded)), None)
    if loaded is None:
        return None
    operators = [event for event in events if isinstance(event, Operators)]
    memory = [event for event in events if isinstance(event, ModelMemory)]
    return Measured(
        loaded=loaded,
        cells=tuple(
            {event.setting: event for event in events if isinstance(event, GridCell)}.values()
        ),
        memory=memory[-1] if memory else None,
        operators=operators[-1] if operators else Operators(reason="not measured"),
        notes=tuple(event.text for event in events if isinstance(event, ProfileNote)),
        complete=any(isinstance(event, ProfileDone) for event in events),
    )
