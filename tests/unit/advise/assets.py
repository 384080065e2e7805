"""Model files of every format: real ones where our tools write them, made by hand elsewhere."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from headrace.testing import models
from tests import gguf_models

PYTHON = "from headrace.runtimes import PythonModel\n\n\nclass Mine(PythonModel):\n    pass\n"


def onnx(*, seed: int = 1) -> bytes:
    return models.mlp(features=8, hidden=4, seed=seed)


def onnx_quantised() -> bytes:
    """A weight of INT8 that is multiplied out, and a scale."""
    return models.build(
        [
            ("DequantizeLinear", ["w", "s"], ["d"], {}),
            ("MatMul", ["x", "d"], ["y"], {}),
        ],
        [("x", models.FLOAT, ["batch", 64])],
        [("y", models.FLOAT, ["batch", 64])],
        {"w": np.ones((64, 64), np.int8), "s": np.array(0.5, np.float32)},
    )


def onnx_external(location: str, *, length: int = 64) -> bytes:
    """A weight whose data is in another file."""
    tensor = (
        _varint(1, 16)
        + _varint(2, 1)
        + _field(8, b"w")
        + _field(13, _entry(b"location", location.encode()))
        + _field(13, _entry(b"length", str(length).encode()))
        + _varint(14, 1)
    )
    graph = _field(2, b"g") + _field(5, tensor)
    return _varint(1, 8) + _field(7, graph) + _field(8, _varint(2, 17))


def onnx_of_opset(opset: int, *, domain: bytes = b"") -> bytes:
    graph = _field(1, _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity"))
    return _varint(1, 8) + _field(7, graph) + _field(8, _field(1, domain) + _varint(2, opset))


def onnx_unusual() -> bytes:
    """Packed dimensions, four bits a weight, and inputs of other types."""
    tensor = _field(1, _number(4) + _number(6)) + _varint(2, 22) + _field(8, b"w")
    inputs = [
        _field(1, b"m") + _field(2, _field(5, b"")),
        _field(1, b"t") + _field(2, _field(1, _varint(1, 1))),
        _field(1, b"n"),
    ]
    graph = _field(5, tensor) + b"".join(_field(11, one) for one in inputs)
    return _varint(1, 9) + _field(7, graph) + _field(8, _varint(2, 21))


def saved_model(*, operators: Sequence[str] = ("MatMul",), inside: Sequence[str] = ()) -> bytes:
    tensor = _varint(2, 1) + _field(3, _field(2, _signed(1, -1)) + _field(2, _varint(1, 4)))
    signature = _field(1, _entry(b"x", tensor)) + _field(2, _entry(b"y", tensor))
    nodes = b"".join(_field(1, _field(2, name.encode())) for name in operators)
    if inside:
        function = b"".join(_field(3, _field(2, name.encode())) for name in inside)
        nodes += _field(2, _field(1, function))
    meta = _field(4, b"serve") + _field(5, b"2.17.0")
    graph = _field(1, meta) + _field(2, nodes) + _field(5, _entry(b"serving_default", signature))
    return _varint(1, 1) + _field(2, graph)


def tflite(*, custom: str = "") -> bytes:
    """One input of FP32 [1, 4], and a weight of INT8: tables written from the last to the first."""
    buffer = _Flat()
    empty = buffer.table({})
    weights = buffer.table({0: buffer.vector(b"\1" * 40, 1)})
    buffers = buffer.offsets([empty, weights])
    first = buffer.table({0: buffer.vector(struct.pack("<2i", 1, 4), 4), 3: buffer.text("x")})
    second = buffer.table({1: b"\x09", 2: struct.pack("<I", 1), 3: buffer.text("w")})
    graph = buffer.table(
        {
            0: buffer.offsets([first, second]),
            1: buffer.vector(struct.pack("<i", 0), 4),
            2: buffer.vector(struct.pack("<i", 0), 4),
        }
    )
    codes = {1: buffer.offsets([buffer.table({1: buffer.text(custom)})])} if custom else {}
    rest = {2: buffer.offsets([graph]), 3: buffer.text("converted"), 4: buffers}
    model = buffer.table(codes | rest)
    return buffer.finish(model, b"TFL3")


def torch_script(*, code: str = "def forward(self, x):\n  return torch.relu(x)\n") -> bytes:
    pickle = b"\x80\x02ctorch.jit\n_script\nq\x00)\x81."
    return archive(
        {
            "net/data.pkl": pickle,
            "net/constants.pkl": b"\x80\x02).",
            "net/code/__torch__.py": code.encode(),
            "net/version": b"3\n",
        }
    )


def torch_checkpoint() -> bytes:
    pickle = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00ctorch\nFloatStorage\nq\x01."
    return archive({"net/data.pkl": pickle, "net/data/0": b"\0" * 64, "net/version": b"3\n"})


def keras(*, layer: str = "Dense") -> bytes:
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": layer}]}}
    return archive(
        {
            "config.json": json.dumps(config).encode(),
            "metadata.json": b'{"keras_version": "3.6.0"}',
            "model.weights.h5": b"\x89HDF\r\n\x1a\n",
        }
    )


def archive(entries: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in entries.items():
            found.writestr(name, content)
    return data.getvalue()


def evil_pickle() -> bytes:
    """What `os.system("id")` looks like in protocol 4."""
    return b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."


def safetensors(*, missing: int = 0) -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]},
    }
    data = json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + b"\0" * (64 - missing)


def gguf() -> bytes:
    return gguf_models.gguf(
        {"general.architecture": "llama", "tokens": ["a", "b"]},
        [("w", (64, 64), 2, bytes(64 * 64 // 32 * 18))],
    )


def xgboost_json() -> bytes:
    learner = {
        "learner_model_param": {"num_feature": "30", "num_class": "0"},
        "objective": {"name": "binary:logistic"},
    }
    return json.dumps({"learner": learner, "version": [2, 1, 0]}).encode()


def xgboost_ubj() -> bytes:
    return b"{L" + struct.pack(">q", 7) + b"learner{}}"


def lightgbm() -> bytes:
    return (
        b"tree\nversion=v4\nnum_class=1\nmax_feature_idx=9\nobjective=binary sigmoid:1\n\n"
        b"Tree=0\nnum_leaves=2\n\nend of trees\n"
    )


def openvino(*, end: int = 128) -> bytes:
    return f"""<?xml version="1.0"?>
