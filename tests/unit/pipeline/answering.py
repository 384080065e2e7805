"""A model of functions: each output one of the input `x`."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from headrace.core import Array, Datatype, ModelSignature, Tensors, TensorSpec, datatype_of

Function = Callable[[Array], Array]


class Answering:
    """Implements `Model`; keeps what it was asked."""

    concurrent = True

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self.signature = ModelSignature(
            inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 1)),),
            outputs=tuple(_declared(name, made) for name, made in functions.items()),
            batched=True,
        )
        self.asked: list[list[float]] = []
        self.closed = 0

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        x = inputs["x"]
        self.asked.append(x[:, 0].tolist())
        return {name: self._functions[name](x) for name in outputs or self._functions}

    def close(self) -> None:
        self.closed += 1


def _declared(name: str, function: Function) -> TensorSpec:
    try:
        example = function(np.zeros((2, 1), np.float32))
    except Exception:  # noqa: BLE001  # it fails on purpose
        example = np.zeros((2, 2), np.float32)
    shape = (-1,) * example.ndim
    return TensorSpec(name=name, datatype=datatype_of(example.dtype), shape=shape)
