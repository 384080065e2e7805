"""Signatures of small models, and requests for them."""

import json
from typing import Any

import numpy as np

from headrace.core import Array, Datatype, ModelSignature, TensorSpec


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype(datatype), shape=shape)


def signature(
    *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), batched: bool = True
) -> ModelSignature:
    return ModelSignature(
        inputs=inputs,
        outputs=outputs or (spec("y", "FP32", -1, 2),),
        batched=batched,
        labels={"y": ("cat", "dog")},
    )


ROW = signature(
    spec("x", "FP32", -1, 4), outputs=(spec("y", "FP32", -1, 2), spec("z", "INT64", -1))
)
"""One FP32 row of four."""
PAIR = signature(spec("ids", "INT64", -1, -1), spec("mask", "INT64", -1, -1))
"""Two inputs of one datatype, variable length."""
MIXED = signature(
    spec("age", "INT64", -1, 1), spec("name", "BYTES", -1, 1), spec("ok", "BOOL", -1, 1)
)
"""Three inputs of three datatypes."""


def of(datatype: str, *shape: int, batched: bool = True) -> ModelSignature:
    """A model with the one input `x`."""
    return signature(spec("x", datatype, *(shape or (-1, 4))), batched=batched)


def tensor(data: object = None, **fields: object) -> dict[str, Any]:
    """An input of `ROW` in JSON; None leaves a field out."""
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data} | fields
    return {name: value for name, value in item.items() if value is not None}


def request(*inputs: dict[str, Any], **fields: object) -> bytes:
    return json.dumps({"inputs": list(inputs)} | fields).encode()


def binary(*inputs: tuple[dict[str, Any], bytes], **fields: object) -> tuple[bytes, int]:
    """A request whose tensors follow the JSON: the body and the header's length."""
    items = [
        item | {"parameters": {"binary_data_size": len(raw)} | item.get("parameters", {})}
        for item, raw in inputs
    ]
    header = request(*items, **fields)
    return header + b"".join(raw for _, raw in inputs), len(header)


FOUR: Array = np.array([[1, 2, 3, 4]], dtype="<f4")
