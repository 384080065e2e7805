"""What must be done to an ONNX model before ONNX Runtime's tools quantize it?

A normalisation beside a convolution that is quantized can no longer be merged into it, so merging
comes first. Nor can the tools do with weights in other files, with scales per channel in operators
of before 2020, with what adds a matrix of one row where a vector would do, and with tensors that
are called as those that they add.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from headrace.optimize.candidate import Workshop
from headrace.optimize.recipes.building import facts_of, told_by
from headrace.runtimes.onnx_file import find_onnx_file

_FILE: Final = "simple.onnx"
_WHOLE: Final = "whole.onnx"
_PER_CHANNEL_OPSET: Final = 13
"""The first in which a tensor of small integers may have several scales."""
_NO_LOGS: Final = 4
_BIAS: Final = 2
_ADDED: Final = ("_scale", "_zero_point", "_quantized")
"""How the tools call what belongs to a tensor."""
_MATRIX: Final = 2

Graph = Any  # an `onnx.ModelProto`; onnx ships no types


def simplified(workshop: Workshop) -> Path:
    """The source with constants folded and layers merged, as one file in the recipe's folder.

    Raises:
        CannotBuildError: ONNX or ONNX Runtime does not take the model.
    """
    import onnx  # noqa: PLC0415  # an extra brings it

    target, whole = workshop.folder / _FILE, workshop.folder / _WHOLE
    facts = facts_of(workshop)
    file = find_onnx_file(workshop.source)
    if facts.opset < _PER_CHANNEL_OPSET or facts.external:
        with told_by("ONNX"):
            model = onnx.load(file)
            if facts.opset < _PER_CHANNEL_OPSET:
                model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
            onnx.save(model, whole)
        file = whole
    with told_by("ONNX Runtime"):
        _merge(file, target, threads=workshop.threads)
    whole.unlink(missing_ok=True)
    with told_by("ONNX"):
        model = onnx.load(target)
        if any([_flatten_biases(model.graph), _rename(model.graph)]):
            onnx.save(model, target)
    return target


def _merge(file: Path, target: Path, *, threads: int) -> None:
    """Write what ONNX Runtime makes of a model by rules that hold on every processor."""
    options = ort.SessionOptions()
    options.log_severity_level = _NO_LOGS
    options.intra_op_num_threads = max(1, threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _flatten_biases(graph: Graph) -> bool:
    """Make [1, n] into [n] where only `Gemm` adds it; whether there was any."""
    uses: Counter[str] = Counter()
    biases: Counter[str] = Counter()
    for node in graph.node:
        uses.update(node.input)
        if node.op_type == "Gemm" and len(node.input) > _BIAS:
            biases[node.input[_BIAS]] += 1
    found = False
    for tensor in graph.initializer:
        is_row = len(tensor.dims) == _MATRIX and tensor.dims[0] == 1
        if is_row and biases[tensor.name] and biases[tensor.name] == uses[tensor.name]:
            del tensor.dims[0]
            found = True
    return found


def _rename(graph: Graph) -> bool:
    """Give constants other names where the tools would use theirs; whether there was any."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    new = {}
    for tensor in graph.initializer:
        owners = (tensor.name.removesuffix(end) for end in _ADDED if tensor.name.endswith(end))
        if any(owner in taken for owner in owners):
            new[tensor.name] = f"{tensor.name}_of_the_model"
            tensor.name = new[tensor.name]
    for node in graph.node if new else ():
        for place, name in enumerate(node.input):
            node.input[place] = new.get(name, name)
    return bool(new)
