"""Search journal of JSON lines, and the search state that it describes.

A search that was interrupted, or whose process a candidate crashed, resumes from the journal.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.optimize.accuracy import Fidelity, QualityVerdict
from headrace.optimize.search.process import SearchRequest, SearchTarget
from headrace.optimize.timing import CallWindow, Timing, summarize
from headrace.runtimes.base import Tuning

FILE_NAME: Final = "journal.jsonl"
_MAX_LINE_BYTES: Final = 16 << 20
FINAL: Final = "final"
"""Group of the final comparison's windows."""
AGAIN: Final = "the baseline again"
"""Name of the baseline's second entry, whose difference to the baseline is noise."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """Event: the search starts, with its inputs."""

    at_s: float = 0.0
    runtime: str
    model_class: str
    why_class: str
    recipes: tuple[str, ...]
    later: tuple[str, ...] = ()
    examples: int
    labelled: int
    """Number of labelled examples."""
    made_up: bool
    calibration: int
    calibration_sha256: str
    overlapping: bool
    request: str
    """Description of the timed request; `length` is the size of its variable axes."""
    length: int | None
    calls: int
    """Runs per timed call for throughput targets."""
    cores: int
    processor_name: str
    processor_features: tuple[str, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """Event: a step begins; the process may crash before its end."""

    at_s: float = 0.0
    step: str
    name: str


class Built(msgspec.Struct, frozen=True, kw_only=True, tag="built"):
    """Event: a candidate was built at `path`, relative to the search's directory."""

    at_s: float = 0.0
    recipe_name: str = msgspec.field(name="of")
    """Recipe of the candidate."""
    name: str
    title: str
    runtime: str
    path: str
    tuning: Tuning
    recipe: Mapping[str, str]
    size_bytes: int
    build_s: float
    is_baseline: bool = False
    is_reference: bool = False
    """Whether it is the model in its own framework, for comparison only."""


class CandidateFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Event: a recipe or candidate is given up."""

    at_s: float = 0.0
    name: str
    title: str
    reason: str


class RecipeEnded(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """Event: a recipe or step ended."""

    at_s: float = 0.0
    name: str


class Timed(msgspec.Struct, frozen=True, kw_only=True, tag="timed"):
    """Event: a timing window."""

    at_s: float = 0.0
    group: str
    """Group of interleaved windows: a candidate's name, `FINAL` or `COLD`."""
    window: CallWindow


class Unbatched(msgspec.Struct, frozen=True, kw_only=True, tag="unbatched"):
    """Event: a candidate loses batching.

    The baseline runs a batch at once, the candidate row by row. Ratios are None if not measured.
    """

    at_s: float = 0.0
    name: str
    reason: str
    rows: int
    cut_ratio: float | None = None
    """Time saved for a batch of `rows`."""
    cut_ci_ratio: tuple[float, float] | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True, tag="judged"):
    """Event: verdict on a candidate by labels."""

    at_s: float = 0.0
    name: str
    verdict: QualityVerdict
    early: bool = False
    """Whether it was rejected before all examples were evaluated."""
    is_part: bool = False
    """Whether only the first examples were evaluated so far."""


class Compared(msgspec.Struct, frozen=True, kw_only=True, tag="compared"):
    """Event: fidelity of a candidate, without labels."""

    at_s: float = 0.0
    name: str
    fidelity: Fidelity


class BaselineScored(msgspec.Struct, frozen=True, kw_only=True, tag="scored"):
    """Event: score of the baseline on the labels."""

    at_s: float = 0.0
    metric: str
    output: str
    value: float
    n: int
    why: str = ""
    warning: str = ""


class MemoryMeasured(msgspec.Struct, frozen=True, kw_only=True, tag="weighed"):
    """Event: memory and load time of a candidate in a separate process."""

    at_s: float = 0.0
    name: str
    memory_bytes: int
    load_s: float


class Mixed(msgspec.Struct, frozen=True, kw_only=True, tag="mixed"):
    """Event: engines by the largest batch, in rows, that they run; None for no limit."""

    at_s: float = 0.0
    members: tuple[tuple[str, int | None], ...]
    summary: str = msgspec.field(name="said")
    """Description of the choice."""
    notes: tuple[str, ...] = ()
    """Engine pairs that may not share a model, with reasons."""


class Wrote(msgspec.Struct, frozen=True, kw_only=True, tag="wrote"):
    """Event: the chosen candidate is ready to be pushed."""

    at_s: float = 0.0
    name: str
    path: str


