"""What became of each request of a run. Numbers in arrays: millions have to fit."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.load.intervals import Floats

PENDING: Final = -1
"""Not over: not sent yet, waiting for a connection, or for an answer."""
SUCCEEDED: Final = 0
"""The code of a request that was answered well; each way to fail has a code above it."""
LEFT_OUT: Final = -2
"""Given up because the run was ended by hand."""
NOT_SENT: Final = -3
"""Not sent, because the generator was too far behind when its time was up."""


@dataclass(slots=True)
class Record:
    """The course of a run, by the number of the request; times in seconds from the start.

    Attributes:
        intended: When it was to leave.
        handled: When the generator took it up; 0 for not at all.
        done: When it was over; 0 for not yet.
        code: One of the numbers above, or of a kind of failure.
        kinds: The kinds of failure, by code; the first is that of success.
    """

    intended: "array[float]"
    handled: "array[float]" = field(init=False)
    done: "array[float]" = field(init=False)
    code: "array[int]" = field(init=False)
    kinds: list[str] = field(default_factory=lambda: ["ok"])
    _codes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.intended)
        self.handled = array("d", bytes(8 * size))
        self.done = array("d", bytes(8 * size))
        self.code = array("h", [PENDING]) * size

    @classmethod
    def of(cls, intended: Floats) -> "Record":
        """The record of a run that has not begun."""
        return cls(array("d", intended.tobytes()))

    def code_of(self, kind: str) -> int:
        """The number of a kind of failure; a new one if it did not happen before."""
        code = self._codes.get(kind)
        if code is None:
            code = self._codes[kind] = len(self.kinds)
            self.kinds.append(kind)
        return code

    def sample(self) -> "Sample":
        """The same for reckoning."""
        return Sample(
            intended=np.array(self.intended),
            handled=np.array(self.handled),
            done=np.array(self.done),
            code=np.array(self.code),
            kinds=tuple(self.kinds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A run that is over, or a part of one; see `Record`."""

    intended: Floats
    handled: Floats
    done: Floats
    code: NDArray[np.int16]
    kinds: Sequence[str]

    def __len__(self) -> int:
        return len(self.intended)

    def where(self, wanted: NDArray[np.bool_]) -> "Sample":
        """Only these requests."""
        return Sample(
            intended=self.intended[wanted],
            handled=self.handled[wanted],
            done=self.done[wanted],
            code=self.code[wanted],
            kinds=self.kinds,
        )

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Which were answered well."""
        return np.equal(self.code, SUCCEEDED)

    @property
    def over(self) -> NDArray[np.bool_]:
        """Which were sent and seen to their end, well or not."""
        return np.greater_equal(self.code, SUCCEEDED)

    @property
    def latency_s(self) -> Floats:
        """From the intended time to the end; infinite for what failed."""
        return np.where(self.succeeded, self.done - self.intended, np.inf)

    @property
    def latency_from_sent_s(self) -> Floats:
        """The same without the generator's lag: from when the request was taken up."""
        return np.where(self.succeeded, self.done - self.handled, np.inf)

    @property
    def lag_s(self) -> Floats:
        """How late the generator was; of what was not sent it is not known, and left out."""
        taken = self.handled > 0
        return np.maximum(self.handled[taken] - self.intended[taken], 0.0)
