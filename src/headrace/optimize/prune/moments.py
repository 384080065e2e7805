"""What a weight reads, summed up: the second moments of its inputs over examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.optimize.prune.graph import Graph
from headrace.optimize.prune.groups import Consumer, Place
from headrace.optimize.prune.layout import Layout
from headrace.optimize.prune.site import MATRIX, Site, Slot, weight_axes
from headrace.optimize.prune.slicing import change_constant

_MOST_PATCHES: Final = 256
"""Of one example: neighbours are nearly the same."""
_MOST_WAITING: Final = 1024


@dataclass(slots=True)
class Moments:
    """Sums over rows `x` that a weight multiplies, each with a 1 at its end for the bias.

    `own`: of `x x^T`, `[size + 1, size + 1]`. `across`: of `x y^T`, where `y` is what the
    corresponding row of the unpruned graph was.
    """

    size: int
    rows: int = 0
    own: Array = field(init=False)
    across: Array = field(init=False)
    _waiting: list[tuple[Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = np.zeros((self.size + 1, self.size + 1), np.float64)
        self.across = np.zeros_like(self.own)

    def add(self, rows: Array, originals: Array) -> None:
        """Take rows `[n, size]` in; the same array twice where nothing was pruned before."""
        self._waiting.append((rows, originals))
        self.rows += len(rows)
        if sum(len(rows) for rows, _ in self._waiting) >= _MOST_WAITING:
            self._sum_up()

    def mean(self) -> tuple[Array, Array]:
        """Both per row."""
        if self._waiting:
            self._sum_up()
        return self.own / max(self.rows, 1), self.across / max(self.rows, 1)

    def _sum_up(self) -> None:
        """Products of a thousand rows at a time, in FP32: twice as fast, and summed in FP64."""
        x = _with_one([rows for rows, _ in self._waiting])
        same = all(originals is rows for rows, originals in self._waiting)
        # What is not finite is told by whoever reads the means.
        with np.errstate(over="ignore", invalid="ignore"):
            own = x.T @ x
            self.own += own
            self.across += own if same else x.T @ _with_one([y for _, y in self._waiting])
        self._waiting.clear()


def rows_read(graph: Graph, node: int, tensor: Array) -> Array:
    """What a weight multiplies in one run, `[rows, inputs of a filter]`."""
    if graph.nodes[node].op_type != "Conv":
        return tensor.reshape(-1, tensor.shape[-1])
    return _patches(graph, node, tensor)


def matrix(graph: Graph, node: int) -> Array:
    """A weight as `[inputs, outputs]`, inputs as `rows_read` has them."""
    weight = graph.constants[graph.nodes[node].input[1]]
    if weight.ndim == MATRIX:
        return weight if _is_plain(graph, node) else weight.T
    return weight.reshape(len(weight), -1).T


def set_matrix(graph: Graph, node: int, values: Array) -> None:
    """The reverse of `matrix`."""
    old = graph.constants[graph.nodes[node].input[1]]
    made = values if old.ndim == MATRIX and _is_plain(graph, node) else values.T
    place = Place(node=node, slot=Slot(out=False, at=1))
    change_constant(graph, place, lambda array: made.reshape(array.shape).astype(array.dtype))


def rows_layout(graph: Graph, consumer: Consumer) -> Layout:
    """Where units lie in the rows of `matrix`."""
    filters = graph.constants[graph.nodes[consumer.node].input[1]].shape[MATRIX:]
    layout = consumer.layout
    inner = layout.inner * math.prod(filters)
    return Layout(axis=0, units=layout.units, outer=layout.outer, inner=inner)


def _is_plain(graph: Graph, node: int) -> bool:
    return weight_axes(Site(graph=graph, index=node, shapes={})) == (0, 1)


def _with_one(parts: Sequence[Array]) -> Array:
    rows = np.concatenate(parts)
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1, dtype=np.float32)


def _patches(graph: Graph, node: int, tensor: Array) -> Array:
    """What each position of a convolution's filters covers, some of them if they are many."""
    filters = graph.constants[graph.nodes[node].input[1]].shape[MATRIX:]
    rank = len(filters)
    strides = graph.attribute(node, "strides") or [1] * rank
    dilations = graph.attribute(node, "dilations") or [1] * rank
    windows = [(k - 1) * d + 1 for k, d in zip(filters, dilations, strict=True)]
    pads = _pads(graph, node, tensor.shape[MATRIX:], windows, strides)
    padded = np.pad(tensor, [(0, 0), (0, 0), *pads])
    axes = tuple(range(MATRIX, MATRIX + rank))
    view = np.lib.stride_tricks.sliding_window_view(padded, windows, axes)
    steps = tuple(slice(None, None, step) for step in strides)
    inner = tuple(slice(None, None, step) for step in dilations)
    found = np.moveaxis(view[(slice(None), slice(None), *steps, *inner)], 1, 1 + rank)
    count = math.prod(found.shape[: 1 + rank])
    picked = np.linspace(0, count - 1, min(count, _MOST_PATCHES)).astype(np.int64)
    places = np.unravel_index(picked, found.shape[: 1 + rank])
    return found[places].reshape(len(picked), -1)


def _pads(
    graph: Graph, node: int, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    rank = len(sizes)
    how = graph.attribute(node, "auto_pad", b"NOTSET").decode()
    if not how.startswith("SAME"):
        told = graph.attribute(node, "pads") or [0] * 2 * rank
        return list(zip(told[:rank], told[rank:], strict=True))
    pads = []
    for size, window, step in zip(sizes, windows, strides, strict=True):
        total = max((-(-size // step) - 1) * step + window - size, 0)
        less = total // 2
        pads.append((less, total - less) if how == "SAME_UPPER" else (total - less, less))
    return pads
