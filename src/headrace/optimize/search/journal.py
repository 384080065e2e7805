"""Search journal: one line of JSON per step, and each candidate's state by it.

A search that was interrupted, or whose process a candidate ended, goes on from there.
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
"""The group of windows that candidates are compared in at last."""
AGAIN: Final = "the baseline again"
"""A contender that is the baseline itself: what is found between the two is noise."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """What is known before anything is tried.

    `labelled`: examples with labels; 0 for none. `request`: what is timed, in words, and `length`
    that of its variable axes; `calls`: runs in a call that is timed where throughput counts.
    """

    at_s: float = 0.0
    runtime: str
    model_class: str
    why_class: str
    recipes: tuple[str, ...]
    later: tuple[str, ...] = ()
    examples: int
    labelled: int
    made_up: bool
    calibration: int
    calibration_sha256: str
    overlapping: bool
    request: str
    length: int | None
    calls: int
    cores: int
    processor_name: str
    processor_features: tuple[str, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """A step begins; the process may not live to its end."""

    at_s: float = 0.0
    step: str
    name: str


class Built(msgspec.Struct, frozen=True, kw_only=True, tag="built"):
    """A candidate lies at `path`, relative to the search's directory; `recipe_name`: its recipe.

    `is_reference`: the model in its own framework, to be compared with and not to be chosen.
    """

    at_s: float = 0.0
    recipe_name: str = msgspec.field(name="of")
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


class CandidateFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A recipe or a candidate is given up; `reason` is for the report."""

    at_s: float = 0.0
    name: str
    title: str
    reason: str


class RecipeEnded(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """A recipe made all its candidates, or none."""

    at_s: float = 0.0
    name: str


class Timed(msgspec.Struct, frozen=True, kw_only=True, tag="timed"):
    """One window. `group`: windows that were interleaved; a candidate's own, or `FINAL`."""

    at_s: float = 0.0
    group: str
    window: CallWindow


class Unbatched(msgspec.Struct, frozen=True, kw_only=True, tag="unbatched"):
    """A candidate loses the source's batches. `cut_ratio`: of the time for a batch of `rows`.

    The baseline runs the batch at once, the candidate row by row. None if there was no time to
    measure that.
    """

    at_s: float = 0.0
    name: str
    reason: str
    rows: int
    cut_ratio: float | None = None
    cut_ci_ratio: tuple[float, float] | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True, tag="judged"):
    """What a candidate lost on labels.

    `early`: given up before all were asked. `is_part`: only the first ones were asked so far.
    """

    at_s: float = 0.0
    name: str
    verdict: QualityVerdict
    early: bool = False
    is_part: bool = False


class Compared(msgspec.Struct, frozen=True, kw_only=True, tag="compared"):
    """How far a candidate's answers are from the baseline's, where there are no labels."""

    at_s: float = 0.0
    name: str
    fidelity: Fidelity


class BaselineScored(msgspec.Struct, frozen=True, kw_only=True, tag="scored"):
    """What the baseline reaches on the labels."""

    at_s: float = 0.0
    metric: str
    output: str
    value: float
    n: int
    why: str = ""
    warning: str = ""


class MemoryMeasured(msgspec.Struct, frozen=True, kw_only=True, tag="weighed"):
    """What a candidate takes in a process of its own."""

    at_s: float = 0.0
    name: str
    memory_bytes: int
    load_s: float


class Mixed(msgspec.Struct, frozen=True, kw_only=True, tag="mixed"):
    """Which engines run batches of how many rows, None for all larger ones.

    `said`: in words; `notes`: which engines may not share a model, and why.
    """

    at_s: float = 0.0
    members: tuple[tuple[str, int | None], ...]
    summary: str = msgspec.field(name="said")
    notes: tuple[str, ...] = ()


class Wrote(msgspec.Struct, frozen=True, kw_only=True, tag="wrote"):
    """The chosen candidate lies ready to be pushed."""

    at_s: float = 0.0
    name: str
    path: str


