"""Tables of requests and answers, one row each; a tensor is a list column and a shape column.

The module needs pyarrow (extra `data`), so other modules import it only when they use it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.core.spec.observe import PayloadLogSpec
from headrace.serving.telemetry.report import PayloadSample, SampledTensor

_HASH_BYTES: Final = 16
_NARROWEST: Final = 4  # bytes of a float that all Parquet readers support
_COMMON: Final = (
    ("time", pa.timestamp("us", "UTC")),
    ("request_id", pa.string()),
    ("trace_id", pa.string()),
    ("caller", pa.string()),
    ("version", pa.string()),
    ("code", pa.string()),
    ("duration_s", pa.float64()),
)
SHAPE: Final = ".shape"
"""Name suffix of the column that holds a tensor's shape."""


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    type: pa.DataType
    value: object


def record_batches(
    version: str, samples: Sequence[PayloadSample], settings: PayloadLogSpec, key: bytes
) -> Iterator[pa.RecordBatch]:
    """Yield `samples` as record batches; a new batch begins when the columns change.

    Args:
        key: Key of the hashes, without which values cannot be guessed.
    """
    rows: list[list[_Column]] = []
    for sample in samples:
        row = list(_row(version, sample, settings, key))
        if rows and [(c.name, c.type) for c in rows[0]] != [(c.name, c.type) for c in row]:
            yield _batch(rows)
            rows = []
        rows.append(row)
    if rows:
        yield _batch(rows)


def _batch(rows: Sequence[Sequence[_Column]]) -> pa.RecordBatch:
    first = rows[0]
    schema = pa.schema([(column.name, column.type) for column in first])
    arrays = [
        pa.array([row[i].value for row in rows], type=column.type) for i, column in enumerate(first)
    ]
    return pa.record_batch(arrays, schema=schema)


def _row(
    version: str, sample: PayloadSample, settings: PayloadLogSpec, key: bytes
) -> Iterator[_Column]:
    drop, hashed = frozenset(settings.drop), frozenset(settings.hash)
    caller = sample.caller
    if "caller" in hashed and caller:
        caller = _digest(caller.encode(), key)
    values = (
        round(sample.at * 1_000_000),
        sample.request_id,
        sample.trace_id,
        caller,
        version,
        sample.code,
        sample.duration_s,
    )
    for (name, kind), value in zip(_COMMON, values, strict=True):
        if name not in drop:
            yield _Column(name, kind, value)
    for side, tensors in (("input", sample.inputs), ("output", sample.outputs)):
        for tensor in tensors:
            name = f"{side}.{tensor.name}"
            if name in drop:  # the replica drops it too, once it has the setting
                continue
            yield _hashed(name, tensor, key) if name in hashed else _plain(name, tensor)
            yield _Column(name + SHAPE, pa.list_(pa.int64()), tensor.shape)


def _plain(name: str, tensor: SampledTensor) -> _Column:
    if tensor.dtype == "O":
        return _Column(name, pa.list_(pa.binary()), tensor.items)
    array = np.frombuffer(tensor.data, tensor.dtype)
    if array.dtype.kind == "f" and array.dtype.itemsize < _NARROWEST:
        array = array.astype(np.float32)
    return _Column(name, pa.list_(pa.from_numpy_dtype(array.dtype)), array)


def _hashed(name: str, tensor: SampledTensor, key: bytes) -> _Column:
    """Return hashes of single strings and integers, so equal ids stay equal; else of the tensor."""
    kind = pa.list_(pa.string())
    if tensor.dtype == "O":
        return _Column(name, kind, [_digest(item, key) for item in tensor.items])
    array = np.frombuffer(tensor.data, tensor.dtype)
    if array.dtype.kind in "iub":
        return _Column(name, kind, [_digest(str(item).encode(), key) for item in array.tolist()])
    return _Column(name, kind, [_digest(tensor.data, key)])


def _digest(data: bytes, key: bytes) -> str:
    return hashlib.blake2b(data, key=key, digest_size=_HASH_BYTES).hexdigest()
