"""What plain clients of a broker wrote and read, and what that says about a stream between them.

It shares no code with Headrace: a mistake of its clients would else be a mistake of the count too.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

KEYS: Final = 60
MARK: Final = 7.0
"""The second number of each record."""
FLUSH_WITHIN_S: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the records.

    Args:
        lost: Records without an answer.
        twice: Answers beyond the first one of each record.
        disordered: Records whose first answer follows that of a later record with the same key.
        longest_still_s: The longest time that a partition with unanswered records got no answer,
            since the first answer of all.
        still_at_s: When that began, after the ledger was opened.
    """

    written: int
    answers: int
    lost: int
    twice: int
    disordered: int
    longest_still_s: float
    still_at_s: float


@dataclass
class Ledger:
    """Records by number, with their partition and the time of their acknowledgement; answers."""

    opened_at: float = field(default_factory=time.monotonic)
    written: dict[int, tuple[int, float]] = field(default_factory=dict)
    answers: list[tuple[int, float]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set: nothing more is written."""
    flushed: threading.Event = field(default_factory=threading.Event)
    """Set: what was written is acknowledged."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set: nothing more is read."""

    def feed(self, rate: float, send: Callable[[int], None], wait: Callable[[float], Any]) -> None:
        """Send numbers at this rate until `stopped`; `wait` passes the time between them."""
        began, number = time.monotonic(), 0
        while not self.stopped.is_set():
            if number < (time.monotonic() - began) * rate:
                send(number)
                number += 1
            else:
                wait(0.02)

    def acknowledge(self, number: int, partition: int) -> None:
        self.written[number] = (partition, time.monotonic())

    def answer(self, value: bytes) -> None:
        """Note what was read: twice the number that was written."""
        self.answers.append((round(json.loads(value)["y"][0] / 2), time.monotonic()))

    def left(self) -> int:
        """Return how many records have no answer yet."""
        return len(dict(self.written).keys() - {number for number, _ in list(self.answers)})

    def counts(self, now: float) -> Counts:
        first: dict[int, float] = {}
        newest: dict[int, int] = {}
        disordered = 0
        for number, at in self.answers:
            if number not in first:
                first[number] = at
                disordered += number < newest.get(number % KEYS, -1)
                newest[number % KEYS] = max(number, newest.get(number % KEYS, -1))
        longest_s, since = self._longest_still(first, now)
        return Counts(
            written=len(self.written),
            answers=len(self.answers),
            lost=len(self.written.keys() - first.keys()),
            twice=len(self.answers) - len(first),
            disordered=disordered,
            longest_still_s=longest_s,
            still_at_s=since - self.opened_at,
        )

    def _longest_still(self, first: dict[int, float], now: float) -> tuple[float, float]:
        """Return how long, and since when."""
        begun = min(first.values(), default=self.opened_at)
        events: dict[int, list[tuple[float, int]]] = {}
        for number, (partition, at) in self.written.items():
            answered = first.get(number)
            mine = events.setdefault(partition, [])
            mine.append((max(begun, at if answered is None else min(at, answered)), 1))
            if answered is not None:
                mine.append((answered, -1))
        longest = (0.0, begun)
        for mine in events.values():
            waiting, since = 0, begun
            # Of one time, what is written comes first.
            for at, change in [*sorted(mine, key=lambda event: (event[0], -event[1])), (now, 0)]:
                if waiting and change <= 0:
                    longest = max(longest, (at - since, since))
                if change < 0 or not waiting:
                    since = at
                waiting += change
        return longest


def key_of(number: int) -> str:
    return str(number % KEYS)


def value_of(number: int) -> bytes:
    return json.dumps({"x": [float(number), MARK]}).encode()
