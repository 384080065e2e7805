"""Which units of a graph can be cut out, each with all that makes and reads it?

From a weight's outputs, or from where attention splits features into heads, the axis is followed
through every node in both directions, as DepGraph does (Fang et al., CVPR 2023), until it ends in
weights. Where it reaches an output, a residual sum or a node that mixes it, it cannot be cut.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from headrace.optimize.prune.cut import Unit
from headrace.optimize.prune.graph import Graph
from headrace.optimize.prune.layout import Layout
from headrace.optimize.prune.site import (
    INPUT,
    MATRIX,
    OUTPUT,
    NotCutError,
    Shape,
    Site,
    Slot,
    is_weighing,
    weight_axes,
)
from headrace.optimize.prune.ties import ties


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An input or output of a node, by its index in the graph."""

    node: int
    slot: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A weight that reads the units: `layout` of them in its input, `tensor`."""

    node: int
    tensor: str
    layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that are cut together.

    `cuts`: constants, by the place where they are read. `reshapes`: nodes whose shape may say how
    many units there are, and the layout in what they make.
    """

    unit: Unit
    name: str
    units: int
    tensors: Mapping[str, Layout]
    cuts: Mapping[Place, Layout]
    reshapes: Mapping[int, Layout]
    producers: tuple[int, ...]
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`refused`: how many candidates could not be cut for each reason, by kind of unit."""

    groups: tuple[Group, ...]
    refused: Mapping[Unit, Counter[str]]

    def why_none(self, unit: Unit) -> str:
        """Why there is nothing of a kind to cut."""
        reasons = self.refused[unit].most_common(_MOST_REASONS)
        if not reasons:
            return _ABSENT[unit]
        return f"no {unit} can be cut: " + "; ".join(f"{why} ({n} times)" for why, n in reasons)


_MOST_REASONS: Final = 3
_FEWEST: Final = 2
"""Units of which one can be cut."""
_ABSENT: Final = {
    Unit.FFN: "it has no two matrices with an activation between them",
    Unit.HEADS: "no place was found where it splits features into heads",
    Unit.CHANNELS: "it has no two convolutions in a row",
}


def find_groups(graph: Graph, shapes: dict[str, Shape]) -> Found:
    """All groups, in the order in which they run.

    Args:
        shapes: Of every tensor, in one run.
    """
    groups: list[Group] = []
    refused: dict[Unit, Counter[str]] = {unit: Counter() for unit in Unit}
    taken: set[str] = set()
    for unit, tensor, layout in _seeds(graph, shapes):
        if tensor in taken or layout.units < _FEWEST:
            continue
        try:
            group = _Closure(graph, shapes).group(unit, tensor, layout)
        except NotCutError as error:
            refused[unit][str(error)] += 1
            continue
        taken |= group.tensors.keys()
        groups.append(group)
    groups.sort(key=lambda group: min(consumer.node for consumer in group.consumers))
    return Found(groups=tuple(groups), refused=refused)


def _seeds(graph: Graph, shapes: dict[str, Shape]) -> Iterator[tuple[Unit, str, Layout]]:
    """Heads first: what makes them would be refused as single units."""
    for node in graph.nodes:
        if node.op_type != "Reshape" or node.input[0] not in shapes:
            continue
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        if _is_split(before, after):
            axis = len(after) - MATRIX
            yield Unit.HEADS, node.output[0], Layout(axis=axis, units=after[-2])
    for i in range(len(graph.nodes)):
        site = Site(graph=graph, index=i, shapes=shapes)
        if not is_weighing(site) or site.name(OUTPUT) not in shapes:
            continue
        shape = site.shape(OUTPUT)
        axis = len(shape) - 1 if site.kind == "MatMul" else 1
        unit = Unit.CHANNELS if site.kind == "Conv" else Unit.FFN
        yield unit, site.name(OUTPUT), Layout(axis=axis, units=shape[axis])


def _is_split(before: Shape, after: Shape) -> bool:
    """Whether only the last axis is split, into heads and their features."""
    if len(after) <= max(len(before), MATRIX) or not before or 0 in after:
        return False
    last = after[-1] * after[-2]
    return before[-1] % last == 0 and before[:-1] == after[: len(before) - 1]


class _Closure:
    """Follows units from one tensor to all that have to be cut with it."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.tensors: dict[str, Layout] = {}
        self.cuts: dict[Place, Layout] = {}
        self.reshapes: dict[int, Layout] = {}
        self.producers: set[int] = set()
        self.consumers: dict[int, Consumer] = {}
        self._waiting: list[str] = []

    def group(self, unit: Unit, tensor: str, layout: Layout) -> Group:
        self._add(tensor, layout)
        while self._waiting:
            self._follow(self._waiting.pop())
        if not self.consumers or not self.producers:
            raise NotCutError("no weight makes them" if self.consumers else "no weight reads them")
        kinds = {self.graph.nodes[i].op_type for i in self._nodes()}
        if unit is Unit.HEADS and "Softmax" not in kinds:
            raise NotCutError("there is no Softmax between them")
        self._check_residual()
        first = min(self.producers)
        return Group(
            unit=unit,
            name=self.graph.nodes[first].name or self.graph.nodes[first].output[0],
            units=layout.units,
            tensors=self.tensors,
            cuts=self.cuts,
            reshapes=self.reshapes,
            producers=tuple(sorted(self.producers)),
            consumers=tuple(self.consumers[i] for i in sorted(self.consumers)),
        )

    def _add(self, tensor: str, layout: Layout) -> None:
        known = self.tensors.get(tensor)
        if known == layout:
            return
        if known is not None:
            raise NotCutError("they lie in one tensor in two ways")
        if tensor in self.graph.inputs or tensor in self.graph.outputs:
            raise NotCutError("they are what callers send or get")
        if tensor in self.graph.shown_inside:
            raise NotCutError("a loop or branch reads them")
        self.tensors[tensor] = layout
        self._waiting.append(tensor)

    def _follow(self, tensor: str) -> None:
        layout = self.tensors[tensor]
        maker = self.graph.makers[tensor]
        made = list(self.graph.nodes[maker].output).index(tensor)
        self._tie(maker, Slot(out=True, at=made), layout)
        for reader, slot in self.graph.readers.get(tensor, ()):
            self._tie(reader, Slot(out=False, at=slot), layout)

    def _tie(self, node: int, slot: Slot, layout: Layout) -> None:
        site = Site(graph=self.graph, index=node, shapes=self.shapes)
        found = ties(site, slot, layout)
        for other, at in found.items():
            name = site.name(other)
            if name not in self.graph.constants:
                self._add(name, at)
            elif self.cuts.setdefault(Place(node=node, slot=other), at) != at:
                raise NotCutError("a residual sum carries them past a weight")
        if is_weighing(site):
            self._weigh(site, slot, layout, found)
        elif site.kind == "Reshape":
            self.reshapes[node] = found.get(OUTPUT, layout)

    def _weigh(self, site: Site, slot: Slot, layout: Layout, found: Mapping[Slot, Layout]) -> None:
        weight = found.get(Slot(out=False, at=1))
        if weight is None:
            return
        if slot.out:
            self.producers.add(site.index)
            return
        assert weight.axis == weight_axes(site)[0]
        tensor = site.name(INPUT)
        self.consumers[site.index] = Consumer(node=site.index, tensor=tensor, layout=layout)

    def _nodes(self) -> set[int]:
        """Nodes that pass the units on."""
        made = {self.graph.makers[name] for name in self.tensors}
        return made - self.producers

    def _check_residual(self) -> None:
        """Refuse a sum of what two weights make: all of a stage of a network would be cut alike."""
        sources: dict[str, frozenset[int]] = {}
        for i in sorted({self.graph.makers[name] for name in self.tensors}):
            node = self.graph.nodes[i]
            given = [sources[name] for name in node.input if name in sources]
            own = frozenset([i]) if i in self.producers else frozenset()
            summed = node.op_type in {"Add", "Sum", "Sub"} and len(set(given)) > 1
            if summed and not _nested(given):
                raise NotCutError("a residual sum reads them")
            for name in node.output:
                sources[name] = own.union(*given)


def _nested(sources: list[frozenset[int]]) -> bool:
    """Whether each is part of the largest."""
    largest = max(sources, key=len)
    return all(one <= largest for one in sources)