<net name="net" version="11"><layers>
<layer id="0" name="x" type="Parameter"><data shape="1,3,?" element_type="f32"/></layer>
<layer id="1" name="w" type="Const"><data element_type="f16" offset="0" size="{end}"/></layer>
<layer id="2" name="y" type="Result"><input><port id="0"><dim>1</dim><dim>9</dim></port></input>
</layer></layers></net>""".encode()


def write_all(folder: Path) -> None:
    """One asset of every format, and files that are none."""
    folder.mkdir(parents=True)
    single = {
        "mlp.onnx": onnx(),
        "quantised.onnx": onnx_quantised(),
        "net.tflite": tflite(),
        "script.pt": torch_script(),
        "checkpoint.pth": torch_checkpoint(),
        "exported.pt2": archive({"net/archive_format": b"pt2", "net/models/model.json": b"{}"}),
        "net.keras": keras(),
        "old.h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64 + b'model_config{"class_name": "Dense"}',
        "weights.safetensors": safetensors(),
        "llama.gguf": gguf(),
        "trees.json": xgboost_json(),
        "trees.ubj": xgboost_ubj(),
        "old.model": b"binf" + b"\0" * 32,
        "forest.txt": lightgbm(),
        "cats.cbm": b"CBM1" + b"\0" * 32,
        "ir.xml": openvino(),
        "ir.bin": b"\0" * 128,
        "score.pmml": b'<?xml version="1.0"?><PMML version="4.4"></PMML>',
        "mine.py": PYTHON.encode(),
        "helpers.py": b"x = 1\n",
        "model.ort": b"\x1c\0\0\0ORTM" + b"\0" * 32,
        "readme.md": b"# models\n",
        "settings.json": b'{"learning_rate": 0.1}',
        "table.csv": b"a,b\n1,2\n",
        "page.xml": b"<html></html>",
        "data.npz": archive({"x.npy": b"\x93NUMPY"}),
    }
    for name, data in single.items():
        (folder / name).write_bytes(data)
    repository = folder / "repository" / "fraud" / "2"
    repository.mkdir(parents=True)
    (repository / "model.onnx").write_bytes(onnx(seed=2))
    saved = folder / "saved"
    (saved / "variables").mkdir(parents=True)
    (saved / "saved_model.pb").write_bytes(saved_model())
    (saved / "variables" / "variables.index").write_bytes(b"index")
    (saved / "variables" / "variables.data-00000-of-00001").write_bytes(b"data")
    python = folder / "python"
    python.mkdir()
    (python / "model.py").write_text(PYTHON)
    (python / "vocabulary.txt").write_text("a b c")


def _varint(number: int, value: int) -> bytes:
    return bytes((number << 3,)) + _number(value)


def _signed(number: int, value: int) -> bytes:
    return bytes((number << 3,)) + _number(value & ((1 << 64) - 1))


def _number(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(content)) + content


def _entry(key: bytes, value: bytes) -> bytes:
    return _field(1, key) + _field(2, value)


class _Flat:
    """A flatbuffer written backwards; a place is counted from the end."""

    def __init__(self) -> None:
        self._data = b""

    def _add(self, content: bytes) -> int:
        padding = -(len(self._data) + len(content)) % 4
        self._data = content + b"\0" * padding + self._data
        return len(self._data)

    def vector(self, content: bytes, size: int) -> int:
        return self._add(struct.pack("<I", len(content) // size) + content)

    def text(self, value: str) -> int:
        return self.vector(value.encode(), 1)

    def offsets(self, places: Sequence[int]) -> int:
        size = 4 + 4 * len(places)
        end = len(self._data) + size
        content = struct.pack("<I", len(places))
        for i, place in enumerate(places):
            content += struct.pack("<I", end - 4 - 4 * i - place)
        return self._add(content)

    def table(self, values: Mapping[int, int | bytes]) -> int:
        """A table whose fields are places, or scalars as bytes; its layout stands before it."""
        count = max(values, default=-1) + 1
        body = 4 + 4 * len(values)
        layout = 4 + 2 * count + (-(4 + 2 * count) % 4)
        start = len(self._data) + body
        offsets = [0] * count
        content = struct.pack("<i", layout)
        for i, (slot, value) in enumerate(values.items()):
            offsets[slot] = 4 + 4 * i
            at = start - 4 - 4 * i
            content += (
                value.ljust(4, b"\0") if isinstance(value, bytes) else struct.pack("<I", at - value)
            )
        self._data = content + self._data
        head = struct.pack(f"<HH{count}H", 4 + 2 * count, body, *offsets)
        self._data = head.ljust(layout, b"\0") + self._data
        return start

    def finish(self, root: int, mark: bytes) -> bytes:
        end = len(self._data) + 8
        return struct.pack("<I", end - root) + mark + self._data
