"""Choose units group by group, and let those that stay make up for those that go.

Groups are taken in the order in which they run. Each is fitted on what it reads after the earlier
ones were pruned, towards what it answered before any was, so that errors do not add up.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune import selection
from headrace.optimize.prune.course import Course
from headrace.optimize.prune.cut import Importance, Method
from headrace.optimize.prune.graph import Graph
from headrace.optimize.prune.groups import Group
from headrace.optimize.prune.moments import Moments, matrix, rows_layout, rows_read, set_matrix
from headrace.optimize.prune.selection import Reading
from headrace.optimize.prune.slicing import Cutting, bias_place, change_constant, with_units_ignored

MOST_INPUTS: Final = 8192
"""Of a weight whose second moments are kept: beyond, they would take half a gigabyte."""


def reconstruct(
    graph: Graph,
    groups: Sequence[Group],
    counts: Sequence[int],
    examples: Sequence[Tensors],
    *,
    method: Method,
    threads: int,
    scores: Mapping[int, Array] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Graph, list[Cutting]]:
    """The graph with its consumers fitted, as large as before, and what is to be cut from it.

    Args:
        groups: In the order in which they run.
        counts: How many units of each stay.
        scores: Of units, by the group's place, where something else has judged them.
    """
    working = graph
    before = Course(examples, threads=threads)
    now: Course | None = None
    cuttings: list[Cutting] = []
    for i, group in enumerate(groups):
        say(f"fitting {group.unit}, layer {i + 1} of {len(groups)}")
        wanted = {one.tensor for later in groups[i:] for one in later.consumers}
        upto = max(graph.makers[one.tensor] for one in group.consumers) + 1
        before.advance(graph, upto, wanted)
        if now is None:
            now = before.fork()
        now.advance(working, upto, wanted)
        moments = _moments(graph, group, now, before)
        readings = _readings(working, group, moments)
        kept = _kept(readings, counts[i], method, None if scores is None else scores.get(i))
        cutting = Cutting(group=group, kept=kept)
        cuttings.append(cutting)
        working = with_units_ignored(working, [cutting])
        if method.make_up:
            _make_up(working, group, readings, moments, kept)
    return working, cuttings


def _moments(graph: Graph, group: Group, now: Course, before: Course) -> list[Moments]:
    found = []
    for consumer in group.consumers:
        size = len(matrix(graph, consumer.node))
        if size > MOST_INPUTS:
            raise CannotBuildError(f"a weight of {size:,} inputs is too wide to be fitted")
        moments = Moments(size=size)
        for tensors, originals in zip(now.known, before.known, strict=True):
            new, old = tensors[consumer.tensor], originals[consumer.tensor]
            rows = rows_read(graph, consumer.node, new)
            moments.add(rows, rows if old is new else rows_read(graph, consumer.node, old))
        found.append(moments)
    return found


def _readings(graph: Graph, group: Group, moments: Sequence[Moments]) -> list[Reading]:
    found = []
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
        found.append(Reading(weight=weight, layout=layout, own=own, across=across))
    return found


def _kept(readings: Sequence[Reading], count: int, method: Method, scores: Array | None) -> Array:
    if scores is not None:
        return selection.largest(scores, count)
    assert method.importance is not Importance.TAYLOR, "scores are given"
    match method.importance:
        case Importance.RECONSTRUCTION:
            return selection.least_lossy(readings, count)
        case Importance.ACTIVATION:
            return selection.largest(selection.activation_losses(readings), count)
        case Importance.MAGNITUDE:
            return selection.largest(selection.weight_losses(readings), count)


def _make_up(
    graph: Graph,
    group: Group,
    readings: Sequence[Reading],
    moments: Sequence[Moments],
    kept: Array,
) -> None:
    """Write the fitted weights into a graph, and the means into its biases."""
    for consumer, reading, moment in zip(group.consumers, readings, moments, strict=True):
        fitted = selection.made_up(reading, kept)
        entries = reading.layout.entries(kept)
        weight = np.zeros(reading.weight.shape)
        weight[entries] = fitted
        set_matrix(graph, consumer.node, weight)
        place = bias_place(graph, consumer.node)
        if place is None:
            continue
        own, across = moment.mean()
        size = moment.size
        was = across[size, :size] @ reading.weight.astype(np.float64)
        shift = was - own[:size, size] @ weight
        change_constant(graph, place, partial(_shifted, shift=shift))


def _shifted(bias: Array, *, shift: Array) -> Array:
    return (bias + shift).astype(bias.dtype)
