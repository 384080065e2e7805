"""Runs of a graph: its answers, what is inside it, and whether two graphs answer alike."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnxruntime as ort

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import Graph, Proto

_ERRORS_ONLY: Final = 3
_ROUNDING_RATIO: Final = 1e-3
"""Of the largest answer: a sum in another order changes less, and a wrong cut more."""


def open_session(model: Proto, threads: int, *, plain: bool = False) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        plain: As written, so that no tensor is optimized away.

    Raises:
        CannotBuildError: ONNX Runtime does not take the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if plain else level.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # a class for each of ONNX Runtime's own codes
        raise CannotBuildError(f"ONNX Runtime does not take it: {_first_line(error)}") from error


def run(session: ort.InferenceSession, example: Tensors) -> list[Array]:
    """Its outputs, in order.

    Raises:
        CannotBuildError: It fails on this example.
    """
    try:
        found: list[Array] = session.run(None, example)
    except Exception as error:  # as above
        raise CannotBuildError(f"it does not run on an example: {_first_line(error)}") from error
    return found


def floats(answers: Sequence[Array]) -> list[int]:
    """Which outputs are floats: scores. Labels beside them say less, and jump where they tie."""
    return [i for i, answer in enumerate(answers) if answer.dtype.kind == "f"]


def is_alike(got: Sequence[Array], want: Sequence[Array]) -> bool:
    """Whether two graphs answer the same but for rounding.

    Floats are compared where there are some; without them all outputs have to be equal.
    """
    if [answer.shape for answer in got] != [answer.shape for answer in want]:
        return False
    scores = floats(want)
    if not scores:
        return all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    return all(_difference(got[i], want[i]) <= _ROUNDING_RATIO for i in scores)


def _difference(got: Array, want: Array) -> float:
    """Largest difference, of the largest number; infinite where only one has numbers."""
    wide, wanted = got.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isfinite(wide), np.isfinite(wanted)):
        return float("inf")
    is_number = np.isfinite(wanted)
    scale = float(np.max(np.abs(wanted), initial=1e-6, where=is_number))
    difference = np.abs(np.subtract(wide, wanted, where=is_number, out=np.zeros_like(wide)))
    return float(np.max(difference, initial=0.0)) / scale


def traced_shapes(graph: Graph, example: Tensors, *, threads: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor when one example runs; declared shapes are not to be trusted."""
    names = [name for node in graph.nodes for name in node.output if name]
    answers = run(open_session(graph.proto(show=names), threads, plain=True), example)
    # Sequences and maps come as other things than arrays.
    shapes = {
        name: tuple(array.shape)
        for name, array in zip(names, answers, strict=True)
        if hasattr(array, "shape")
    }
    return shapes | {name: array.shape for name, array in example.items()}


def shown(
    graph: Graph, names: Sequence[str], examples: Sequence[Tensors], *, threads: int
) -> Iterator[list[Array]]:
    """These tensors, for one example after the other."""
    session = open_session(graph.proto(show=names), threads)
    for example in examples:
        yield run(session, example)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
