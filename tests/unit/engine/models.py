"""Models whose runs a test can hold, count and fail."""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from headrace.core import Datatype, InvalidArgumentError, ModelSignature, Tensors, TensorSpec

ROWS = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
    outputs=(
        TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),
        TensorSpec(name="z", datatype=Datatype.FP32, shape=(-1,)),
    ),
    batched=True,
)
LENGTHS = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, -1)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, -1)),),
    batched=True,
)


class Doubling:
    """y = 2 x, z = the row's sum. Refuses a batch with a row that holds `bad`."""

    signature = ROWS

    def __init__(
        self,
        *,
        concurrent: bool = True,
        bad: float | None = None,
        error: Callable[[], Exception] = lambda: InvalidArgumentError("bad row"),
    ) -> None:
        self.concurrent = concurrent
        self.batches: list[int] = []
        self.wanted: list[Sequence[str] | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self._bad = bad
        self._error = error

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        x = inputs["x"]
        self.batches.append(len(x))
        self.wanted.append(outputs)
        self.started.release()
        self.gate.wait(10)
        if self._bad is not None and (x == self._bad).any():
            raise self._error()
        answers: Tensors = {"y": x * 2, "z": x.sum(axis=1)}
        return answers if outputs is None else {name: answers[name] for name in outputs}

    def close(self) -> None:
        pass


class Echoing:
    """y = x along a variable axis; remembers the shapes it was given."""

    signature = LENGTHS
    concurrent = True

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:  # noqa: ARG002  # the protocol's signature
        self.shapes.append(inputs["x"].shape)
        return {"y": np.array(inputs["x"])}

    def close(self) -> None:
        pass
