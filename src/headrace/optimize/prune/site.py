"""One node of a graph with the shapes that its tensors had, and whether it is a weight."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from headrace.core import Array
from headrace.optimize.prune.graph import Graph

MATRIX: Final = 2


class Slot(NamedTuple):
    """One tensor of a node."""

    out: bool
    at: int


INPUT: Final = Slot(out=False, at=0)
OUTPUT: Final = Slot(out=True, at=0)


class NotCutError(Exception):
    """Units cannot be cut here; the message says why."""


Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A node of a graph, with the shapes that its tensors had in a run."""

    graph: Graph
    index: int
    shapes: dict[str, Shape]

    @property
    def kind(self) -> str:
        """Its operator."""
        return str(self.graph.nodes[self.index].op_type)

    @property
    def is_fed(self) -> tuple[int, ...]:
        """Inputs that are given."""
        node = self.graph.nodes[self.index]
        return tuple(i for i, name in enumerate(node.input) if name)

    def name(self, slot: Slot) -> str:
        """What a tensor is called; empty where an optional one is left out."""
        node = self.graph.nodes[self.index]
        names = node.output if slot.out else node.input
        return names[slot.at] if slot.at < len(names) else ""

    def shape(self, slot: Slot) -> Shape:
        """The shape it had."""
        name = self.name(slot)
        constant = self.graph.constants.get(name)
        if constant is not None:
            return tuple(constant.shape)
        if name not in self.shapes:
            raise NotCutError(f"the shape of '{name}' is not known")
        return self.shapes[name]

    def constant(self, index: int) -> Array | None:
        """An input's values, if it is constant."""
        return self.graph.constants.get(self.name(Slot(out=False, at=index)))

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # whatever it is
        """An attribute."""
        return self.graph.attribute(self.index, name, default)


def is_depthwise(site: Site) -> bool:
    """Whether a convolution has one filter for each channel."""
    weight, group = site.constant(1), site.attribute("group", 1)
    return weight is not None and group > 1 and tuple(weight.shape[:2]) == (group, 1)


def weight_axes(site: Site) -> tuple[int, int]:
    """Axes of a weight, at input 1, along which its inputs and its outputs lie."""
    if site.kind == "Conv":
        return (1, 0)
    return (1, 0) if site.kind == "Gemm" and site.attribute("transB", 0) else (0, 1)


def is_weighing(site: Site) -> bool:
    """Whether it multiplies what comes in with a constant matrix or filters."""
    weight = site.constant(1)
    if weight is None or site.graph.nodes[site.index].domain:
        return False
    match site.kind:
        case "MatMul":
            return weight.ndim == MATRIX
        case "Gemm":
            return not site.attribute("transA", 0)
        case "Conv":
            return bool(site.attribute("group", 1) == 1)
        case _:
            return False