class ProgressNote(msgspec.Struct, frozen=True, kw_only=True, tag="said"):
    """Event: progress message."""

    at_s: float = 0.0
    text: str


Event = (
    Started
    | Begun
    | Built
    | CandidateFailed
    | RecipeEnded
    | Timed
    | Judged
    | Compared
    | BaselineScored
    | Unbatched
    | MemoryMeasured
    | Mixed
    | Wrote
    | ProgressNote
)
_decoder = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder()


class SearchJournal:
    """Append-only journal; each event is written through when `write` returns. Close it after use.

    Raises an OSError for links and pipes with which a candidate may have replaced it.
    """

    def __init__(self, folder: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(folder / FILE_NAME, flags, 0o666)
        self._stream = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            size = self._stream.seek(0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                self._stream.write(b"\n")  # ends an incomplete last line, which is skipped
        except OSError:
            self._stream.close()
            raise

    def write(self, event: Event) -> None:
        """Append an event."""
        self._stream.write(_encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class JournalReader:
    """Non-blocking reader of a journal that another process writes."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self._offset = 0
        self._rest = b""

    def read(self) -> Iterator[Event]:
        """Yield the events since the last call; invalid lines are skipped."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return
            stream.seek(self._offset)
            data = stream.read(_MAX_LINE_BYTES)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            self._rest = b""
        for line in lines:
            event = decode(line)
            if event is not None:
                yield event


def decode(line: bytes) -> Event | None:
    """Decode a line; None if it is invalid."""
    try:
        event: Event = _decoder.decode(line)
    except msgspec.MsgspecError:
        return None
    return event


def read_journal(folder: Path) -> list[Event]:
    """Return all events of a search's directory; empty before its start."""
    reader, events = JournalReader(folder), []
    while part := list(reader.read()):
        events += part
    return events


OF_SEVERAL: Final = frozenset({"compare", "mix", "write"})
"""Steps that concern several candidates."""


@dataclass(slots=True)
class CandidateResult:
    """State of one candidate, or of a recipe that built none."""

    name: str
    title: str
    built: Built | None = None
    failed: str = ""
    """Reason why it was given up; empty if it was not."""
    verdict: QualityVerdict | None = None
    """Final verdict."""
    screened: QualityVerdict | None = None
    """Verdict on the first examples, before the final one."""
    fidelity: Fidelity | None = None
    memory_bytes: int | None = None
    load_s: float | None = None
    unbatched: Unbatched | None = None
    """Loss of batching, if any."""

    @property
    def is_reference(self) -> bool:
        """Whether it serves for comparison only."""
        return self.built is not None and self.built.is_reference

    @property
    def is_judged(self) -> bool:
        """Whether its answers were evaluated."""
        return self.verdict is not None or self.fidelity is not None

    @property
    def passes_so_far(self) -> bool:
        """Whether it passes on the first examples, without a final verdict."""
        passes = self.screened is not None and self.screened.passes
        return passes and not self.is_judged and not self.failed

    @property
    def is_accepted(self) -> bool:
        """Whether it was judged and passes."""
        judged = self.verdict or self.fidelity
        return not self.failed and judged is not None and judged.passes


@dataclass(slots=True)
class SearchState:
    """State of a search."""

    started: Started | None = None
    scored: BaselineScored | None = None
    baseline: str = ""
    candidates: dict[str, CandidateResult] = field(default_factory=dict)
    windows: dict[str, list[CallWindow]] = field(default_factory=dict)
    """Timing windows by group."""
    begun: Begun | None = None
    """Step in progress."""
    ended: set[str] = field(default_factory=set)
    """Finished recipes and steps."""
    wrote: Wrote | None = None
    mixed: Mixed | None = None
    at_s: float = 0.0
    """Elapsed seconds over all processes of the search."""
    problems: list[str] = field(default_factory=list)
    """Reasons why steps of several candidates were given up."""

    def apply(self, event: Event) -> None:  # noqa: C901, PLR0912  # one case for each event
        """Apply an event."""
        self.at_s = max(self.at_s, event.at_s)
        step = self.begun.step if self.begun is not None else ""
        if isinstance(
            event,
            CandidateFailed
            | RecipeEnded
            | Judged
            | Compared
            | BaselineScored
            | MemoryMeasured
            | Mixed
            | Wrote,
        ):
            self.begun = None
        match event:
            case Started():
                self.started = event
            case Begun():
                self.begun = event
            case Built():
                self.candidates[event.name] = CandidateResult(event.name, event.title, event)
                if event.is_baseline and not self.baseline:
                    self.baseline = event.name
            case CandidateFailed() if step in OF_SEVERAL:
                self.ended.add(step)
                self.problems.append(event.reason)
            case CandidateFailed():
                result = self.candidates.setdefault(
                    event.name, CandidateResult(event.name, event.title)
                )
                result.failed = event.reason
                self.ended.add(event.name)
            case RecipeEnded():
                self.ended.add(event.name)
            case Timed():
                self.windows.setdefault(event.group, []).append(event.window)
                self.begun = None if event.group == FINAL else self.begun
            case Unbatched():
                self.candidates[event.name].unbatched = event
            case Judged(is_part=True):
                self.candidates[event.name].screened = event.verdict
            case Judged():
                self.candidates[event.name].verdict = event.verdict
            case Compared():
                self.candidates[event.name].fidelity = event.fidelity
            case BaselineScored():
                self.scored = event
            case MemoryMeasured():
                result = self.candidates[event.name]
                result.memory_bytes, result.load_s = event.memory_bytes, event.load_s
            case Mixed():
                self.mixed = event
            case Wrote():
                self.wrote = event
            case ProgressNote():
                pass


def state_of(events: Iterable[Event]) -> SearchState:
    """Return the state after these events."""
    state = SearchState()
    for event in events:
        state.apply(event)
    return state


COLD: Final = "cold"
"""Group of windows with cold caches."""


class Timings:
    """Cached timing summaries of window groups."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._cached: dict[str, tuple[int, Mapping[str, Timing]]] = {}

    def individual(self, state: SearchState) -> dict[str, Timing]:
        """Return the timing of each candidate timed with the baseline, and the baseline."""
        by_name: dict[str, Timing] = {}
        for group in state.windows:
            if group in {FINAL, COLD}:
                continue
            timings = self.of_group(state, group)
            if state.baseline in timings:
                by_name.setdefault(state.baseline, timings[state.baseline])
                by_name |= {name: timings[name] for name in (group,) if name in timings}
        return by_name

    def of_group(self, state: SearchState, group: str) -> Mapping[str, Timing]:
        """Return the timings of a group: `FINAL` (finalists together) or `COLD` (cold caches)."""
        windows = state.windows.get(group, [])
        count, timings = self._cached.get(group, (0, {}))
        if count != len(windows):
            rng = np.random.default_rng(self._seed)
            has_baseline = any(w.readings for w in windows if w.name == state.baseline)
            timings = summarize(windows, baseline=state.baseline, rng=rng) if has_baseline else {}
            self._cached[group] = (len(windows), timings)
        return timings


_MILLION: Final = 1_000_000
_HOUR_S: Final = 3600.0


def cost_per_million(
    price: float | None, throughput_per_s: float, started: Started, request: SearchRequest
) -> float | None:
    """Return the cost of a million requests; None without a price.

    Args:
        price: Price of all cores of the machine per hour, in any currency.
        throughput_per_s: Measured requests per second: on all cores, or sequential on the threads
            of one run.
    """
    if price is None or throughput_per_s <= 0:
        return None
    return price * _share(started, request) / (throughput_per_s * _HOUR_S) * _MILLION


def cost_note(price: float | None, started: Started, request: SearchRequest) -> str:
    """Return a note about the basis of the costs; empty if cost is not a target."""
    if price is None:
        if request.target is not SearchTarget.COST:
            return ""
        return (
            "no price was given (--cost-per-hour), so that no cost is shown; the cost per "
            "request is lowest at the highest throughput, which was measured"
        )
    text = f"cost: {price:g} per hour for {started.cores} cores"
    if is_of_all_cores(request):
        return f"{text}, all of which were busy"
    if _share(started, request) == 1:
        return f"{text}, which one run at a time takes"
    return (
        f"{text}, of which one run takes {request.threads}; more runs at once would slow each "
        "other down, which --target cost measures"
    )


def is_of_all_cores(request: SearchRequest) -> bool:
    """Return whether concurrent runs on all cores were timed."""
    return request.target in {SearchTarget.THROUGHPUT, SearchTarget.COST}


def _share(started: Started, request: SearchRequest) -> float:
    """Return the share of the machine in use while timing."""
    return 1.0 if is_of_all_cores(request) else min(1.0, request.threads / started.cores)
