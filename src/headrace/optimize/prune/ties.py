"""Rules that couple tensor axes holding the same units, by operator.

A rule takes a node, a slot and its layout, and returns the slots that must be cut with it. A
missing rule prevents a cut; it never causes a wrong one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from headrace.core import Array
from headrace.optimize.prune.graph import PruningGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLayout:
    """Layout of units on an axis: entry `(o * units + unit) * inner + i` belongs to `unit`.

    A hidden unit is one entry (`outer` and `inner` are 1); a head is `inner` entries in a row, and
    is repeated three times if query, key and value come from one matrix (`outer` 3).
    """

    axis: int
    units: int
    outer: int = 1
    inner: int = 1

    @property
    def extent(self) -> int:
        """Size of the axis."""
        return self.outer * self.units * self.inner

    def entries(self, units: Array) -> Array:
        """Return the axis indices of `units`, ascending."""
        inner = np.arange(self.inner)
        outer = np.arange(self.outer)[:, None, None] * self.units
        indices: Array = ((outer + units[None, :, None]) * self.inner + inner).reshape(-1)
        return indices

    def on_axis(self, axis: int) -> "UnitLayout":
        """Return the layout on another axis."""
        return replace(self, axis=axis)


def through_reshape(
    layout: UnitLayout, before: Sequence[int], after: Sequence[int]
) -> UnitLayout | None:
    """Return the layout after a reshape; None if it splits units."""
    outside = math.prod(before[: layout.axis]) * layout.outer
    within = math.prod(before[layout.axis + 1 :]) * layout.inner
    for axis, size in enumerate(after if 0 not in after else ()):
        outer, rest = divmod(outside, math.prod(after[:axis]))
        inner, more = divmod(within, math.prod(after[axis + 1 :]))
        if not rest and not more and outer * layout.units * inner == size:
            return UnitLayout(axis=axis, units=layout.units, outer=outer, inner=inner)
    return None


MATRIX: Final = 2


class Slot(NamedTuple):
    """Input or output slot of a node."""

    out: bool
    number: int


INPUT: Final = Slot(out=False, number=0)
OUTPUT: Final = Slot(out=True, number=0)


class NotCutError(Exception):
    """Units cannot be cut at a node; the message is the reason."""


Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Node of a graph with the actual shapes of its tensors."""

    graph: PruningGraph
    index: int
    shapes: dict[str, Shape]

    @property
    def kind(self) -> str:
        """Operator of the node."""
        return str(self.graph.nodes[self.index].op_type)

    @property
    def is_fed(self) -> tuple[int, ...]:
        """Indices of the present inputs."""
        node = self.graph.nodes[self.index]
        return tuple(i for i, name in enumerate(node.input) if name)

    def name(self, slot: Slot) -> str:
        """Return a slot's tensor name; empty for an omitted optional input."""
        node = self.graph.nodes[self.index]
        names = node.output if slot.out else node.input
        return names[slot.number] if slot.number < len(names) else ""

    def shape(self, slot: Slot) -> Shape:
        """Return a slot's actual shape."""
        name = self.name(slot)
        constant = self.graph.constants.get(name)
        if constant is not None:
            return tuple(constant.shape)
        if name not in self.shapes:
            raise NotCutError(f"the shape of '{name}' is not known")
        return self.shapes[name]

    def constant(self, index: int) -> Array | None:
        """Return a constant input's values; None if it is not constant."""
        return self.graph.constants.get(self.name(Slot(out=False, number=index)))

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # whatever it is
        """Return an attribute."""
        return self.graph.attribute(self.index, name, default)


def is_depthwise(site: Site) -> bool:
    """Return whether a convolution is depthwise."""
    weight, group = site.constant(1), site.attribute("group", 1)
    return weight is not None and group > 1 and tuple(weight.shape[:2]) == (group, 1)


def weight_axes(site: Site) -> tuple[int, int]:
    """Return the input axis and output axis of a weight (input 1)."""
    if site.kind == "Conv":
        return (1, 0)
    return (1, 0) if site.kind == "Gemm" and site.attribute("transB", 0) else (0, 1)


def is_weighing(site: Site) -> bool:
    """Return whether the node multiplies by a constant matrix or filters."""
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


_MICROSOFT: Final = "com.microsoft"
_LAST_AXIS_OPSET: Final = 13
"""Opset since which Softmax defaults to the last axis."""
Ties = dict[Slot, UnitLayout]
Rule = Callable[[Site, Slot, UnitLayout], Ties]


