"""Models of a few lines, and records for them."""

from collections.abc import Sequence

import numpy as np

from headrace.core import (
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.engine import PaddingPlan, ServiceTimes
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer
from headrace.streaming.records import Header, Record, TopicPartition


def spec(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(
    *inputs: TensorSpec,
    outputs: Sequence[TensorSpec] = (spec("sum", Datatype.FP32, -1),),
    batched: bool = True,
    columns: dict[str, tuple[str, ...]] | None = None,
) -> ModelSignature:
    return ModelSignature(
        inputs=inputs, outputs=tuple(outputs), batched=batched, columns=columns or {}
    )


MATRIX = signature(spec("x", Datatype.FP32, -1, 3))
TOKENS = signature(
    spec("ids", Datatype.INT64, -1, -1), outputs=[spec("twice", Datatype.INT64, -1, -1)]
)


class Adder:
    """The sum of each row of all inputs; refuses rows that hold a negative number."""

    concurrent = True

    def __init__(self, of: ModelSignature, error: Exception | None = None) -> None:
        self.signature = of
        self.error = error
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        del outputs
        if self.error is not None:
            raise self.error
        arrays = list(inputs.values())
        self.shapes.append(arrays[0].shape)
        if any((array < 0).any() for array in arrays):
            raise InvalidArgumentError("a number is negative")
        if self.signature.outputs[0].name == "twice":
            return {"twice": inputs["ids"] * 2}
        if not self.signature.batched:
            return {"sum": np.asarray(arrays[0].sum(), np.float32)}
        rows = len(arrays[0])
        total = sum(array.reshape(rows, -1).sum(axis=1) for array in arrays)
        return {"sum": np.asarray(total, np.float32)}

    def close(self) -> None:
        self.error = RuntimeFailedError("closed")


def scorer(
    of: ModelSignature, *, plan: PaddingPlan | None = None, model: Adder | None = None
) -> Scorer:
    loaded = LoadedModel(
        model=model or Adder(of),
        runtime="python",
        signature=of,
        times=ServiceTimes(max_batch_size=32),
        plan=plan,
    )
    return Scorer(loaded, name="adder", version="1")


def record(
    value: bytes | None,
    *,
    offset: int = 0,
    key: bytes | None = None,
    headers: tuple[Header, ...] = (),
    timestamp_s: float = 1000.0,
) -> Record:
    return Record(
        topic_partition=TopicPartition("in", 0),
        offset=offset,
        key=key,
        value=value,
        headers=headers,
        timestamp_s=timestamp_s,
    )


def records(*values: bytes | None) -> list[Record]:
    return [record(value, offset=at, key=b"k%d" % at) for at, value in enumerate(values)]
