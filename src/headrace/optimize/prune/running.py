"""What is inside a graph when it runs: shapes of tensors, and what weights read."""

from collections.abc import Iterator, Sequence
from typing import Final

import onnxruntime as ort

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import Graph, Proto

_ERRORS_ONLY: Final = 3


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
