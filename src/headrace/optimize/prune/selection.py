"""Selection of the least important units, and the fit of the remaining weights.

Groups are processed in the order in which they run. Each is fitted on its inputs after the earlier
groups were pruned, towards its outputs before any was pruned, so that errors do not add up.

Selection and fit minimize the change of one layer's output `x W` of a weight `W`. With second
moments `H = E[x x^T]` of its inputs, the best weight on the remaining units is a ridge regression,
and the loss of a unit for which the others compensate is `W_u^T (H^-1_uu)^-1 W_u`: the optimal
brain surgeon (Hassibi and Stork, 1993) for structures, as in ZipLM (Kurtic et al., NeurIPS 2023)
and SlimGPT (Ling et al., NeurIPS 2024). ThiNet (Luo et al., ICCV 2017) does it for channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import ActivationCache, PruningGraph
from headrace.optimize.prune.groups import (
    Consumer,
    Cutting,
    NodePort,
    UnitGroup,
    bias_place,
    change_constant,
    with_units_ignored,
)
from headrace.optimize.prune.ties import MATRIX, Site, Slot, UnitLayout, weight_axes

_RIDGE_RATIO: Final = 1e-3
"""Ridge over the mean second moment, which limits overfitting to few examples."""
_STEPS: Final = 64
"""Removal steps; losses are recomputed after each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderWeight:
    """Statistics of a weight that reads the units."""

    weight: Array
    """Weight matrix `[inputs, outputs]`."""
    layout: UnitLayout
    """Layout of the units along its inputs."""
    own: Array
    """Second moments `E[x x^T]`, centred if the weight has a bias."""
    across: Array
    """Moments `E[x y^T]` with the unpruned inputs `y`, centred likewise."""


