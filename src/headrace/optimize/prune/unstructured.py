"""Set single weights to zero: the file compresses better, and nothing else gets better.

Dense kernels multiply zeros like other numbers: on a CPU no engine that is alive gains time by it.
Weights are scored by their size times the root mean square of what they multiply, compared among
those of one output (Wanda, Sun et al., ICLR 2024).
"""

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import Graph, load_graph
from headrace.optimize.prune.moments import matrix, rows_read, set_matrix
from headrace.optimize.prune.running import shown
from headrace.optimize.prune.site import Site, is_weighing

_FEWEST_WEIGHTS: Final = 1024
"""Of a matrix: zeros in smaller ones save nothing."""
_CHUNK_BYTES: Final = 1 << 20
_LEVEL: Final = 6
"""Of gzip, its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """What was made. `gzip_bytes_before`, `gzip_bytes_after`: of the files, as gzip packs them."""

    path: Path
    zeros_ratio: float
    matrices: int
    examples: int
    gzip_bytes_before: int
    gzip_bytes_after: int

    def facts(self) -> dict[str, str]:
        """For a candidate's recipe."""
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
    """Write a network of the same size to `target`, in which many weights are zero.

    Raises:
        CannotBuildError: It has no matrices to speak of, or there was no time.
    """
    graph = load_graph(source).copy()
    nodes = _matrices(graph)
    if not nodes:
        raise CannotBuildError(f"it has no matrix of {_FEWEST_WEIGHTS:,} weights or more")
    squares = [np.zeros(len(matrix(graph, node))) for node in nodes]
    names = [str(graph.nodes[node].input[0]) for node in nodes]
    for tensors in shown(graph, list(dict.fromkeys(names)), examples, threads=threads):
        if clock() >= deadline:
            raise CannotBuildError("there was not enough time to see what its weights multiply")
        known = dict(zip(dict.fromkeys(names), tensors, strict=True))
        for i, (node, name) in enumerate(zip(nodes, names, strict=True)):
            rows = rows_read(graph, node, known[name])
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
    """`weight` `[inputs, outputs]` with this share of each output's least weights zero.

    Args:
        scales: How large each input is, `[inputs]`.
    """
    count = round(len(weight) * zeros_ratio)
    scores = np.abs(weight) * scales[:, None]
    order = np.argsort(scores, axis=0, kind="stable")
    made = weight.copy()
    np.put_along_axis(made, order[:count], 0, axis=0)
    return made


def gzip_bytes(path: Path) -> int:
    """Size of a file as gzip packs it."""
    packer = zlib.compressobj(_LEVEL, wbits=31)
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def _matrices(graph: Graph) -> list[int]:
    found = []
    for i, node in enumerate(graph.nodes):
        site = Site(graph=graph, index=i, shapes={})
        if is_weighing(site) and graph.constants[node.input[1]].size >= _FEWEST_WEIGHTS:
            found.append(i)
    return found
