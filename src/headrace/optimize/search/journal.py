"""What a search did so far: a line of JSON each, so that nothing measured is lost.

A search that was interrupted, or whose process a candidate ended, goes on from there.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from headrace.optimize.accuracy import Fidelity, Verdict
from headrace.optimize.timing import Window
from headrace.runtimes.tuning import Tuning

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

    at_s: float
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

    at_s: float
    step: str
    name: str


class Built(msgspec.Struct, frozen=True, kw_only=True, tag="built"):
    """A candidate lies at `path`, relative to the search's directory; `of`: its recipe.

    `is_reference`: the model in its own framework, to be compared with and not to be chosen.
    """

    at_s: float
    of: str
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


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A recipe or a candidate is given up; `reason` is for the report."""

    at_s: float
    name: str
    title: str
    reason: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """A recipe made all its candidates, or none."""

    at_s: float
    name: str


class Timed(msgspec.Struct, frozen=True, kw_only=True, tag="timed"):
    """One window. `group`: windows that were interleaved; a candidate's own, or `FINAL`."""

    at_s: float
    group: str
    window: Window


class Unbatched(msgspec.Struct, frozen=True, kw_only=True, tag="unbatched"):
    """A candidate loses the source's batches. `cut_ratio`: of the time for a batch of `rows`.

    The baseline runs the batch at once, the candidate row by row. None if there was no time to
    measure that.
    """

    at_s: float
    name: str
    reason: str
    rows: int
    cut_ratio: float | None = None
    cut_ci_ratio: tuple[float, float] | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True, tag="judged"):
    """What a candidate lost on labels.

    `early`: given up before all were asked. `is_part`: only the first ones were asked so far.
    """

    at_s: float
    name: str
    verdict: Verdict
    early: bool = False
    is_part: bool = False


class Compared(msgspec.Struct, frozen=True, kw_only=True, tag="compared"):
    """How far a candidate's answers are from the baseline's, where there are no labels."""

    at_s: float
    name: str
    fidelity: Fidelity


class Scored(msgspec.Struct, frozen=True, kw_only=True, tag="scored"):
    """What the baseline reaches on the labels."""

    at_s: float
    metric: str
    output: str
    value: float
    n: int
    why: str = ""
    warning: str = ""


class Weighed(msgspec.Struct, frozen=True, kw_only=True, tag="weighed"):
    """What a candidate takes in a process of its own."""

    at_s: float
    name: str
    memory_bytes: int
    load_s: float


class Mixed(msgspec.Struct, frozen=True, kw_only=True, tag="mixed"):
    """Which engines run batches of how many rows, None for all larger ones.

    `said`: in words; `notes`: which engines may not share a model, and why.
    """

    at_s: float
    members: tuple[tuple[str, int | None], ...]
    said: str
    notes: tuple[str, ...] = ()


class Wrote(msgspec.Struct, frozen=True, kw_only=True, tag="wrote"):
    """The chosen candidate lies ready to be pushed."""

    at_s: float
    name: str
    path: str


class Said(msgspec.Struct, frozen=True, kw_only=True, tag="said"):
    """What goes on, for people."""

    at_s: float
    text: str


Event = (
    Started
    | Begun
    | Built
    | Failed
    | Ended
    | Timed
    | Judged
    | Compared
    | Scored
    | Unbatched
    | Weighed
    | Mixed
    | Wrote
    | Said
)
_decoder = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder()


class Journal:
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
    reader, found = JournalReader(folder), []
    while part := list(reader.read()):
        found += part
    return found
