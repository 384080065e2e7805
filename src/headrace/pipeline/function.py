"""A step that is a Python function of the author's: a dict of arrays in, one out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from headrace.core import (
    VARIABLE,
    ModelSignature,
    RowIndependence,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline.spec import FunctionSpec, tensor_specs
from headrace.runtimes import Model
from headrace.runtimes.python import TensorDeclaration, UserModel, forget, run_file

Function = Callable[[Tensors], Tensors]


class _Infer:
    """A function in the shape that a user's class has. Functions on arrays need no lock."""

    concurrent = True

    def __init__(self, function: Function, signature: ModelSignature) -> None:
        self.inputs: Mapping[str, TensorDeclaration] = _declared(signature.inputs)
        self.outputs: Mapping[str, TensorDeclaration] = _declared(signature.outputs)
        self._function = function

    def infer(self, inputs: Tensors) -> Tensors:
        """Call it; it may change its dict, not the pipeline's."""
        return self._function(dict(inputs))


def open_function(spec: FunctionSpec, file: Path, place: str) -> Model:
    """The function that `spec` names, of `file`. Runs the file's code.

    Its answers are checked against what is declared.

    Raises:
        UnsupportedModelError: There is none, or the declaration makes no sense.
    """
    inputs, outputs = tensor_specs(spec.inputs), tensor_specs(spec.outputs)
    for tensor in (*inputs, *outputs):
        if not tensor.shape or tensor.shape[0] != VARIABLE:
            msg = (
                f"{place}: axis 0 of '{tensor.name}' is the batch and has to be -1; "
                f"it is declared as {list(tensor.shape)}"
            )
            raise UnsupportedModelError(msg)
    signature = ModelSignature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batched=True,
        row_independence=RowIndependence.DECLARED,
        row_reason=f"{place} declares a batch axis",
    )
    try:
        function = _read(file, spec.function.rpartition(":")[2])
    except BaseException:
        forget(file)
        raise
    return UserModel(file, _Infer(function, signature), signature)


def _read(file: Path, name: str) -> Function:
    found = getattr(run_file(file), name, None)
    if not callable(found):
        msg = f"{file}: holds no function '{name}'"
        raise UnsupportedModelError(msg)
    return cast("Function", found)


def _declared(specs: tuple[TensorSpec, ...]) -> dict[str, TensorDeclaration]:
    return {spec.name: (spec.datatype.value, spec.shape) for spec in specs}
