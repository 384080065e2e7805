"""Window states of a session, opened and closed with its partitions.

Called by the session's thread. Records are counted once, in the order of their partitions: when a
batch is taken, or, where a state is behind the group, as soon as they are read.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from headrace.core import Clock, ConflictError, HeadraceError, UnsupportedError
from headrace.core.spec.stream_parts import StreamWindowsSpec
from headrace.streaming.broker import Broker, StartPosition
from headrace.streaming.codec import Added
from headrace.streaming.codecs import make_reader
from headrace.streaming.formats import FieldLayout
from headrace.streaming.metrics import WindowCounters
from headrace.streaming.records import Record, TopicPartition
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.panes import Events, WindowPlan, fields_of, plan_windows
from headrace.streaming.windows.state_file import (
    PartitionState,
    StatePosition,
    WindowStateFile,
    state_folder,
    state_path,
)

_log = logging.getLogger(__name__)

_PANES_PER_CHECKPOINT: Final = 500
"""Maximum panes written at once, which takes some milliseconds."""
_CONTINUE_AFTER_S: Final = 0.05
STALE_AFTER: Final = 10_000
"""Number of records; a state that is further behind is rebuilt if that needs fewer records."""


class Restore(NamedTuple):
    """How the windows of a partition are restored."""

    read_from: int
    """Offset to read from."""
    scored_from: int
    """Offset from which records are scored; earlier ones are only counted."""
    is_rebuilt: bool
    """Whether an existing state is discarded."""
    is_whole: bool = True
    """Whether no record is missing."""


def restore(
    stored: int | None, *, group: int, first: int, since: Callable[[], int | None]
) -> Restore:
    """Return how to restore the windows of one partition, so that each record is counted once.

    A state counts all records up to its own offset, which is never after the committed one. Records
    between it and the group's offset are read again and counted, not scored. Without such a state,
    it is rebuilt from the records that the topic still has.

    Args:
        stored: The offset of the existing state; None without a state.
        group: The group's offset: earlier records have answers.
        first: The first available offset.
        since: Returns the first record that windows at `group` may contain; None if unknown.
    """
    group = max(group, first)
    usable = stored is not None and first <= stored <= group
    if usable and stored is not None and group - stored <= STALE_AFTER:
        return Restore(stored, group, is_rebuilt=False)
    oldest_needed = since()
    begin = first if oldest_needed is None else min(max(oldest_needed, first), group)
    if usable and stored is not None and stored >= begin:
        return Restore(stored, group, is_rebuilt=False)
    return Restore(begin, group, is_rebuilt=True, is_whole=begin > first or first == 0)


@dataclass(slots=True, kw_only=True)
class _Held:
    """Open windows of one partition."""

    file: WindowStateFile
    state: PartitionState
    scored_from: int
    read: int
    """The next offset to read."""
    safe: int
    """The offset before which all answers were produced."""


class Windows:
    """Windows of one session.

    Raises:
        UnsupportedError: The broker has no partitions, or a package of the format is not installed.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        broker: Broker,
        counters: WindowCounters,
        *,
        clock: Clock,
    ) -> None:
        assert settings.windows is not None
        if not broker.abilities.partitions:
            msg = (
                f"stream '{settings.name}': windows need a broker whose topics have partitions, "
                "each read by one member: log: or kafka://"
            )
            raise UnsupportedError(msg)
        self._settings = settings
        self._windows = settings.windows
        self._plan = plan_windows(settings.windows)
        names = fields_of(settings.windows)
        layout = FieldLayout(inputs=(), outputs=(), passed=names)
        reads = make_reader(settings.format, layout) if names else None
        self._events = Events(settings.windows, self._plan, reads)
        self._broker = broker
        self._counters = counters
        self._clock = clock
        self._held: dict[TopicPartition, _Held] = {}
        self._checkpoint_at = clock.monotonic() + settings.windows.checkpoint_s
        self._failing = ""

    @property
    def problem(self) -> str:
        """Problem of the window states, as text for users; empty without a problem."""
        behind = {partition: held.scored_from - held.read for partition, held in self._held.items()}
        waits = {partition: count for partition, count in behind.items() if count > 0}
        if not waits:
            return self._failing
        partition = min(waits)
        return (
            f"restoring windows of partition {partition.topic}/{partition.partition} and "
            f"{len(waits) - 1} more: {sum(waits.values())} records are read again"
        )

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Open the states of assigned partitions; return where to read from.

        Raises:
            HeadraceError: A state cannot be opened, or the broker cannot be reached.
        """
        starts: dict[TopicPartition, int] = {}
        for topic in sorted({partition.topic for partition in partitions}):
            ends = self._broker.ends(topic)
            committed = self._broker.committed(self._settings.group, topic)
            starts |= {
                p: self._open(p, committed.get(p), ends[p]) for p in partitions if p.topic == topic
            }
        return starts

    def count_restored(self, records: Sequence[Record]) -> list[Record]:
        """Count restored records, which are not scored again; return the others."""
        behind: dict[TopicPartition, list[Record]] = {}
        rest = []
        for record in records:
            held = self._held[record.topic_partition]
            held.read = record.offset + 1
            if record.offset < held.scored_from:
                behind.setdefault(record.topic_partition, []).append(record)
            else:
                rest.append(record)
        for partition, some in behind.items():
            held = self._held[partition]
            events = self._events.from_records(some, now_s=self._clock.now())
            held.state.count(events, offset=some[-1].offset + 1)
            self._counters.restored_records += len(some)
        return rest

    def count(self, records: Sequence[Record]) -> Added:
        """Count records; return the window fields of each record."""
        events = self._events.from_records(records, now_s=self._clock.now())
        rows: list[Sequence[object]] = [(0,) * len(self._plan.windows)] * len(records)
        errors: dict[int, HeadraceError] = {}
        by_partition: dict[TopicPartition, list[int]] = {}
        for index, record in enumerate(records):
            by_partition.setdefault(record.topic_partition, []).append(index)
        for partition, indexes in by_partition.items():
            offset = records[indexes[-1]].offset + 1
            counted = self._held[partition].state.count(
                [events[index] for index in indexes], offset=offset
            )
            self._counters.late += counted.late
            for index, row in zip(indexes, counted.rows, strict=True):
                if isinstance(row, HeadraceError):
                    errors[index] = row
                elif row is not None:
                    rows[index] = row
        names = [window.name for window in self._plan.windows]
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        return Added(columns=columns, errors=errors)

    def delivered(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Record offsets whose answers were produced; a flush of the session acknowledges them."""
        for partition, offset in offsets.items():
            held = self._held.get(partition)
            if held is not None:
                held.safe = max(held.safe, offset)

    def is_due(self, now: float) -> bool:
        """Return whether a checkpoint is due."""
        return now >= self._checkpoint_at

    def checkpoint(
        self, partitions: Collection[TopicPartition] | None = None, *, is_last: bool = False
    ) -> None:
        """Write the states of acknowledged answers; failed writes are retried later.

        Large states are written in parts, as records wait meanwhile.

        Args:
            partitions: Only these; None for all.
            is_last: Whether to write everything.
        """
        started = self._clock.monotonic()
        self._failing = ""
        has_more = False
        for partition, held in self._held.items():
            if partitions is not None and partition not in partitions:
                continue
            max_panes = max(_PANES_PER_CHECKPOINT, held.state.unwritten // 4)
            change = held.state.changes(held.safe, max_panes=math.inf if is_last else max_panes)
            if change is None:
                continue
            has_more = has_more or len(change.panes) >= max_panes
            try:
                held.file.write(change, first_needed=self._plan.first_needed(change.newest_us))
            except ConflictError:
                raise
            except HeadraceError as error:
                self._failing = str(error)
                continue
            held.state.on_written(change.offset)
        self._counters.keys = sum(len(held.state) for held in self._held.values())
        ended = self._clock.monotonic()
        self._counters.checkpoints.observe(ended - started)
        pause_s = self._windows.checkpoint_s
        self._checkpoint_at = ended + (min(pause_s, _CONTINUE_AFTER_S) if has_more else pause_s)

    def postpone(self) -> None:
        """Write later, as answers are not acknowledged yet."""
        self._checkpoint_at = self._clock.monotonic() + self._windows.checkpoint_s

    def close(self, partitions: Collection[TopicPartition] | None = None) -> None:
        """Close states; the next owner reads again the records that were not written."""
        for partition in list(self._held) if partitions is None else partitions:
            held = self._held.pop(partition, None)
            if held is not None:
                held.file.close()

    def _open(self, partition: TopicPartition, committed: int | None, ends: tuple[int, int]) -> int:
        settings = self._settings
        path = state_path(state_folder(settings), partition)
        file = WindowStateFile(path, definition=_definition(self._windows, self._plan))
        try:
            stored = file.position()
            group = self._start(partition, ends) if committed is None else committed
            how = restore(
                None if stored is None else stored.offset,
                group=group,
                first=ends[0],
                since=lambda: self._since(partition, group),
            )
            self._report(partition, how, stored)
            if how.is_rebuilt:
                file.begin(how.read_from)
        except BaseException:
            file.close()
            raise
        newest_us = None if how.is_rebuilt or stored is None else stored.newest_us
        self.close([partition])
        self._held[partition] = _Held(
            file=file,
            state=PartitionState(self._plan, file, newest_us=newest_us),
            scored_from=how.scored_from,
            read=how.read_from,
            safe=how.scored_from,
        )
        return how.read_from

    def _start(self, partition: TopicPartition, ends: tuple[int, int]) -> int:
        """Return the offset at which a new group starts."""
        settings = self._settings
        if settings.start_s is not None:
            return self._broker.offsets_at(partition.topic, settings.start_s).get(
                partition, ends[1]
            )
        return ends[0] if settings.start is StartPosition.EARLIEST else ends[1]

    def _since(self, partition: TopicPartition, group: int) -> int | None:
        """Return the first record that windows at the group's offset may contain, by write time.

        Counted from the last record before it: after a pause, windows still contain earlier ones.
        """
        there = self._broker.read(
            partition.topic, after={partition: max(group - 1, 0)}, max_records=1
        )
        at_s = there[0].timestamp_s if there else self._clock.now()
        return self._broker.offsets_at(partition.topic, at_s - self._plan.horizon_us / 1e6).get(
            partition
        )

    def _report(
        self, partition: TopicPartition, how: Restore, stored: StatePosition | None
    ) -> None:
        name, behind = f"{partition.topic}/{partition.partition}", how.scored_from - how.read_from
        if not how.is_rebuilt:
            self._counters.opened += 1
            if behind:
                _log.info("windows of %s: %d records are read again", name, behind)
            return
        if stored is None and not behind and how.is_whole:
            return  # a new group
        self._counters.rebuilt += 1
        self._counters.incomplete += not how.is_whole
        short = "" if how.is_whole else "; older records were deleted and may be missing"
        _log.warning("windows of %s are rebuilt from %d records%s", name, behind, short)


def _definition(settings: StreamWindowsSpec, plan: WindowPlan) -> str:
    """Return the definition of a state: states with equal definitions are compatible."""
    series = [[plan.keys[s.key], s.field, s.pane_us, s.longest_us] for s in plan.series]
    fields = list(plan.fields)
    return msgspec.json.encode(
        [settings.time, plan.lateness_us, settings.ahead_s, fields, series]
    ).decode()
