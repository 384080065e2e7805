"""How much of a network is cut out, and what became of it; without any library."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from headrace.core import InvalidArgumentError

FEWEST_EXAMPLES: Final = 16
"""Below that, what matters to a network cannot be told."""
MOST_EXAMPLES: Final = 256
_WIDE: Final = 64
_STEP: Final = 8
"""Kernels work on so many numbers at a time; a wide layer keeps a multiple of it."""


class Unit(StrEnum):
    """What is cut out."""

    FFN = "ffn"
    """Hidden units between two matrices."""
    HEADS = "heads"
    """Of attention."""
    CHANNELS = "channels"
    """Of convolutions."""


class Importance(StrEnum):
    """How the units that go are chosen."""

    RECONSTRUCTION = "reconstruction"
    """Least lost when the others make up for it: the default, needs examples and no labels."""
    TAYLOR = "taylor"
    """Least change of the answers by a first-order estimate: needs gradients, and so PyTorch."""
    ACTIVATION = "activation"
    """Least mean square of what it adds to the answer of its layer."""
    MAGNITUDE = "magnitude"
    """Smallest weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneCut:
    """Share of the units of each layer that goes, 0 to less than 1, by kind."""

    ffn_ratio: float = 0.0
    heads_ratio: float = 0.0
    channels_ratio: float = 0.0

    def __post_init__(self) -> None:
        ratios = [self.ratio(unit) for unit in Unit]
        if not all(0 <= ratio < 1 for ratio in ratios) or not any(ratios):
            msg = f"a cut takes from 0 to less than 1 of each kind and something of one, not {self}"
            raise InvalidArgumentError(msg)

    def ratio(self, unit: Unit) -> float:
        """Share of one kind."""
        match unit:
            case Unit.FFN:
                return self.ffn_ratio
            case Unit.HEADS:
                return self.heads_ratio
            case Unit.CHANNELS:
                return self.channels_ratio

    @property
    def units(self) -> tuple[Unit, ...]:
        """Kinds of which something goes."""
        return tuple(unit for unit in Unit if self.ratio(unit))

    def __str__(self) -> str:
        return ", ".join(f"{unit} -{self.ratio(unit):.0%}" for unit in self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How it is pruned.

    `make_up`: whether the units that stay are fitted to make up for the others. `distil_s`: how
    long the result learns from the source's answers, where PyTorch is there; 0 for not at all.
    """

    importance: Importance = Importance.RECONSTRUCTION
    make_up: bool = True
    distil_s: float = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was made.

    `parameters_before`, `parameters_after`: numbers in floating-point constants. `layers`: how many
    were cut, by kind. `examples`: that importance was told by. `taught`: how it learned afterwards,
    or why it did not.
    """

    path: Path
    cut: PruneCut
    method: Method
    parameters_before: int
    parameters_after: int
    layers: Mapping[Unit, int]
    examples: int
    taught: str
    build_s: float

    def facts(self) -> dict[str, str]:
        """For a candidate's recipe."""
        gone = 1 - self.parameters_after / self.parameters_before
        layers = ", ".join(f"{count} x {unit}" for unit, count in self.layers.items())
        fitted = ", the others fitted to make up for it" if self.method.make_up else ""
        return {
            "pruned": str(self.cut),
            "layers": layers,
            "parameters": f"{self.parameters_before:,} to {self.parameters_after:,} (-{gone:.0%})",
            "importance": f"{self.method.importance} over {self.examples} examples{fitted}",
            "taught": self.taught,
            "build_s": f"{self.build_s:.1f}",
        }


def kept_count(units: int, ratio: float) -> int:
    """How many of a layer's units stay: one at least, and a multiple of 8 in a wide layer."""
    wanted = units * (1 - ratio)
    if units < _WIDE:
        return max(1, round(wanted))
    return min(units, max(_STEP, round(wanted / _STEP) * _STEP))