def ties(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Return the other slots of a node that must be cut, with their layouts.

    Raises:
        NotCutError: The operator mixes the units, or is unsupported.
    """
    node = site.graph.nodes[site.index]
    rules = _MICROSOFT_RULES if node.domain == _MICROSOFT else _RULES if not node.domain else {}
    rule = rules.get(site.kind)
    if rule is None:
        raise NotCutError(f"{site.kind} reads or makes them")
    return {
        tied_slot: tied_layout
        for tied_slot, tied_layout in rule(site, slot, layout).items()
        if tied_slot != slot
    }


def _weighing(site: Site, slot: Slot, layout: UnitLayout, *, axis: int) -> Ties:
    """Couple a product with a constant, where units are inputs or outputs, never both."""
    if not is_weighing(site):
        raise NotCutError(f"{site.kind} has no constant weight")
    if layout.axis != axis:
        raise NotCutError(f"{site.kind} does not have them on its axis of features")
    into, out_of = weight_axes(site)
    weight = Slot(out=False, number=1)
    if not slot.out:
        return {weight: layout.on_axis(into)}
    tied = {weight: layout.on_axis(out_of)}
    bias = Slot(out=False, number=2)
    if site.name(bias):
        if site.constant(2) is None:
            raise NotCutError("a bias is computed")
        shape = site.shape(bias)
        if shape and shape[-1] == layout.extent:
            tied[bias] = layout.on_axis(len(shape) - 1)
    return tied


def _matmul(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    left, right = INPUT, Slot(out=False, number=1)
    rank = len(site.shape(slot))
    if site.constant(1) is not None:
        if layout.axis == rank - 1:
            return _weighing(site, slot, layout, axis=rank - 1)
        return {INPUT: layout, OUTPUT: layout}
    if site.constant(0) is not None:
        raise NotCutError("a constant is multiplied from the left")
    if layout.axis < rank - MATRIX:
        return _broadcast(site, slot, layout, (left, right, OUTPUT))
    is_row = layout.axis == rank - MATRIX
    if is_row and slot != right:
        return {left: layout, OUTPUT: layout}
    if not is_row and slot != left:
        return {right: layout, OUTPUT: layout}
    raise NotCutError("MatMul sums over them")


def _gemm(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    return _weighing(site, slot, layout, axis=1)


def _conv(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    if not is_depthwise(site):
        return _weighing(site, slot, layout, axis=1)
    if layout.axis != 1:
        raise NotCutError("Conv does not have them on its axis of channels")
    tied = {INPUT: layout, OUTPUT: layout, Slot(out=False, number=1): layout.on_axis(0)}
    if site.name(Slot(out=False, number=2)):
        tied[Slot(out=False, number=2)] = layout.on_axis(0)
    return tied


def _broadcast(site: Site, slot: Slot, layout: UnitLayout, slots: Sequence[Slot]) -> Ties:
    """Couple tensors that share or broadcast this axis, counted from the last."""
    back = layout.axis - len(site.shape(slot))
    tied = {}
    for other in slots:
        shape = site.shape(other)
        if len(shape) >= -back and shape[back] != 1:
            if shape[back] != layout.extent:
                raise NotCutError(f"{site.kind} has an input of another size")
            tied[other] = layout.on_axis(len(shape) + back)
    return tied


def _elementwise(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    inputs = [Slot(out=False, number=i) for i in site.is_fed]
    return _broadcast(site, slot, layout, [*inputs, OUTPUT])


def _first_only(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple the first input and output; other inputs are settings."""
    del site
    if not slot.out and slot.number:
        raise NotCutError("they are a setting of a node")
    return {INPUT: layout, OUTPUT: layout}


def _per_channel(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple a normalization with vectors per channel."""
    if layout.axis != 1:
        raise NotCutError(f"{site.kind} does not have them on its axis of channels")
    vectors = {Slot(out=False, number=i): layout.on_axis(0) for i in site.is_fed[1:]}
    return _first_only(site, slot, layout) | vectors


def _within_channels(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple pooling, which keeps axes 0 and 1."""
    if layout.axis > 1:
        raise NotCutError(f"{site.kind} mixes them")
    return _first_only(site, slot, layout)


def _same_size(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple padding and slicing that keep the axis, checked by its size."""
    if site.shape(INPUT)[layout.axis] != site.shape(OUTPUT)[layout.axis]:
        raise NotCutError(f"{site.kind} changes their number")
    return _first_only(site, slot, layout)


def _over_later_axes(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple Softmax and LayerNormalization, which keep earlier axes separate."""
    rank = len(site.shape(slot))
    axis = site.attribute("axis", -1 if site.graph.opset >= _LAST_AXIS_OPSET else 1)
    if layout.axis >= (axis + rank if axis < 0 else axis):
        raise NotCutError(f"{site.kind} mixes them")
    return _first_only(site, slot, layout)


def _transpose(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    rank = len(site.shape(slot))
    order = list(site.attribute("perm", range(rank)[::-1]))
    if slot.out:
        return {INPUT: layout.on_axis(order[layout.axis])}
    return {OUTPUT: layout.on_axis(order.index(layout.axis))}


def _reshape(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    if not slot.out and slot.number:
        raise NotCutError("they are a shape")
    other = INPUT if slot.out else OUTPUT
    reshaped = through_reshape(layout, site.shape(slot), site.shape(other))
    if reshaped is None:
        raise NotCutError(f"{site.kind} splits them")
    return {other: reshaped}


def _reduce(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    before, after = site.shape(INPUT), site.shape(OUTPUT)
    if not site.attribute("keepdims", 1):
        rank = len(site.shape(INPUT))
        axes = site.constant(1) if len(site.is_fed) > 1 else site.attribute("axes")
        if axes is None:
            raise NotCutError(f"{site.kind} mixes them")
        removed = {int(axis) % rank for axis in axes}
        stay = [axis for axis in range(rank) if axis not in removed]
        if slot.out:
            return {INPUT: layout.on_axis(stay[layout.axis])}
        if layout.axis in removed:
            raise NotCutError(f"{site.kind} mixes them")
        return {OUTPUT: layout.on_axis(stay.index(layout.axis))}
    if before[layout.axis] != after[layout.axis]:
        raise NotCutError(f"{site.kind} mixes them")
    return _first_only(site, slot, layout)


def _split(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    outputs = [Slot(out=True, number=i) for i in range(len(site.graph.nodes[site.index].output))]
    axis = site.attribute("axis", 0) % len(site.shape(slot))
    if axis != layout.axis:
        return {INPUT: layout, **dict.fromkeys(outputs, layout)}
    sizes = {site.shape(output)[axis] for output in outputs}
    parts = len(outputs)
    outer = layout.outer * parts if slot.out else layout.outer
    sizes_given = site.attribute("split") or (len(site.is_fed) > 1 and site.constant(1) is None)
    if len(sizes) > 1 or outer % parts or sizes_given:
        raise NotCutError("Split splits them")
    whole = UnitLayout(axis=axis, units=layout.units, outer=outer, inner=layout.inner)
    part = UnitLayout(axis=axis, units=layout.units, outer=outer // parts, inner=layout.inner)
    return {INPUT: whole, **dict.fromkeys(outputs, part)}


def _gather(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple a Gather with constant indices on another axis."""
    indices = site.constant(1)
    if indices is None or (not slot.out and slot.number):
        raise NotCutError("Gather picks among what is computed")
    axis = site.attribute("axis", 0) % len(site.shape(INPUT))
    added = indices.ndim - 1
    if slot.out:
        inner = layout.axis if layout.axis < axis else layout.axis - added
        if layout.axis >= axis and inner <= axis:
            raise NotCutError("Gather picks among them")
        return {INPUT: layout.on_axis(inner)}
    if layout.axis == axis:
        raise NotCutError("Gather picks among them")
    return {OUTPUT: layout.on_axis(layout.axis if layout.axis < axis else layout.axis + added)}


def _concat(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    if site.attribute("axis") % len(site.shape(slot)) == layout.axis:
        raise NotCutError("Concat puts them among others")
    slots = [*(Slot(out=False, number=i) for i in site.is_fed), OUTPUT]
    return dict.fromkeys(slots, layout)


def _shape(site: Site, slot: Slot, layout: UnitLayout) -> Ties:
    """Couple nothing: shapes are verified by running the result."""
    del site, slot, layout
    return {}


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_ELEMENTWISE: Final = (
    "Abs Add And Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater HardSigmoid HardSwish"
    " Identity IsNaN LeakyRelu Less Log Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu"
    " Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where"
)
_RULES: Final[dict[str, Rule]] = {
    **_rules(_elementwise, _ELEMENTWISE),
    **_rules(_first_only, "Cast Dropout"),
    **_rules(_within_channels, "AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool"),
    **_rules(_per_channel, "BatchNormalization InstanceNormalization"),
    **_rules(_same_size, "Pad Slice Resize Upsample"),
    **_rules(_over_later_axes, "Softmax LogSoftmax LayerNormalization"),
    **_rules(_reshape, "Reshape Flatten Squeeze Unsqueeze"),
    **_rules(_reduce, "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2"),
    "Concat": _concat,
    "Conv": _conv,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Shape": _shape,
    "Split": _split,
    "Transpose": _transpose,
}
_MICROSOFT_RULES: Final[dict[str, Rule]] = _rules(_elementwise, "BiasGelu FastGelu Gelu QuickGelu")
