"""How are the requests split? Parts of one bar, from the left to the right. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LOOKS: Final = 4
_WIDE: Final = 8
"""From this share in percent on there is room for a label in the bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of the bar, in percent; `look` is its fill, 1 to 4."""

    name: str
    weight: int
    start: int
    look: int

    @property
    def is_wide(self) -> bool:
        """Whether its number fits into it."""
        return self.weight >= _WIDE


def shares_of(parts: Sequence[tuple[str, int]]) -> list[Share]:
    """The parts that get anything, and those that get nothing, in their order."""
    found, start = [], 0
    for i, (name, weight) in enumerate(parts):
        found.append(Share(name=name, weight=weight, start=start, look=i % _LOOKS + 1))
        start += weight
    return found
