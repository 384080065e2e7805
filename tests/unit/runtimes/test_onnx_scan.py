"""A file that claims more than it holds, or reaches out of its directory, is not even loaded."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from headrace.core import UnsupportedModelError
from headrace.runtimes import inspect_model
from headrace.runtimes.onnx.file import scan_onnx
from headrace.testing import models

Change = Callable[[onnx.ModelProto], None]


def first_tensor(model: onnx.ModelProto) -> TensorProto:
    tensor: TensorProto = model.graph.initializer[0]
    return tensor


def external(tensor: TensorProto, **pairs: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in pairs.items():
        tensor.external_data.add(key=key, value=value)


def write(path: Path, change: Change, source: bytes | None = None) -> Path:
    model = onnx.load_from_string(models.mlp() if source is None else source)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "source", [models.mlp(), models.matmul(), models.strings()], ids=["mlp", "matmul", "strings"]
)
def test_real_models_pass(tmp_path: Path, source: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(source)

    scan_onnx(path)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("../../etc/passwd", "outside the model's directory"),
        ("/etc/passwd", "outside the model's directory"),
        ("sub/../../weights", "outside the model's directory"),
        ("", "outside the model's directory"),
        ("link", "a link that leads out"),
        ("link/passwd", "a link that leads out"),
    ],
    ids=repr,
)
def test_weights_outside_of_the_directory_are_refused(
    tmp_path: Path, location: str, why: str
) -> None:
    path = write(
        tmp_path / "m.onnx", lambda model: external(first_tensor(model), location=location)
    )
    (tmp_path / "link").symlink_to("/etc")

    with pytest.raises(UnsupportedModelError, match=why):
        inspect_model(path)


@pytest.mark.parametrize("pair", [{"offset": "9999999"}, {"length": "-1"}, {"length": "x" * 99}])
def test_weights_beyond_the_end_of_their_file_are_refused(
    tmp_path: Path, pair: dict[str, str]
) -> None:
    (tmp_path / "weights").write_bytes(bytes(9000))

    def change(model: onnx.ModelProto) -> None:
        external(first_tensor(model), location="weights", **pair)

    with pytest.raises(UnsupportedModelError, match="file of 9000 bytes"):
        scan_onnx(write(tmp_path / "m.onnx", change))


def test_weights_beside_the_model_are_its_own(tmp_path: Path) -> None:
    model = onnx.load_from_string(models.mlp())
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )

    scan_onnx(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    scan_onnx(tmp_path / "m.onnx")  # that it is missing is told by whoever opens it


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        ([1 << 40], "declares 1099511627776 elements but holds"),
        ([1 << 32, 1 << 32], "declares 18446744073709551616 elements"),
        ([-1], "negative dimension"),
        ([1] * 65, "more than 64 dimensions"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_tensor_that_declares_more_than_it_holds_is_refused(
    tmp_path: Path, dims: list[int], why: str
) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = first_tensor(model)
        tensor.ClearField("dims")
        tensor.dims.extend(dims)

    path = write(tmp_path / "m.onnx", change)
    started = time.monotonic()
    with pytest.raises(UnsupportedModelError, match=why):
        inspect_model(path)
    assert time.monotonic() - started < 2.0


def test_tensors_are_found_wherever_they_stand(tmp_path: Path) -> None:
    bomb = helper.make_tensor("bomb", TensorProto.FLOAT, [1], [0.0])
    bomb.dims[0] = 1 << 40
    constant = helper.make_node("Constant", [], ["c"], value=bomb)
    inner = helper.make_graph([constant], "inner", [], [])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    function = helper.make_function("d", "f", [], ["c"], [constant], [])
    sparse = helper.make_sparse_tensor(bomb, bomb, [1 << 40])

    for change in (
        lambda model: model.graph.node.append(constant),
        lambda model: model.graph.node.append(branch),
        lambda model: model.functions.append(function),
        lambda model: model.graph.sparse_initializer.append(sparse),
    ):
        with pytest.raises(UnsupportedModelError, match="tensor 'bomb' declares"):
            scan_onnx(write(tmp_path / "m.onnx", change))


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_messages_nested_without_end_are_refused(tmp_path: Path) -> None:
    content = b""
    for _ in range(200):
        content = message(1, message(5, message(6, content)))  # graph, node, attribute, graph…
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + message(7, content))

    with pytest.raises(UnsupportedModelError, match="nests more than 64 messages"):
        scan_onnx(path)


@given(cut=st.integers(3, 26_000), at=st.integers(2, 25_000), byte=st.integers(0, 255))
def test_whatever_the_bytes_are_the_scan_ends_with_an_answer(
    cut: int, at: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(models.mlp()[:cut])
    if at < len(data):
        data[at] = byte
    path = tmp_path_factory.mktemp("scan") / "m.onnx"
    path.write_bytes(data)
    with contextlib.suppress(UnsupportedModelError):
        scan_onnx(path)
    shutil.rmtree(path.parent)


def test_an_input_that_no_request_could_carry_is_refused(tmp_path: Path) -> None:
    source = models.build(
        [("Relu", ["x"], ["y"], {})],
        [("x", models.FLOAT, ("n", 1 << 40))],
        [("y", models.FLOAT, ("n", 1 << 40))],
    )
    (tmp_path / "m.onnx").write_bytes(source)

    with pytest.raises(UnsupportedModelError, match="input 'x' declares the shape"):
        inspect_model(tmp_path / "m.onnx")


def test_large_weights_cost_no_time(tmp_path: Path) -> None:
    weights = {"w": np.zeros((4096, 4096), np.float32)}
    shape: tuple[int | str | None, ...] = ("n", 4096)
    source = models.build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", models.FLOAT, shape)],
        [("y", models.FLOAT, shape)],
        weights,
    )
    (tmp_path / "m.onnx").write_bytes(source)
    started = time.monotonic()
    scan_onnx(tmp_path / "m.onnx")

    assert time.monotonic() - started < 0.1
