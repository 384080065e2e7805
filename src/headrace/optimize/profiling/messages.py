"""What a worker is told to measure, and what it says while it does: one JSON line for each."""

from dataclasses import dataclass

import msgspec

from headrace.core import PaddingSpec

NO_LENGTH = 0
"""The length of inputs without a variable dimension."""


class ProfileRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure. An empty tuple leaves the choice to the worker.

    `cores`: how many the replica will have; no more threads run at once. `rows`, `lengths`,
    `threads`, `runs`: batch sizes, sizes of variable dimensions, threads inside one run, and runs
    at once. `budget_s`: how long all of it may take. `memory_bytes`: how much it may take; larger
    batches are not tried beyond. `rows_independent`: as of `LoadOptions`.
    """

    path: str
    runtime: str = ""
    allow_code: bool = False
    cores: int = 1
    rows: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()
    max_rows: int = 256
    budget_s: float = 45.0
    memory_bytes: int = 1 << 40
    rows_independent: bool = False


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The mean time of a cell's runs in one round; `at_s`: when that began, since measuring did."""

    at_s: float
    mean_s: float


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """How long single runs took that each began after a pause of about `pause_s`.

    `samples_s`, `count`: as of a cell.
    """

    pause_s: float
    samples_s: tuple[float, ...]
    count: int
    mean_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured: a cell without figures."""

    threads: int
    runs: int
    rows: int
    length: int

    @property
    def text(self) -> str:
        """For people."""
        length = f", length {self.length}" if self.length else ""
        at_once = f", {self.runs} at once" if self.runs > 1 else ""
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.rows} row{'' if self.rows == 1 else 's'}{length}{at_once}{threads}"


class GridCell(msgspec.Struct, frozen=True, kw_only=True, tag="cell"):
    """How long runs took in one setting.

    `threads`: inside one run. `runs`: at once, sharing one instance. `samples_s`: the times of
    single runs, ascending; of many, each is the mean of as many neighbours, so that their mean is
    that of all. `count`: how many were timed. `rows_per_s`: of all runs together.
    `foreign_ratio`: the share of the machine that others used meanwhile. `rounds`: if it was
    measured in rounds, the mean of each; all cells that were have the same rounds. `paused`: runs
    that began after a pause, by its length; empty where that was not measured.
    """

    threads: int
    runs: int
    rows: int
    length: int
    samples_s: tuple[float, ...]
    count: int
    mean_s: float
    p50_s: float
    p99_s: float
    rows_per_s: float
    foreign_ratio: float = 0.0
    rounds: tuple[Round, ...] = ()
    paused: tuple[Paused, ...] = ()

    @property
    def setting(self) -> Setting:
        """What tells it from other cells."""
        return Setting(threads=self.threads, runs=self.runs, rows=self.rows, length=self.length)


class ModelMemory(msgspec.Struct, frozen=True, kw_only=True, tag="memory"):
    """Resident memory of a process with this model, and what it had `before` it was loaded.

    `largest`: after a batch of `largest_rows` at `length`, as many at once as there are cores.
    """

    before_bytes: int
    loaded_bytes: int
    one_row_bytes: int
    largest_bytes: int
    largest_rows: int
    length: int


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of operator: its share of the time of all, and the seconds and calls of one run."""

    name: str
    share_ratio: float
    run_s: float
    calls: float


class Operators(msgspec.Struct, frozen=True, kw_only=True, tag="operators"):
    """Where the time of a run goes, the largest share first; `reason` says why it is not known."""

    rows: int = 0
    length: int = 0
    items: tuple[Operator, ...] = ()
    reason: str = ""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The model was loaded and runs.

    `length`: the one that the grid is measured at. `padding`: how rows of different lengths may
    share a batch, which was proved by running; None if they may not.
    """

    runtime: str
    load_s: float
    batched: bool
    concurrent: bool
    length: int
    lengths: tuple[int, ...]
    padding: PaddingSpec | None = None


class ProfileProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """What is measured now, and how long all of it will still take, about."""

    text: str
    left_s: float


class ProfileNote(msgspec.Struct, frozen=True, kw_only=True, tag="note"):
    """Something that whoever reads the figures should know."""

    text: str


class ProfileFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Nothing can be measured. `needs_code`, `why_code`: as `CodeNotAllowedError` has them."""

    error: str
    code: str = ""
    needs_code: str = ""
    why_code: str = ""


class ProfileDone(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """All was measured that could be in the time."""


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
    """All that was measured, as far as it went. `complete`: nobody and nothing stopped it."""

    loaded: Loaded
    cells: tuple[GridCell, ...] = ()
    memory: ModelMemory | None = None
    operators: Operators = Operators(reason="not measured")
    notes: tuple[str, ...] = ()
    complete: bool = False


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """What a request costs besides its run, as asked of a real replica.

    `wall_s`: what a caller who is alone waits beyond the run. Part of it is the processor time of
    the replica's event loop: `wake_s` for all that is answered together, and `cpu_s` for each
    request. `p50_s`, `run_s`: of the requests that came alone. `way`: who was asked. `spread`: how
    the overhead of single requests varies, over its mean, ascending; empty where it is lost in how
    the runs vary.
    """

    way: str
    count: int
    p50_s: float
    run_s: float
    wall_s: float
    wake_s: float
    cpu_s: float
    spread: tuple[float, ...] = ()


def gathered(events: list[Event]) -> Measured | None:
    """What a worker said, put together; None if it did not come as far as loading the model.

    Of a cell that was told several times, the last is the one that knows most.
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
