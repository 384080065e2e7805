"""A JSON header that was seen before is not read again, and changes nothing else."""

import json

import numpy as np
import pytest

from headrace.core import Array, Datatype, InvalidArgumentError, ModelSignature, TensorSpec
from headrace.protocol import InferDecoder

SIGNATURE = ModelSignature(
    inputs=(
        TensorSpec(name="a", datatype=Datatype.FP32, shape=(-1, 2)),
        TensorSpec(name="b", datatype=Datatype.INT64, shape=(-1,)),
    ),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
    batched=True,
)


def header(rows: int = 2, fields: dict[str, object] | None = None) -> bytes:
    inputs = [
        {
            "name": "a",
            "datatype": "FP32",
            "shape": [rows, 2],
            "parameters": {"binary_data_size": 8 * rows},
        },
        {
            "name": "b",
            "datatype": "INT64",
            "shape": [rows],
            "parameters": {"binary_data_size": 8 * rows},
        },
    ]
    return json.dumps({"inputs": inputs, **(fields or {})}).encode()


def data(seed: int, rows: int = 2) -> tuple[bytes, dict[str, Array]]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {
        "a": rng.standard_normal((rows, 2)).astype(np.float32),
        "b": rng.integers(-9, 9, rows),
    }
    return b"".join(array.tobytes() for array in arrays.values()), arrays


@pytest.mark.parametrize("fields", [{}, {"parameters": {"priority": 2, "timeout": 5}}, {"id": "x"}])
@pytest.mark.parametrize("pad", range(8))
def test_the_second_request_is_as_the_first_but_for_its_data(
    fields: dict[str, object], pad: int
) -> None:
    decoder = InferDecoder("m", "1", SIGNATURE)
    head = header(fields=fields) + b" " * pad
    found = []
    for seed in range(3):
        raw, arrays = data(seed)
        request = decoder.decode(head + raw, len(head))
        for name, array in arrays.items():
            np.testing.assert_array_equal(request.inputs[name], array)
            assert request.inputs[name].flags.aligned
        found.append((request.rows, request.id, request.priority, request.timeout_s))

    assert len(set(found)) == 1


@pytest.mark.parametrize("change", [b"", b"more"])
def test_a_known_header_with_too_much_or_too_little_data_is_refused(change: bytes) -> None:
    decoder = InferDecoder("m", "1", SIGNATURE)
    head = header()
    raw, _ = data(1)
    decoder.decode(head + raw, len(head))
    wrong = raw + change if change else raw[:-1]

    with pytest.raises(InvalidArgumentError):
        decoder.decode(head + wrong, len(head))


def test_only_so_many_headers_are_kept() -> None:
    decoder = InferDecoder("m", "1", SIGNATURE)
    for rows in range(1, 200):
        head = header(rows)
        raw, _ = data(1, rows)
        assert decoder.decode(head + raw, len(head)).rows == rows

    assert len(decoder._known) <= 64