class ProgressNote(msgspec.Struct, frozen=True, kw_only=True, tag="said"):
    """What goes on, for people."""

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
    """Appends events; each is on disk when `write` returns. Closed by whoever opened it.

    Links and pipes that candidates may have put in its place are not written to: an OSError.
    """

    def __init__(self, folder: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(folder / FILE_NAME, flags, 0o666)
        self._stream = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            size = self._stream.seek(0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                self._stream.write(b"\n")  # half a line stays alone, and is passed over
        except OSError:
            self._stream.close()
            raise

    def write(self, event: Event) -> None:
        """Keep an event."""
        self._stream.write(_encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class JournalReader:
    """Reads what another process writes, which may be damaged, and never blocks on it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self._at = 0
        self._rest = b""

    def read(self) -> Iterator[Event]:
        """The events since the last call; lines that are none are passed over."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return
            stream.seek(self._at)
            data = stream.read(_MAX_LINE_BYTES)
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            self._rest = b""
        for line in lines:
            event = decode(line)
            if event is not None:
                yield event


def decode(line: bytes) -> Event | None:
    """The event on a line; None if it is torn or none."""
    try:
        event: Event = _decoder.decode(line)
    except msgspec.MsgspecError:
        return None
    return event


def read_journal(folder: Path) -> list[Event]:
    """All events of a search's directory; none where it has not begun."""
    reader, events = JournalReader(folder), []
    while part := list(reader.read()):
        events += part
    return events


OF_SEVERAL: Final = frozenset({"compare", "mix", "write"})
"""Steps that are of no single candidate."""


@dataclass(slots=True)
class CandidateResult:
    """One candidate, or a recipe that made none.

    `failed`: why it was given up. `verdict`: after all examples were asked, or enough to give it
    up; `screened`: after the first ones, until then. `unbatched`: it runs requests one at a time
    where the source runs batches.
    """

    name: str
    title: str
    built: Built | None = None
    failed: str = ""
    verdict: QualityVerdict | None = None
    screened: QualityVerdict | None = None
    fidelity: Fidelity | None = None
    memory_bytes: int | None = None
    load_s: float | None = None
    unbatched: Unbatched | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it is there to be compared with only."""
        return self.built is not None and self.built.is_reference

    @property
    def is_judged(self) -> bool:
        """Whether its answers were looked at."""
        return self.verdict is not None or self.fidelity is not None

    @property
    def passes_so_far(self) -> bool:
        """Whether it was not fully judged, and loses no more than it may in what was asked."""
        passes = self.screened is not None and self.screened.passes
        return passes and not self.is_judged and not self.failed

    @property
    def is_accepted(self) -> bool:
        """Whether it was judged, and loses no more than it may."""
        judged = self.verdict or self.fidelity
        return not self.failed and judged is not None and judged.passes


@dataclass(slots=True)
class SearchState:
    """A search so far.

    `windows`: by group. `begun`: the step that has not ended. `ended`: recipes that are done.
    `at_s`: seconds that it took, over all its processes. `problems`: why steps of several
    candidates were given up.
    """

    started: Started | None = None
    scored: BaselineScored | None = None
    baseline: str = ""
    candidates: dict[str, CandidateResult] = field(default_factory=dict)
    windows: dict[str, list[CallWindow]] = field(default_factory=dict)
    begun: Begun | None = None
    ended: set[str] = field(default_factory=set)
    wrote: Wrote | None = None
    mixed: Mixed | None = None
    at_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def apply(self, event: Event) -> None:  # noqa: C901, PLR0912  # one case for each event
        """Take in what happened."""
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
    """The state after these events."""
    state = SearchState()
    for event in events:
        state.apply(event)
    return state


COLD: Final = "cold"
"""The group of windows in which caches hold nothing of the model."""


class Timings:
    """Sums up groups of windows, each once for as many windows as it has."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[str, tuple[int, Mapping[str, Timing]]] = {}

    def individual(self, state: SearchState) -> dict[str, Timing]:
        """Each candidate that was timed with the baseline only, and the baseline."""
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
        """Those of a group: of the finalists together (`FINAL`), or with cold caches (`COLD`)."""
        windows = state.windows.get(group, [])
        count, timings = self._known.get(group, (0, {}))
        if count != len(windows):
            rng = np.random.default_rng(self._seed)
            has_baseline = any(w.readings for w in windows if w.name == state.baseline)
            timings = summarize(windows, baseline=state.baseline, rng=rng) if has_baseline else {}
            self._known[group] = (len(windows), timings)
        return timings


_MILLION: Final = 1_000_000
_HOUR_S: Final = 3600.0


def cost_per_million(
    price: float | None, throughput_per_s: float, started: Started, request: SearchRequest
) -> float | None:
    """Of requests; None without a price.

    Args:
        price: Of all cores of the machine, for an hour, in any currency.
        throughput_per_s: Of requests, as they were timed: on all cores, or one after the other on
            as many as one run has threads.
    """
    if price is None or throughput_per_s <= 0:
        return None
    return price * _share(started, request) / (throughput_per_s * _HOUR_S) * _MILLION


def cost_note(price: float | None, started: Started, request: SearchRequest) -> str:
    """What the costs are of, for people; empty where there are none and nobody asked for any."""
    if price is None:
        if request.target is not SearchTarget.COST:
            return ""
        return (
            "no price was given (--cost-per-hour), so that no cost is shown: whatever the machine "
            "costs, a request costs least where most are answered on its cores, which was measured"
        )
    text = f"cost: {price:g} an hour for {started.cores} cores"
    if is_of_all_cores(request):
        return f"{text}, all of which were busy"
    if _share(started, request) == 1:
        return f"{text}, which one run at a time takes"
    return (
        f"{text}, of which one run takes {request.threads}; more runs at once would slow each "
        "other down, which --target cost measures"
    )


def is_of_all_cores(request: SearchRequest) -> bool:
    """Whether as many runs were timed at once as there are cores for."""
    return request.target in {SearchTarget.THROUGHPUT, SearchTarget.COST}


def _share(started: Started, request: SearchRequest) -> float:
    """Of the machine, in use while it was timed."""
    return 1.0 if is_of_all_cores(request) else min(1.0, request.threads / started.cores)
