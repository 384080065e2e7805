"""Where do the units that may be cut lie along an axis of a tensor?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace.core import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`units` on one `axis`: entry `(o * units + unit) * inner + i` belongs to `unit`.

    A hidden unit is one entry (`outer` and `inner` are 1); a head is `inner` entries in a row, and
    lies there three times where query, key and value come from one matrix (`outer` 3).
    """

    axis: int
    units: int
    outer: int = 1
    inner: int = 1

    @property
    def extent(self) -> int:
        """Size of the axis."""
        return self.outer * self.units * self.inner

    def entries(self, kept: Array) -> Array:
        """Indices on the axis of the units `kept`, in the axis's order."""
        inner = np.arange(self.inner)
        outer = np.arange(self.outer)[:, None, None] * self.units
        found: Array = ((outer + kept[None, :, None]) * self.inner + inner).reshape(-1)
        return found

    def at(self, axis: int) -> "Layout":
        """The same on another axis."""
        return replace(self, axis=axis)


def through_reshape(layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    """The layout after a reshape from one shape to another; None where units are torn apart."""
    outside = math.prod(before[: layout.axis]) * layout.outer
    within = math.prod(before[layout.axis + 1 :]) * layout.inner
    for axis, size in enumerate(after if 0 not in after else ()):
        outer, rest = divmod(outside, math.prod(after[:axis]))
        inner, more = divmod(within, math.prod(after[axis + 1 :]))
        if not rest and not more and outer * layout.units * inner == size:
            return Layout(axis=axis, units=layout.units, outer=outer, inner=inner)
    return None
