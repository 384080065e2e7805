"""Cut units out of a graph: smaller constants, and shapes that say how many are left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from headrace.core import Array
from headrace.optimize.prune.graph import Graph, Node, users
from headrace.optimize.prune.groups import Group, Place
from headrace.optimize.prune.layout import Layout
from headrace.optimize.prune.site import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """Units of a group that stay, ascending."""

    group: Group
    kept: Array


def without_units(graph: Graph, cuttings: Sequence[Cutting]) -> Graph:
    """A smaller graph, which answers as `with_units_ignored` does.

    A shape that is computed is trusted to follow, which running what was made shows.
    """
    made = graph.copy()
    added: dict[int, Node] = {}
    for cutting in cuttings:
        for place, layout in cutting.group.cuts.items():
            _cut_constant(made, place, layout, cutting.kept)
        for node, layout in cutting.group.reshapes.items():
            concat = _cut_shape(made, node, layout, cutting.kept)
            if concat is not None:
                added[node] = concat
    before = enumerate(made.nodes)
    made.nodes = [one for i, node in before for one in ([added[i]] if i in added else []) + [node]]
    made.index()
    return made


def with_units_ignored(graph: Graph, cuttings: Sequence[Cutting]) -> Graph:
    """A graph as large as before, in which nothing reads the units that do not stay."""
    made = graph.copy()
    for cutting in cuttings:
        for consumer in cutting.group.consumers:
            place = Place(node=consumer.node, slot=Slot(out=False, at=1))
            layout = cutting.group.cuts[place]

            def without(array: Array, layout: Layout = layout, kept: Array = cutting.kept) -> Array:
                at = np.moveaxis(np.zeros_like(array), layout.axis, 0)
                entries = layout.entries(kept)
                at[entries] = np.moveaxis(array, layout.axis, 0)[entries]
                return np.moveaxis(at, 0, layout.axis)

            change_constant(made, place, without)
    return made


def parameters_without(graph: Graph, cuttings: Sequence[Cutting]) -> int:
    """How many parameters a graph will have, told without cutting anything.

    Where a constant is read in several places, as many copies of it are needed as are cut.
    """
    axes: dict[Place, dict[int, int]] = {}
    for cutting in cuttings:
        for place, layout in cutting.group.cuts.items():
            axes.setdefault(place, {})[layout.axis] = len(layout.entries(cutting.kept))
    counts = users(graph)
    cut: dict[str, list[int]] = {}
    for place, sizes in axes.items():
        name = graph.nodes[place.node].input[place.slot.at]
        array = graph.constants[name]
        if array.dtype.kind == "f":
            shape = [sizes.get(axis, size) for axis, size in enumerate(array.shape)]
            cut.setdefault(name, []).append(int(np.prod(shape)))
    gone = sum(
        graph.constants[name].size for name, all_cut in cut.items() if len(all_cut) == counts[name]
    )
    return graph.parameters - gone + sum(map(sum, cut.values()))


def change_constant(graph: Graph, place: Place, change: Callable[[Array], Array]) -> None:
    """Replace a constant where one node reads it, and only there."""
    node = graph.nodes[place.node]
    name = node.input[place.slot.at]
    array = np.asarray(change(graph.constants[name]), order="C")
    counts = users(graph)
    if counts[name] > 1:
        readers = graph.readers[name]
        readers.remove((place.node, place.slot.at))
        name = graph.fresh(name)
        node.input[place.slot.at] = name
        graph.readers[name] = [(place.node, place.slot.at)]
    graph.constants[name] = array


def _cut_constant(graph: Graph, place: Place, layout: Layout, kept: Array) -> None:
    entries = layout.entries(kept)
    change_constant(graph, place, lambda array: np.take(array, entries, axis=layout.axis))
    node = graph.nodes[place.node]
    is_filter = node.op_type == "Conv" and place.slot.at == 1
    group = graph.attribute(place.node, "group", 1)
    if is_filter and group > 1 and layout.axis == 0:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = len(entries)


def _cut_shape(graph: Graph, node: int, layout: Layout, kept: Array) -> Node | None:
    """Correct the entry of a Reshape's shape that says how long the axis is, if one does.

    Returns:
        A node to put before it where its shape is put together by one, which others may read.
    """
    old, new = layout.extent, len(layout.entries(kept))
    name = graph.nodes[node].input[1]
    if name in graph.constants:
        place = Place(node=node, slot=Slot(out=False, at=1))
        change_constant(graph, place, lambda shape: _corrected(shape, layout.axis, old, new))
        return None
    maker = graph.nodes[graph.makers[name]]
    if maker.op_type != "Concat":
        return None
    begin = 0
    for i, part in enumerate(maker.input):
        array = graph.constants.get(part)
        length = 1 if array is None else len(array)
        at = layout.axis - begin
        if array is not None and 0 <= at < length and array[at] == old:
            own = onnx.NodeProto()
            own.CopyFrom(maker)
            own.name = own.output[0] = graph.nodes[node].input[1] = graph.fresh(name)
            graph.makers[own.name] = node
            own.input[i] = graph.fresh(part)
            graph.constants[own.input[i]] = _corrected(array, at, old, new)
            return own
        begin += length
    return None


def _corrected(shape: Array, axis: int, old: int, new: int) -> Array:
    is_it = (np.arange(len(shape)) == axis) & (shape == old)
    return np.where(is_it, new, shape).astype(shape.dtype)


def bias_place(graph: Graph, consumer: int) -> Place | None:
    """Where a constant is added to each output of a weight; None if there is no such place."""
    node = graph.nodes[consumer]
    (made,) = node.output
    reader, slot = consumer, 2
    if node.op_type == "MatMul":
        readers = graph.readers.get(made, [])
        if len(readers) != 1 or made in graph.outputs or made in graph.shown_inside:
            return None
        reader, slot = readers[0][0], 1 - readers[0][1]
        if graph.nodes[reader].op_type != "Add":
            return None
    inputs = graph.nodes[reader].input
    array = graph.constants.get(inputs[slot] if slot < len(inputs) else "")
    if array is None or array.ndim != 1 or array.size == 1:
        return None
    return Place(node=reader, slot=Slot(out=False, at=slot))
