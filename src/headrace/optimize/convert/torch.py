"""ONNX conversion of PyTorch's TorchScript and exported programs, by PyTorch's own exporters.

There are two exporters: the older one traces, and would fix the variable sizes of an exported
program; the newer one does not accept TorchScript. Imported only where PyTorch is installed.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import TensorProto, helper

from headrace.core import (
    VARIABLE,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
)
from headrace.optimize.generated_inputs import sizes_that_run
from headrace.optimize.sources import ConversionSource, Graph, Way, computes_in, with_version
from headrace.pipeline.huggingface import image_spec
from headrace.runtimes import LoadOptions, detect_runtime
from headrace.runtimes.huggingface import HubFolder
from headrace.runtimes.torch import values as torch_values
from headrace.runtimes.torch.module import TorchModel, quiet
from headrace.runtimes.torch.pretrained import open_pretrained

OPSET: Final = 17
"""Opset of traced modules."""
EXPORTED_OPSET: Final = 18
"""Oldest opset that the newer exporter writes."""
_ROWS: Final = 2
"""Rows of the tracing input: an axis of size 1 may be taken for a constant."""
_DYNAMIC_SIZE: Final = 8
"""Size of variable axes in the newer exporter's input."""
_TOKENS: Final = "input_ids"
_FILE: Final = "exported.onnx"


def open_source(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open a PyTorch file, which runs its author's code when loaded."""
    assert allow_code, "checked by the caller"
    # Both sides of a comparison run the same batches, so rows may depend on each other.
    options = LoadOptions(device="cpu", rows_independent=True)
    model = detect_runtime(path).load(path, options)
    assert isinstance(model, TorchModel)
    return ConversionSource(
        model=model,
        ways=(Way(computes=computes_in(model.signature), convert=partial(_convert, model)),),
        converter=with_version("torch"),
        library=with_version("torch"),
        takes_missing=False,
    )


def open_huggingface(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open the weights of a Hugging Face folder, by the classes of the library transformers.

    The source is the model itself, from tokens or pixels; the steps around it stay as they are.
    """
    folder = HubFolder.read(path)
    if folder.is_onnx:
        raise UnsupportedModelError(f"{path} has {folder.model_file}; push it without --convert")
    assert allow_code or not folder.is_pickle, "checked by the caller"
    image_size = (0, 0) if folder.task.takes_text else image_spec(folder).size
    options = LoadOptions(device="cpu", rows_independent=True)
    model = open_pretrained(folder, options, image_size=image_size)
    computes = computes_in(model.signature)
    vocabulary = folder.config.get("vocab_size")
    return ConversionSource(
        model=model,
        ways=(
            Way(computes=computes, convert=partial(_convert, model)),
            Way(computes=computes, convert=partial(_exported_anew, model)),
        ),
        converter=with_version("torch"),
        library=with_version("transformers"),
        takes_missing=False,
        index_sizes={_TOKENS: vocabulary} if isinstance(vocabulary, int) else {},
    )


def _convert(model: TorchModel) -> Graph:
    loaded = model.program.loaded
    with _silent():
        if isinstance(loaded, torch.export.ExportedProgram):
            exported = torch.onnx.export(
                loaded, dynamo=True, opset_version=EXPORTED_OPSET, verbose=False
            )
            return exported.model_proto
        return _traced(model)


def _traced(model: TorchModel) -> Graph:
    signature = model.signature
    size = sizes_that_run(model)[0]
    example = example_inputs(signature, rows=_ROWS, variable=size)
    tensors = tuple(torch.from_numpy(example[spec.name]) for spec in signature.inputs)
    inputs = {f"in_{spec.name}": spec for spec in signature.inputs}
    outputs = {f"out_{spec.name}": spec for spec in signature.outputs}
    axes = {name: _variable_axes(spec) for name, spec in (inputs | outputs).items()}
    with torch.inference_mode():
        # Scripting keeps a module's loops and branches; the exporter alone accepts no method but
        # `forward`, and no dictionaries.
        traced = torch.jit.trace(_Asked(model), tensors, check_trace=False)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / _FILE)
        torch.onnx.export(
            traced,
            tensors,
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: variable for name, variable in axes.items() if variable},
            opset_version=OPSET,
            dynamo=False,
        )
        graph = onnx.load_model(file)
    # Declare unused inputs again, because callers still send them.
    names = list(inputs)
    present = {value.name for value in graph.graph.input}
    for i, (name, spec) in enumerate(zip(names, signature.inputs, strict=True)):
        if name in present:
            continue
        if not spec.shape:
            msg = (
                f"its input '{spec.name}' is one number, which stays what it is when the module is "
                "traced; let the module take a tensor with an axis, or give the number in 'values' "
                "of signature.json if it is always the same"
            )
            raise UnsupportedModelError(msg)
        graph.graph.input.insert(i, helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return graph


def _exported_anew(model: TorchModel) -> Graph:
    """Return the graph of the newer exporter, for modules that the older one does not trace."""
    signature = model.signature
    example = example_inputs(signature, rows=_ROWS, variable=_DYNAMIC_SIZE)
    tensors = tuple(torch.from_numpy(example[spec.name]) for spec in signature.inputs)
    axes = tuple(
        dict.fromkeys(_variable_axes(spec), torch.export.Dim.DYNAMIC) for spec in signature.inputs
    )
    with torch.inference_mode(), _silent():
        exported = torch.onnx.export(
            _Asked(model),
            tensors,
            dynamo=True,
            opset_version=EXPORTED_OPSET,
            dynamic_shapes={"tensors": axes},
            verbose=False,
        )
    return exported.model_proto


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress warnings and logs of the exporters in the block."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        log.setLevel(level)


class _Asked(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Module with positional inputs and outputs in the signature's order."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.inner = model.program.loaded  # the traced callable has to be a submodule
        self.training = False
        self._model = model

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        signature, program = self._model.signature, self._model.program
        names = [spec.name for spec in signature.inputs]
        arguments = dict(zip(names, tensors, strict=True))
        values = torch_values.flatten(program.call(arguments))
        own = self._model.names or {}
        answers = {own[name]: value for name, value in values.items()}
        return tuple(answers[spec.name] for spec in signature.outputs)


def _variable_axes(spec: TensorSpec) -> dict[int, str]:
    return {i: f"{spec.name}_{i}" for i, size in enumerate(spec.shape) if size == VARIABLE}