def least_lossy(readings: Sequence[ReaderWeight], count: int) -> Array:
    """Return the `count` units to keep, ascending, by stepwise removal."""
    units = readings[0].layout.units
    alive = np.ones(units, bool)
    surgeons = [_Surgeon(reading) for reading in readings]
    while (left := int(alive.sum())) > count:
        losses = sum((surgeon.losses(alive) for surgeon in surgeons), np.zeros(units))
        step = min(left - count, max(1, units // _STEPS))
        removed = np.flatnonzero(alive)[np.argsort(losses[alive], kind="stable")[:step]]
        alive[removed] = False
        for surgeon in surgeons:
            surgeon.remove(removed)
    return np.flatnonzero(alive)


def fitted_weight(reading: ReaderWeight, kept_units: Array) -> Array:
    """Return the least-squares weight on `kept_units`, `[kept inputs, outputs]`.

    Raises:
        numpy.linalg.LinAlgError: Activations are not finite.
    """
    entries = reading.layout.entries(kept_units)
    weight = reading.weight.astype(np.float64)
    ridge = _ridge(reading.own)
    left = reading.own[np.ix_(entries, entries)] + ridge * np.eye(len(entries))
    right = reading.across[entries] @ weight + ridge * weight[entries]
    solution: Array = np.linalg.solve(left, right)
    return solution


class _Surgeon:
    """Weight under stepwise removal of units, with compensation by the others."""

    def __init__(self, reading: ReaderWeight) -> None:
        self._layout = reading.layout
        self._weight = reading.weight.astype(np.float64)
        self._inverse = np.linalg.inv(reading.own + _ridge(reading.own) * np.eye(len(reading.own)))
        self._blocks = np.stack(_blocks(reading.layout))

    def losses(self, alive: Array) -> Array:
        """Return each unit's loss; infinite for removed units."""
        losses = np.full(len(alive), np.inf)
        blocks = self._blocks[alive]
        inner = self._inverse[blocks[:, :, None], blocks[:, None, :]]
        weight = self._weight[blocks]
        losses[alive] = np.sum(weight * np.linalg.solve(inner, weight), axis=(1, 2))
        return losses

    def remove(self, units: Array) -> None:
        rows = self._blocks[units].reshape(-1)
        columns = self._inverse[:, rows]
        gain = np.linalg.solve(columns[rows], columns.T).T
        self._weight -= gain @ self._weight[rows]
        self._inverse -= gain @ columns.T
        # Removed units must not return through rounding; the diagonal keeps the system solvable.
        self._inverse[rows] = self._inverse[:, rows] = 0.0
        self._inverse[rows, rows] = 1.0
        self._weight[rows] = 0.0


def _blocks(layout: UnitLayout) -> list[Array]:
    """Return each unit's entries."""
    return [layout.entries(np.array([unit])) for unit in range(layout.units)]


def _ridge(own: Array) -> float:
    return _RIDGE_RATIO * float(np.trace(own)) / len(own) + np.finfo(np.float64).tiny


_MAX_PATCHES: Final = 256
"""Most patches of one example, as neighbours are nearly equal."""
_MAX_WAITING: Final = 1024


@dataclass(slots=True)
class Moments:
    """Moment sums over a weight's input rows `x`, each extended by 1 for the bias."""

    size: int
    rows: int = 0
    own: Array = field(init=False)
    """Sum of `x x^T`, `[size + 1, size + 1]`."""
    across: Array = field(init=False)
    """Sum of `x y^T` with the unpruned graph's rows `y`."""
    _waiting: list[tuple[Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = np.zeros((self.size + 1, self.size + 1), np.float64)
        self.across = np.zeros_like(self.own)

    def add(self, rows: Array, originals: Array) -> None:
        """Add rows `[n, size]`; pass the same array twice if nothing was pruned before."""
        self._waiting.append((rows, originals))
        self.rows += len(rows)
        if sum(len(rows) for rows, _ in self._waiting) >= _MAX_WAITING:
            self._sum_up()

    def mean(self) -> tuple[Array, Array]:
        """Return both sums per row."""
        if self._waiting:
            self._sum_up()
        return self.own / max(self.rows, 1), self.across / max(self.rows, 1)

    def _sum_up(self) -> None:
        """Add products of a thousand rows, computed in FP32 for speed and summed in FP64."""
        x = _with_unit([rows for rows, _ in self._waiting])
        same = all(originals is rows for rows, originals in self._waiting)
        # Readers of the means report non-finite values.
        with np.errstate(over="ignore", invalid="ignore"):
            own = x.T @ x
            self.own += own
            self.across += own if same else x.T @ _with_unit([y for _, y in self._waiting])
        self._waiting.clear()


def rows_read(graph: PruningGraph, node: int, tensor: Array) -> Array:
    """Return a weight's input rows in one run, `[rows, inputs of a filter]`."""
    if graph.nodes[node].op_type != "Conv":
        return tensor.reshape(-1, tensor.shape[-1])
    return _patches(graph, node, tensor)


def matrix(graph: PruningGraph, node: int) -> Array:
    """Return a weight as `[inputs, outputs]`, inputs in the order of `rows_read`."""
    weight = graph.constants[graph.nodes[node].input[1]]
    if weight.ndim == MATRIX:
        return weight if _is_plain(graph, node) else weight.T
    return weight.reshape(len(weight), -1).T


def set_matrix(graph: PruningGraph, node: int, values: Array) -> None:
    """Set a weight from a matrix; the inverse of `matrix`."""
    old = graph.constants[graph.nodes[node].input[1]]
    stored = values if old.ndim == MATRIX and _is_plain(graph, node) else values.T
    port = NodePort(node=node, slot=Slot(out=False, number=1))
    change_constant(graph, port, lambda array: stored.reshape(array.shape).astype(array.dtype))


def rows_layout(graph: PruningGraph, consumer: Consumer) -> UnitLayout:
    """Return the layout of units in the rows of `matrix`."""
    filters = graph.constants[graph.nodes[consumer.node].input[1]].shape[MATRIX:]
    layout = consumer.layout
    inner = layout.inner * math.prod(filters)
    return UnitLayout(axis=0, units=layout.units, outer=layout.outer, inner=inner)


def _is_plain(graph: PruningGraph, node: int) -> bool:
    return weight_axes(Site(graph=graph, index=node, shapes={})) == (0, 1)


def _with_unit(parts: Sequence[Array]) -> Array:
    rows = np.concatenate(parts)
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1, dtype=np.float32)


def _patches(graph: PruningGraph, node: int, tensor: Array) -> Array:
    """Return (a sample of) the patches that a convolution's filters cover."""
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
    patches = np.moveaxis(view[(slice(None), slice(None), *steps, *inner)], 1, 1 + rank)
    count = math.prod(patches.shape[: 1 + rank])
    picked = np.linspace(0, count - 1, min(count, _MAX_PATCHES)).astype(np.int64)
    positions = np.unravel_index(picked, patches.shape[: 1 + rank])
    return patches[positions].reshape(len(picked), -1)


def _pads(
    graph: PruningGraph,
    node: int,
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
    """Return the padding before and after each axis."""
    rank = len(sizes)
    how = graph.attribute(node, "auto_pad", b"NOTSET").decode()
    if not how.startswith("SAME"):
        padding = graph.attribute(node, "pads") or [0] * 2 * rank
        return list(zip(padding[:rank], padding[rank:], strict=True))
    pads = []
    for size, window, step in zip(sizes, windows, strides, strict=True):
        total = max((-(-size // step) - 1) * step + window - size, 0)
        less = total // 2
        pads.append((less, total - less) if how == "SAME_UPPER" else (total - less, less))
    return pads


MAX_INPUTS: Final = 8192
"""Most inputs of a fitted weight; the moments of more would take half a gigabyte."""


def reconstruct(
    graph: PruningGraph,
    groups: Sequence[UnitGroup],
    counts: Sequence[int],
    examples: Sequence[Tensors],
    *,
    threads: int,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[PruningGraph, list[Cutting]]:
    """Fit the groups' consumers; return the graph of the same size, and the cuts.

    Args:
        groups: In the order in which they run.
        counts: Number of remaining units of each.
    """
    working = graph
    before = ActivationCache(examples, threads=threads)
    now: ActivationCache | None = None
    cuts: list[Cutting] = []
    for i, group in enumerate(groups):
        on_progress(f"fitting {group.unit}, layer {i + 1} of {len(groups)}")
        needed = {consumer.tensor for later in groups[i:] for consumer in later.consumers}
        upper = max(graph.makers[consumer.tensor] for consumer in group.consumers) + 1
        before.advance(graph, upper, needed)
        if now is None:
            now = before.fork()
        now.advance(working, upper, needed)
        moments = _moments(graph, group, now, before)
        readings = _readings(working, group, moments)
        cutting = Cutting(group=group, kept_units=least_lossy(readings, counts[i]))
        cuts.append(cutting)
        working = with_units_ignored(working, [cutting])
        _write_fitted(working, group, readings, moments, cutting.kept_units)
    return working, cuts


def _moments(
    graph: PruningGraph, group: UnitGroup, now: ActivationCache, before: ActivationCache
) -> list[Moments]:
    sums = []
    for consumer in group.consumers:
        size = len(matrix(graph, consumer.node))
        if size > MAX_INPUTS:
            raise CannotBuildError(f"a weight of {size:,} inputs is too wide to be fitted")
        moments = Moments(size=size)
        for tensors, originals in zip(now.tensors, before.tensors, strict=True):
            new, old = tensors[consumer.tensor], originals[consumer.tensor]
            rows = rows_read(graph, consumer.node, new)
            moments.add(rows, rows if old is new else rows_read(graph, consumer.node, old))
        sums.append(moments)
    return sums


def _readings(
    graph: PruningGraph, group: UnitGroup, moments: Sequence[Moments]
) -> list[ReaderWeight]:
    readings = []
    for consumer, moment in zip(group.consumers, moments, strict=True):
        own, across = moment.mean()
        if not (np.isfinite(own).all() and np.isfinite(across).all()):
            raise CannotBuildError("its activations are not finite numbers on these examples")
        size = moment.size
        if bias_place(graph, consumer.node) is not None:
            mean, before = own[:size, size], across[size, :size]
            own = own[:size, :size] - np.outer(mean, mean)
            across = across[:size, :size] - np.outer(mean, before)
        else:
            own, across = own[:size, :size], across[:size, :size]
        weight = matrix(graph, consumer.node)
        layout = rows_layout(graph, consumer)
        readings.append(ReaderWeight(weight=weight, layout=layout, own=own, across=across))
    return readings


def _write_fitted(
    graph: PruningGraph,
    group: UnitGroup,
    readings: Sequence[ReaderWeight],
    moments: Sequence[Moments],
    kept_units: Array,
) -> None:
    """Write fitted weights and bias corrections into a graph."""
    for consumer, reading, moment in zip(group.consumers, readings, moments, strict=True):
        fitted = fitted_weight(reading, kept_units)
        entries = reading.layout.entries(kept_units)
        weight = np.zeros(reading.weight.shape)
        weight[entries] = fitted
        set_matrix(graph, consumer.node, weight)
        port = bias_place(graph, consumer.node)
        if port is None:
            continue
        own, across = moment.mean()
        size = moment.size
        target = across[size, :size] @ reading.weight.astype(np.float64)
        shift = target - own[:size, size] @ weight

        def shifted(bias: Array, shift: Array = shift) -> Array:
            return (bias + shift).astype(bias.dtype)

        change_constant(graph, port, shifted)
