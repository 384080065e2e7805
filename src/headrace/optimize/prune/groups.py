"""Groups of coupled units in a graph, and their removal.

From a weight's outputs, or from where attention splits features into heads, the axis is followed
through every node in both directions, as DepGraph does (Fang et al., CVPR 2023), until it ends in
weights. Where it reaches an output, a residual sum or a node that mixes it, it cannot be cut.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.prune.graph import Node, PruningGraph, users
from headrace.optimize.prune.ties import (
    INPUT,
    MATRIX,
    OUTPUT,
    NotCutError,
    Shape,
    Site,
    Slot,
    UnitLayout,
    is_weighing,
    ties,
    weight_axes,
)

FEWEST_EXAMPLES: Final = 16
"""Least examples for an estimate of the units' importance."""
MAX_EXAMPLES: Final = 256
_WIDE: Final = 64
_STEP: Final = 8
"""Vector width of kernels; wide layers keep a multiple of it."""


class Unit(StrEnum):
    """Kind of unit that is pruned."""

    FFN = "ffn"
    """Hidden units between two matrices."""
    HEADS = "heads"
    """Attention heads."""
    CHANNELS = "channels"
    """Channels of convolutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneCut:
    """Share of each layer's units to remove, 0 to below 1, by kind."""

    ffn_ratio: float = 0.0
    heads_ratio: float = 0.0
    channels_ratio: float = 0.0

    def __post_init__(self) -> None:
        ratios = [self.ratio(unit) for unit in Unit]
        if not all(0 <= ratio < 1 for ratio in ratios) or not any(ratios):
            msg = f"each share must be 0 to below 1, and one above 0, not {self}"
            raise InvalidArgumentError(msg)

    def ratio(self, unit: Unit) -> float:
        """Return the share of one kind."""
        ratio: float = getattr(self, f"{unit}_ratio")
        return ratio

    @property
    def units(self) -> tuple[Unit, ...]:
        """Kinds with a share above 0."""
        return tuple(unit for unit in Unit if self.ratio(unit))

    def __str__(self) -> str:
        return ", ".join(f"{unit} -{self.ratio(unit):.0%}" for unit in self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Result of pruning."""

    path: Path
    cut: PruneCut
    parameters_before: int
    """Parameters in floating-point constants."""
    parameters_after: int
    """Parameters after pruning."""
    layers: Mapping[Unit, int]
    """Pruned layers by kind."""
    examples: int
    """Examples of the importance estimate."""
    distillation: str
    build_s: float

    def facts(self) -> dict[str, str]:
        """Return entries for the candidate's recipe."""
        removed = 1 - self.parameters_after / self.parameters_before
        layers = ", ".join(f"{count} x {unit}" for unit, count in self.layers.items())
        return {
            "pruned": str(self.cut),
            "layers": layers,
            "parameters": f"{self.parameters_before:,} to {self.parameters_after:,} "
            f"(-{removed:.0%})",
            "importance": f"reconstruction over {self.examples} examples, the others fitted to "
            "make up for it",
            "taught": self.distillation,
            "build_s": f"{self.build_s:.1f}",
        }


def kept_count(units: int, ratio: float) -> int:
    """Return how many units of a layer stay: at least one, in wide layers a multiple of 8."""
    remaining = units * (1 - ratio)
    if units < _WIDE:
        return max(1, round(remaining))
    return min(units, max(_STEP, round(remaining / _STEP) * _STEP))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePort:
    """Input or output of a node."""

    node: int
    slot: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """Weight that reads the units from `tensor` with `layout`."""

    node: int
    tensor: str
    layout: UnitLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGroup:
    """Units that must be removed together."""

    unit: Unit
    name: str
    units: int
    tensors: Mapping[str, UnitLayout]
    cuts: Mapping[NodePort, UnitLayout]
    """Constants to cut, by the port that reads them."""
    reshapes: Mapping[int, UnitLayout]
    """Reshape nodes whose shape may depend on the units, with the layout of their output."""
    producers: tuple[int, ...]
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunableGroups:
    """Prunable groups of a graph, and refused candidates."""

    groups: tuple[UnitGroup, ...]
    refused: Mapping[Unit, Counter[str]]
    """Refused candidates by reason, by kind of unit."""

    def refusal_summary(self, unit: Unit) -> str:
        """Return why a kind has no prunable units."""
        reasons = self.refused[unit].most_common(_MAX_REASONS)
        if not reasons:
            return _ABSENT[unit]
        return f"no {unit} can be cut: " + "; ".join(
            f"{reason} ({n} times)" for reason, n in reasons
        )


_MAX_REASONS: Final = 3
_FEWEST: Final = 2
"""Least units of a group."""
_ABSENT: Final = {
    Unit.FFN: "it has no two matrices with an activation between them",
    Unit.HEADS: "no reshape splits its features into heads",
    Unit.CHANNELS: "it has no two convolutions in a row",
}


def find_groups(graph: PruningGraph, shapes: dict[str, Shape]) -> PrunableGroups:
    """Return all groups in topological order.

    Args:
        shapes: Shape of every tensor in a run.
    """
    groups: list[UnitGroup] = []
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
    return PrunableGroups(groups=tuple(groups), refused=refused)


def _seeds(graph: PruningGraph, shapes: dict[str, Shape]) -> Iterator[tuple[Unit, str, UnitLayout]]:
    """Yield start tensors, heads first, as their producers would be refused as single units."""
    for node in graph.nodes:
        if node.op_type != "Reshape" or node.input[0] not in shapes:
            continue
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        if _is_split(before, after):
            axis = len(after) - MATRIX
            yield Unit.HEADS, node.output[0], UnitLayout(axis=axis, units=after[-2])
    for i in range(len(graph.nodes)):
        site = Site(graph=graph, index=i, shapes=shapes)
        if not is_weighing(site) or site.name(OUTPUT) not in shapes:
            continue
        shape = site.shape(OUTPUT)
        axis = len(shape) - 1 if site.kind == "MatMul" else 1
        unit = Unit.CHANNELS if site.kind == "Conv" else Unit.FFN
        yield unit, site.name(OUTPUT), UnitLayout(axis=axis, units=shape[axis])


def _is_split(before: Shape, after: Shape) -> bool:
    """Return whether a reshape splits only the last axis, into heads and features."""
    if len(after) <= max(len(before), MATRIX) or not before or 0 in after:
        return False
    last = after[-1] * after[-2]
    return before[-1] % last == 0 and before[:-1] == after[: len(before) - 1]


class _Closure:
    """Search that follows units from one tensor to all coupled ones."""

    def __init__(self, graph: PruningGraph, shapes: dict[str, Shape]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.tensors: dict[str, UnitLayout] = {}
        self.cuts: dict[NodePort, UnitLayout] = {}
        self.reshapes: dict[int, UnitLayout] = {}
        self.producers: set[int] = set()
        self.consumers: dict[int, Consumer] = {}
        self._waiting: list[str] = []

    def group(self, unit: Unit, tensor: str, layout: UnitLayout) -> UnitGroup:
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
        return UnitGroup(
            unit=unit,
            name=self.graph.nodes[first].name or self.graph.nodes[first].output[0],
            units=layout.units,
            tensors=self.tensors,
            cuts=self.cuts,
            reshapes=self.reshapes,
            producers=tuple(sorted(self.producers)),
            consumers=tuple(self.consumers[i] for i in sorted(self.consumers)),
        )

    def _add(self, tensor: str, layout: UnitLayout) -> None:
        existing = self.tensors.get(tensor)
        if existing == layout:
            return
        if existing is not None:
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
        output_index = list(self.graph.nodes[maker].output).index(tensor)
        self._tie(maker, Slot(out=True, number=output_index), layout)
        for reader, slot in self.graph.readers.get(tensor, ()):
            self._tie(reader, Slot(out=False, number=slot), layout)

    def _tie(self, node: int, slot: Slot, layout: UnitLayout) -> None:
        site = Site(graph=self.graph, index=node, shapes=self.shapes)
        tied = ties(site, slot, layout)
        for other, other_layout in tied.items():
            name = site.name(other)
            if name not in self.graph.constants:
                self._add(name, other_layout)
            elif (
                self.cuts.setdefault(NodePort(node=node, slot=other), other_layout) != other_layout
            ):
                raise NotCutError("a residual sum carries them past a weight")
        if is_weighing(site):
            self._weigh(site, slot, layout, tied)
        elif site.kind == "Reshape":
            self.reshapes[node] = tied.get(OUTPUT, layout)

    def _weigh(
        self, site: Site, slot: Slot, layout: UnitLayout, tied: Mapping[Slot, UnitLayout]
    ) -> None:
        weight = tied.get(Slot(out=False, number=1))
        if weight is None:
            return
        if slot.out:
            self.producers.add(site.index)
            return
        assert weight.axis == weight_axes(site)[0]
        tensor = site.name(INPUT)
        self.consumers[site.index] = Consumer(node=site.index, tensor=tensor, layout=layout)

    def _nodes(self) -> set[int]:
        """Return the nodes that pass the units on."""
        makers = {self.graph.makers[name] for name in self.tensors}
        return makers - self.producers

    def _check_residual(self) -> None:
        """Refuse residual sums of two weights, which would couple a whole stage."""
        sources: dict[str, frozenset[int]] = {}
        for i in sorted({self.graph.makers[name] for name in self.tensors}):
            node = self.graph.nodes[i]
            input_sources = [sources[name] for name in node.input if name in sources]
            own = frozenset([i]) if i in self.producers else frozenset()
            summed = node.op_type in {"Add", "Sum", "Sub"} and len(set(input_sources)) > 1
            if summed and not _nested(input_sources):
                raise NotCutError("a residual sum reads them")
            for name in node.output:
                sources[name] = own.union(*input_sources)


def _nested(sources: list[frozenset[int]]) -> bool:
    """Return whether all sets are subsets of the largest."""
    largest = max(sources, key=len)
    return all(source <= largest for source in sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """Units of a group that remain, ascending."""

    group: UnitGroup
    kept_units: Array


def without_units(graph: PruningGraph, cuts: Sequence[Cutting]) -> PruningGraph:
    """Return a smaller graph that is equivalent to `with_units_ignored`.

    Computed shapes are assumed to follow; running the result verifies that.
    """
    smaller = graph.copy()
    added: dict[int, Node] = {}
    for cut in cuts:
        for port, layout in cut.group.cuts.items():
            _cut_constant(smaller, port, layout, cut.kept_units)
        for node, layout in cut.group.reshapes.items():
            concat = _cut_shape(smaller, node, layout, cut.kept_units)
            if concat is not None:
                added[node] = concat
    before = enumerate(smaller.nodes)
    smaller.nodes = [
        entry for i, node in before for entry in ([added[i]] if i in added else []) + [node]
    ]
    smaller.index()
    return smaller


def with_units_ignored(graph: PruningGraph, cuts: Sequence[Cutting]) -> PruningGraph:
    """Return a graph of the same size in which nothing reads the removed units."""
    masked = graph.copy()
    for cut in cuts:
        for consumer in cut.group.consumers:
            port = NodePort(node=consumer.node, slot=Slot(out=False, number=1))
            layout = cut.group.cuts[port]

            def without(
                array: Array, layout: UnitLayout = layout, kept_units: Array = cut.kept_units
            ) -> Array:
                zeroed = np.moveaxis(np.zeros_like(array), layout.axis, 0)
                entries = layout.entries(kept_units)
                zeroed[entries] = np.moveaxis(array, layout.axis, 0)[entries]
                return np.moveaxis(zeroed, 0, layout.axis)

            change_constant(masked, port, without)
    return masked


def change_constant(graph: PruningGraph, port: NodePort, change: Callable[[Array], Array]) -> None:
    """Replace a constant for one reader only."""
    node = graph.nodes[port.node]
    name = node.input[port.slot.number]
    array = np.asarray(change(graph.constants[name]), order="C")
    counts = users(graph)
    if counts[name] > 1:
        readers = graph.readers[name]
        readers.remove((port.node, port.slot.number))
        name = graph.fresh(name)
        node.input[port.slot.number] = name
        graph.readers[name] = [(port.node, port.slot.number)]
    graph.constants[name] = array


def _cut_constant(
    graph: PruningGraph, port: NodePort, layout: UnitLayout, kept_units: Array
) -> None:
    entries = layout.entries(kept_units)
    change_constant(graph, port, lambda array: np.take(array, entries, axis=layout.axis))
    node = graph.nodes[port.node]
    is_filter = node.op_type == "Conv" and port.slot.number == 1
    group = graph.attribute(port.node, "group", 1)
    if is_filter and group > 1 and layout.axis == 0:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = len(entries)


def _cut_shape(
    graph: PruningGraph, node: int, layout: UnitLayout, kept_units: Array
) -> Node | None:
    """Correct the axis length in a Reshape's shape, if it is constant.

    Returns:
        A node to insert before it if another node, which others may read, computes its shape.
    """
    old, new = layout.extent, len(layout.entries(kept_units))
    name = graph.nodes[node].input[1]
    if name in graph.constants:
        port = NodePort(node=node, slot=Slot(out=False, number=1))
        change_constant(graph, port, lambda shape: _corrected(shape, layout.axis, old, new))
        return None
    maker = graph.nodes[graph.makers[name]]
    if maker.op_type != "Concat":
        return None
    begin = 0
    for i, part in enumerate(maker.input):
        array = graph.constants.get(part)
        length = 1 if array is None else len(array)
        index = layout.axis - begin
        if array is not None and 0 <= index < length and array[index] == old:
            own = onnx.NodeProto()
            own.CopyFrom(maker)
            own.name = own.output[0] = graph.nodes[node].input[1] = graph.fresh(name)
            graph.makers[own.name] = node
            own.input[i] = graph.fresh(part)
            graph.constants[own.input[i]] = _corrected(array, index, old, new)
            return own
        begin += length
    return None


def _corrected(shape: Array, axis: int, old: int, new: int) -> Array:
    is_it = (np.arange(len(shape)) == axis) & (shape == old)
    return np.where(is_it, new, shape).astype(shape.dtype)


def bias_place(graph: PruningGraph, consumer: int) -> NodePort | None:
    """Return the port of a weight's bias; None without one."""
    node = graph.nodes[consumer]
    (output,) = node.output
    reader, slot = consumer, 2
    if node.op_type == "MatMul":
        readers = graph.readers.get(output, [])
        if len(readers) != 1 or output in graph.outputs or output in graph.shown_inside:
            return None
        reader, slot = readers[0][0], 1 - readers[0][1]
        if graph.nodes[reader].op_type != "Add":
            return None
    inputs = graph.nodes[reader].input
    array = graph.constants.get(inputs[slot] if slot < len(inputs) else "")
    if array is None or array.ndim != 1 or array.size == 1:
        return None
    return NodePort(node=reader, slot=Slot(out=False, number=slot))
