"""Pruning of ONNX networks: whole units, or single weights.

Dense kernels multiply zeros like other numbers: no maintained CPU engine gains time by it.
Weights are scored by their size times the root mean square of what they multiply, compared among
those of one output (Wanda, Sun et al., ICLR 2024).
"""

import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError, TrainingExamples
from headrace.optimize.prune.graph import (
    PruningGraph,
    is_compatible,
    load_graph,
    open_session,
    run,
    shown,
    traced_shapes,
)
from headrace.optimize.prune.groups import (
    FEWEST_EXAMPLES,
    MAX_EXAMPLES,
    PruneCut,
    Pruned,
    UnitGroup,
    find_groups,
    kept_count,
    without_units,
)
from headrace.optimize.prune.selection import matrix, reconstruct, rows_read, set_matrix
from headrace.optimize.prune.ties import Shape, Site, is_weighing

_ROWS_FOR_INPUT: Final = 3
"""Recommended rows per input of a weight; the ridge compensates for fewer."""
_ENOUGH_EXAMPLES: Final = 64
"""Least examples to use if available, as rows of one example are correlated."""
_DISTIL_S: Final = 40.0
"""Duration of the distillation, if PyTorch is installed."""


def prune(
    source: Path,
    target: Path,
    *,
    cut: PruneCut,
    calibration: Sequence[Tensors],
    training: TrainingExamples | None = None,
    threads: int = 1,
    seed: int = 0,
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Pruned:
    """Prune a network and write it to `target`.

    Args:
        calibration: Requests of one row; replaced by the training examples if given. Neither may
            be evaluation examples.
        deadline: Time of `clock` by which distillation ends; unfinished pruning is given up.

    Raises:
        CannotBuildError: There are no prunable units, too few examples, or too little time.
    """
    started = clock()

    def report(words: str) -> None:
        if clock() >= deadline:
            raise CannotBuildError(f"not enough time: the deadline passed while {words}")
        on_progress(words)

    samples = training.examples if training is not None and training.examples else calibration
    if len(samples) < FEWEST_EXAMPLES:
        msg = f"it needs {FEWEST_EXAMPLES} examples to rank its units, and has {len(samples)}"
        raise CannotBuildError(msg)
    samples = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    graph = load_graph(source)
    report("searching for prunable units")
    shapes = traced_shapes(graph, samples[0], threads=threads)
    groups = _groups(graph, cut, shapes)
    examples = samples[: _enough(graph, groups, shapes)]
    counts = [kept_count(group.units, cut.ratio(group.unit)) for group in groups]
    fitted, cuts = reconstruct(graph, groups, counts, examples, threads=threads, on_progress=report)
    smaller = without_units(fitted, cuts)
    report("checking the cut")
    check_same_answers(fitted, smaller, examples[:2], threads=threads)
    before, after = graph.parameters, smaller.parameters
    distillation = "no: there are no training examples (--teach)"
    if training is not None and find_spec("torch") is None:
        distillation = "no: PyTorch is not installed (pip install 'headrace[torch]')"
    elif training is not None:
        from headrace.optimize.prune.torch_distil import distil  # noqa: PLC0415  # an extra

        try:
            distillation = distil(
                graph,
                smaller,
                training,
                deadline=min(deadline, clock() + _DISTIL_S),
                threads=threads,
                seed=seed,
                clock=clock,
                on_progress=on_progress,
            )
        except CannotBuildError as error:
            distillation = f"no: {error}"
    message = smaller.proto()
    onnx.checker.check_model(message)
    onnx.save(message, str(target))
    return Pruned(
        path=target,
        cut=cut,
        parameters_before=before,
        parameters_after=after,
        layers=Counter(group.unit for group in groups),
        examples=len(examples),
        distillation=distillation,
        build_s=clock() - started,
    )


def check_same_answers(
    fitted: PruningGraph, smaller: PruningGraph, examples: Sequence[Tensors], *, threads: int
) -> None:
    """Verify a cut: the smaller graph must be equivalent to the one that ignores the units.

    Raises:
        CannotBuildError: It is not, or it does not run.
    """
    old = open_session(fitted.proto(), threads)
    new: list[list[Array]] = []
    inputs, expected = [], []
    # Two equal rows: a shape with a fixed batch fails here.
    doubled = [
        {name: np.concatenate([array, array]) for name, array in example.items()}
        for example in examples[:1]
        if all(array.ndim and len(array) == 1 for array in example.values())
    ]
    for example in [*examples, *doubled]:
        try:
            expected.append(run(old, example))
        except CannotBuildError:
            continue  # a model that only takes one row; each single example ran before
        inputs.append(example)
    try:
        session = open_session(smaller.proto(), threads)
        new = [run(session, example) for example in inputs]
    except CannotBuildError as error:
        raise CannotBuildError(f"a size in it does not follow the cut: {error}") from error
    if not all(
        is_compatible(actual, reference) for actual, reference in zip(new, expected, strict=True)
    ):
        msg = "removing the units changes other answers, so that the model stays unpruned"
        raise CannotBuildError(msg)


def _enough(graph: PruningGraph, groups: Sequence[UnitGroup], shapes: dict[str, Shape]) -> int:
    """Return how many examples the widest weight needs; long texts give many rows each."""
    needed = 0
    for consumer in (reader for group in groups for reader in group.consumers):
        shape = list(shapes[consumer.tensor])
        features = 1 if graph.nodes[consumer.node].op_type == "Conv" else -1
        del shape[features]
        inputs = len(matrix(graph, consumer.node))
        needed = max(needed, _ROWS_FOR_INPUT * inputs // max(1, math.prod(shape)))
    return min(MAX_EXAMPLES, max(_ENOUGH_EXAMPLES, needed))


def _groups(graph: PruningGraph, cut: PruneCut, shapes: dict[str, Shape]) -> list[UnitGroup]:
    prunable = find_groups(graph, shapes)
    for unit in cut.units:
        if not any(group.unit is unit for group in prunable.groups):
            raise CannotBuildError(prunable.refusal_summary(unit))
    groups = [
        group
        for group in prunable.groups
        if kept_count(group.units, cut.ratio(group.unit)) < group.units
    ]
    if not groups:
        raise CannotBuildError(f"its layers are too narrow for {cut}")
    return groups


_FEWEST_WEIGHTS: Final = 1024
"""Least weights of a matrix worth sparsifying."""
_CHUNK_BYTES: Final = 1 << 20
_LEVEL: Final = 6
"""Default compression level of gzip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Result of unstructured pruning."""

    path: Path
    zeros_ratio: float
    matrices: int
    examples: int
    gzip_bytes_before: int
    """File size after gzip."""
    gzip_bytes_after: int
    """File size after pruning and gzip."""

    def facts(self) -> dict[str, str]:
        """Return entries for the candidate's recipe."""
        before, after = self.gzip_bytes_before / 1e6, self.gzip_bytes_after / 1e6
        return {
            "zeros": f"{self.zeros_ratio:.0%} of the weights of {self.matrices} matrices",
            "importance": f"size times activation, over {self.examples} examples",
            "gzip": f"{before:.1f} MB to {after:.1f} MB",
            "speed": "none gained: kernels on a CPU multiply zeros like other numbers",
        }


def sparsify(
    source: Path,
    target: Path,
    *,
    zeros_ratio: float,
    examples: Sequence[Tensors],
    threads: int = 1,
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Sparse:
    """Write a network with many zero weights to `target`.

    Raises:
        CannotBuildError: It has no large matrices, or the time is over.
    """
    graph = load_graph(source).copy()
    nodes = [
        i
        for i, node in enumerate(graph.nodes)
        if is_weighing(Site(graph=graph, index=i, shapes={}))
        and graph.constants[node.input[1]].size >= _FEWEST_WEIGHTS
    ]
    if not nodes:
        raise CannotBuildError(f"it has no matrix of {_FEWEST_WEIGHTS:,} weights or more")
    squares = [np.zeros(len(matrix(graph, node))) for node in nodes]
    names = [str(graph.nodes[node].input[0]) for node in nodes]
    for tensors in shown(graph, list(dict.fromkeys(names)), examples, threads=threads):
        if clock() >= deadline:
            raise CannotBuildError("not enough time to measure the inputs of its weights")
        by_name = dict(zip(dict.fromkeys(names), tensors, strict=True))
        for i, (node, name) in enumerate(zip(nodes, names, strict=True)):
            rows = rows_read(graph, node, by_name[name])
            squares[i] += np.square(rows, dtype=np.float64).sum(axis=0)
    for node, sums in zip(nodes, squares, strict=True):
        set_matrix(graph, node, with_zeros(matrix(graph, node), np.sqrt(sums), zeros_ratio))
    onnx.save(graph.proto(), str(target))
    return Sparse(
        path=target,
        zeros_ratio=zeros_ratio,
        matrices=len(nodes),
        examples=len(examples),
        gzip_bytes_before=gzip_bytes(source),
        gzip_bytes_after=gzip_bytes(target),
    )


def with_zeros(weight: Array, scales: Array, zeros_ratio: float) -> Array:
    """Return `weight` `[inputs, outputs]` with this share of each output's least weights zeroed.

    Args:
        scales: Size of each input, `[inputs]`.
    """
    count = round(len(weight) * zeros_ratio)
    scores = np.abs(weight) * scales[:, None]
    order = np.argsort(scores, axis=0, kind="stable")
    sparse = weight.copy()
    np.put_along_axis(sparse, order[:count], 0, axis=0)
    return sparse


def gzip_bytes(path: Path) -> int:
    """Return a file's size after gzip."""
    packer = zlib.compressobj(_LEVEL, wbits=31)
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())
