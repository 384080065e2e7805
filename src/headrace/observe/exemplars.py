"""Which request was it that took so long? One for each bucket of a histogram, renewed by and by."""

import re
import time
from typing import Final

RENEWED_AFTER_S: Final = 1.0
_WORD: Final = re.compile(r"[A-Za-z0-9_.:/@+=-]{1,100}")  # OpenMetrics: 128 with the label's name


class Exemplars:
    """The newest request in each bucket, taken at most once a second: the rest costs a comparison.

    The caller compares `due` with the time before it asks for a request's name.
    """

    __slots__ = ("due", "kept")

    def __init__(self, places: int) -> None:
        self.due = [0.0] * places
        self.kept: dict[int, tuple[str, str, float, float]] = {}

    def keep(self, place: int, value: float, identity: tuple[str, str], now: float) -> None:
        """Keep a request as the example of a bucket.

        Args:
            place: Which bucket.
            identity: What its id is called, and the id. One that is no word is not told: a caller
                chose it, and not every reader of metrics knows about quotes.
            now: Monotonic time.
        """
        self.due[place] = now + RENEWED_AFTER_S
        name, found = identity
        if _WORD.fullmatch(found):
            at = time.time()  # noqa: TID251  # for people
            self.kept[place] = (name, found, value, at)

    def between(self, after: int, until: int) -> tuple[str, str, float, float] | None:
        """The newest of the buckets after one and until another: label, id, value, when."""
        found = [self.kept[place] for place in range(after + 1, until + 1) if place in self.kept]
        return max(found, key=lambda each: each[-1], default=None)
