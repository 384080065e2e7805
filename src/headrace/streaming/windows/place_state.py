"""The windows of one place while it is this member's: events go in, values come out.

What is read of the state file stays in memory; what changes is kept, with the offset after which it
is so, until it may be written: only what is delivered is. So a file never knows of an answer that
nobody got, and what follows a crash comes to the same by reading on from the file's offset.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from headrace.core import HeadraceError
from headrace.streaming.windows.events import Event
from headrace.streaming.windows.panes import Number, Pane, Plan

REMEMBERED_KEYS: Final = 200_000
"""So many keys of a place stay in memory after their panes were written."""

KeyOf = tuple[int, bytes]
"""A series, and a key in it."""
PaneOf = tuple[int, bytes, int]
"""A series, a key in it, and the number of a pane."""


class Panes(Protocol):
    """Where panes are that were written."""

    def read(self, keys: Sequence[KeyOf]) -> Mapping[KeyOf, Mapping[int, Pane]]:
        """The panes of these keys; keys that have none may be left out."""


class Change(NamedTuple):
    """What is so when all before `offset` is counted: panes as a whole, and the newest event."""

    offset: int
    panes: Mapping[PaneOf, Pane]
    newest_us: int | None


class CountedEvents(NamedTuple):
    """The result of counting events.

    `rows`: for each event the value of each window; None where there was no event. `late`: how many
    events came too late to be counted.
    """

    rows: list[list[Number] | HeadraceError | None]
    late: int


class PlaceState:
    """Counts the events of one place, in their order. Used by one thread."""

    def __init__(self, plan: Plan, stored: Panes, *, newest_us: int | None) -> None:
        self._plan = plan
        self._stored = stored
        self._newest_us = newest_us
        self._keys: dict[KeyOf, dict[int, Pane]] = {}
        self._orders: dict[KeyOf, list[int]] = {}
        self._changes: deque[Change] = deque()

    def __len__(self) -> int:
        """How many keys are in memory."""
        return len(self._keys)

    def count(
        self, events: Sequence[Event | HeadraceError | None], *, offset: int
    ) -> CountedEvents:
        """Count events and return the windows' values after each of them.

        An event older than the lateness allows is not counted. Its values are those of the oldest
        moment that still counts: the panes before that are forgotten.

        Args:
            events: In order; an error and None are not counted.
            offset: The next one after their records.
        """
        self._load(events)
        touched: set[PaneOf] = set()
        rows: list[list[Number] | HeadraceError | None] = []
        late = 0
        for event in events:
            if not isinstance(event, Event):
                rows.append(event)
                continue
            newest_us = self._newest_us
            oldest_us = event.at_us if newest_us is None else self._plan.oldest_us(newest_us)
            if event.at_us < oldest_us:
                late += 1
            else:
                self._add(event, touched)
            rows.append(self._values(event, max(event.at_us, oldest_us)))
        panes = {(series, key, at): self._keys[series, key][at] for series, key, at in touched}
        self._changes.append(Change(offset, panes, self._newest_us))
        return CountedEvents(rows, late)

    @property
    def unwritten(self) -> int:
        """How many panes changed, by batch."""
        return sum([len(change.panes) for change in self._changes])

    def changes(self, upto: int, *, most: float = math.inf) -> Change | None:
        """What is so once everything before `upto` is delivered, as one; None for nothing.

        Args:
            most: After about so many panes the rest is left for later.
        """
        panes: dict[PaneOf, Pane] = {}
        last = None
        for change in self._changes:
            if change.offset > upto or len(panes) >= most:
                break
            panes.update(change.panes)
            last = change
        return last and Change(last.offset, panes, last.newest_us)

    def wrote(self, offset: int) -> None:
        """What changed until there is in the file; forget it, and keys that are too many."""
        while self._changes and self._changes[0].offset <= offset:
            self._changes.popleft()
        surplus = len(self._keys) - REMEMBERED_KEYS
        if surplus <= 0:
            return
        needed = {(series, key) for one in self._changes for series, key, _ in one.panes}
        for of in [of for of in self._keys if of not in needed][:surplus]:
            del self._keys[of], self._orders[of]

    def _load(self, events: Iterable[Event | HeadraceError | None]) -> None:
        wanted = {
            (number, event.keys[series.key])
            for event in events
            if isinstance(event, Event)
            for number, series in enumerate(self._plan.series)
        }
        missing = [of for of in wanted if of not in self._keys]
        if not missing:
            return
        stored = self._stored.read(missing)
        for of in missing:
            panes = dict(stored.get(of, {}))
            self._keys[of] = panes
            self._orders[of] = sorted(panes)

    def _add(self, event: Event, touched: set[PaneOf]) -> None:
        at_us = event.at_us
        self._newest_us = at_us if self._newest_us is None else max(self._newest_us, at_us)
        oldest_us = self._plan.oldest_us(self._newest_us)
        for number, series in enumerate(self._plan.series):
            value = 0.0 if series.field is None else event.values[series.field]
            if value is None:
                continue
            key = event.keys[series.key]
            panes, order = self._keys[number, key], self._orders[number, key]
            at = at_us // series.pane_us
            before = panes.get(at)
            if before is None:
                insort(order, at)
                _forget(panes, order, series.first_kept(oldest_us), touched, (number, key))
            panes[at] = (before or Pane()).with_value(value)
            touched.add((number, key, at))

    def _values(self, event: Event, at_us: int) -> list[Number]:
        found = []
        for window in self._plan.windows:
            series = self._plan.series[window.series]
            of = window.series, event.keys[series.key]
            panes, order = self._keys[of], self._orders[of]
            found.append(window.value(panes, order, series.pane_us, at_us))
        return found


def _forget(
    panes: dict[int, Pane], order: list[int], first: int, touched: set[PaneOf], of: KeyOf
) -> None:
    """Panes before `first` are of use to no event that may still come."""
    while order[0] < first:
        at = order.pop(0)
        panes.pop(at, None)
        touched.discard((*of, at))
