"""SavedModels: small ones by hand, without TensorFlow, and real ones made by Keras."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest

from headrace.core import Array

WEIGHTS: Final[Array] = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
_FLOAT: Final = 1
_MAGIC: Final = 0xDB4775248B80FB57


def tensorflow() -> ModuleType:
    """TensorFlow; skips the test where it is not installed."""
    module: ModuleType = pytest.importorskip(
        "tensorflow", reason="TensorFlow is not installed: make test SUITE=all installs it"
    )
    return module


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(place: int, value: int) -> bytes:
    """A field of a protobuf message that is a number."""
    return _varint(place << 3) + _varint(value & ((1 << 64) - 1))


def field(place: int, content: bytes | str) -> bytes:
    """A field of a protobuf message that is a text or a message."""
    data = content.encode() if isinstance(content, str) else content
    return _varint(place << 3 | 2) + _varint(len(data)) + data


def entry(key: str, value: bytes) -> bytes:
    """An item of a map."""
    return field(1, key) + field(2, value)


def shape(*sizes: int) -> bytes:
    """A `TensorShapeProto`."""
    return b"".join(field(2, number(1, size)) for size in sizes)


def node(name: str, op: str, *inputs: str, **attributes: bytes) -> bytes:
    """A `NodeDef`; attributes are `AttrValue`s."""
    parts = [field(1, name), field(2, op), *(field(3, one) for one in inputs)]
    return b"".join([*parts, *(field(5, entry(k, v)) for k, v in attributes.items())])


def call(function: str) -> bytes:
    """The attribute of a node that names a function."""
    return field(10, field(1, function))


def function(name: str, *nodes: bytes) -> bytes:
    """A `FunctionDef`."""
    return field(1, field(1, name)) + b"".join(field(3, one) for one in nodes)


def constant(array: Array) -> bytes:
    """The attribute of a node that holds a tensor of floats."""
    content = number(1, _FLOAT) + field(2, shape(*array.shape)) + field(4, array.tobytes())
    return field(8, content)


def tensor(name: str, *sizes: int, kind: int = _FLOAT) -> bytes:
    """A `TensorInfo`."""
    return field(1, name) + number(2, kind) + field(3, shape(*sizes))


def signature(inputs: Mapping[str, bytes], outputs: Mapping[str, bytes]) -> bytes:
    """A `SignatureDef`."""
    parts = [field(1, entry(name, one)) for name, one in inputs.items()]
    return b"".join([*parts, *(field(2, entry(name, one)) for name, one in outputs.items())])


PERCEPTRON: Final = (
    node("ask_x", "Placeholder", dtype=number(6, _FLOAT), shape=field(7, shape(-1, 4))),
    node("w", "Const", dtype=number(6, _FLOAT), value=constant(WEIGHTS)),
    node("sum", "MatMul", "ask_x", "w", T=number(6, _FLOAT)),
    node("soft", "Softmax", "sum", T=number(6, _FLOAT)),
)
"""softmax(x @ WEIGHTS)"""
DEFAULT: Final = {
    "serving_default": signature({"x": tensor("ask_x:0", -1, 4)}, {"y": tensor("soft:0", -1, 3)})
}


def graph(
    nodes: Sequence[bytes] = PERCEPTRON,
    functions: Sequence[bytes] = (),
    signatures: Mapping[str, bytes] = DEFAULT,
    *,
    tag: str = "serve",
    saver: Sequence[str] = (),
    more: bytes = b"",
) -> bytes:
    """A `MetaGraphDef`; `saver` are the nodes that store and restore."""
    library = b"".join(field(1, one) for one in functions)
    stored = b"".join(field(2 + i, name) for i, name in enumerate(saver))
    versions = field(4, number(1, 1882))
    parts = [
        field(1, field(4, tag)),
        field(2, b"".join(field(1, one) for one in nodes) + field(2, library) + versions),
        field(3, stored) if saver else b"",
        *(field(5, entry(name, one)) for name, one in signatures.items()),
    ]
    return b"".join(parts) + more


def write(folder: Path, *graphs: bytes) -> Path:
    """A directory with these graphs; the perceptron if there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    metas = b"".join(field(2, one) for one in graphs or (graph(),))
    (folder / "saved_model.pb").write_bytes(number(1, 1) + metas)
    return folder


def expected(rows: Array) -> Array:
    """What the perceptron answers."""
    powers = np.exp(rows @ WEIGHTS)
    answer: Array = powers / powers.sum(axis=1, keepdims=True)
    return answer


def variable(offset: int, size: int, *sizes: int, kind: int = _FLOAT, shard: int = 0) -> bytes:
    """A `BundleEntryProto`."""
    place = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, kind) + field(2, shape(*sizes)) + place


def index(values: Mapping[str, bytes], *, header: bytes = number(1, 1)) -> bytes:
    """A `variables.index`: one block of data, one that lists it, and the footer."""
    data = _block({"": header, **values})
    listed = _block({"~": _varint(0) + _varint(len(data) - 5)})
    empty = _block({})
    starts = (len(data), len(data) + len(empty))
    handles = _varint(starts[0]) + _varint(len(empty) - 5)
    handles += _varint(starts[1]) + _varint(len(listed) - 5)
    return data + empty + listed + handles.ljust(40, b"\0") + struct.pack("<Q", _MAGIC)


def _block(values: Mapping[str, bytes]) -> bytes:
    entries = b""
    for key, value in values.items():
        sizes = _varint(0) + _varint(len(key)) + _varint(len(value))
        entries += sizes + key.encode() + value
    # Restarts, their number, no compression, and a checksum that nobody asks for here.
    return entries + struct.pack("<II", 0, 1) + b"\0" + bytes(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What Keras wrote, and what it answers in this process."""

    path: Path
    expected: Callable[[Array], Array]


def keras_images(folder: Path) -> Exported:
    """A convolutional network with variables, as `model.export` writes it."""
    library: Any = tensorflow()
    keras = library.keras
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.layers.Input((12, 12, 3), name="image"),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    path = folder / "images"
    model.export(path, verbose=False)
    return Exported(path=path, expected=lambda rows: np.asarray(model(rows)))
