from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from headrace.core import Datatype, RowIndependence, TensorSpec
from headrace.runtimes import LoadOptions
from headrace.runtimes.onnx.runtime import OnnxModel
from headrace.runtimes.rows.onnx import analyse_onnx
from headrace.runtimes.rows.openvino import analyse_openvino
from headrace.runtimes.rows.values import RowVerdict
from tests import openvino_models, row_models

NOT_BY_OPENVINO = {
    "distances to a table",
    "scan without a state",
    "einsum with the row in front",
}
TABLE = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),)
Open = Callable[[bytes], OnnxModel]


def by_openvino(tmp_path: Path, content: bytes) -> RowVerdict | None:
    """The verdict on a model as OpenVINO reads it; None if it does not."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        model = openvino_models.library().Core().read_model(path)
    except RuntimeError:
        return None
    inputs, outputs = (
        [
            TensorSpec(name=str(i), datatype=Datatype.FP32, shape=sizes(port))
            for i, port in enumerate(ports)
        ]
        for ports in (model.inputs, model.outputs)
    )
    return analyse_openvino(model, inputs, outputs)


def sizes(port: Any) -> tuple[int, ...]:  # noqa: ANN401  # OpenVINO ships no types
    """Of a port; what varies is -1, and none of an unknown rank."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return ()
    return tuple(-1 if size.is_dynamic else size.get_length() for size in shape)


@pytest.mark.parametrize("name", row_models.COUPLED)
def test_rows_that_meet_are_never_batched(open_onnx: Open, name: str) -> None:
    signature = open_onnx(row_models.COUPLED[name]).signature

    assert not signature.batched
    assert signature.row_independence in {RowIndependence.UNPROVEN, RowIndependence.REFUTED}
    assert signature.row_reason


@pytest.mark.parametrize("name", row_models.COUPLED)
def test_rows_that_meet_are_not_proven_even_without_a_run(
    open_onnx: Open, tmp_path: Path, name: str
) -> None:
    inputs = open_onnx(row_models.COUPLED[name]).signature.inputs

    assert not analyse_onnx(tmp_path / "model.onnx", inputs).is_proven


@pytest.mark.parametrize("name", row_models.COUPLED)
def test_openvino_finds_no_proof_for_rows_that_meet(tmp_path: Path, name: str) -> None:
    verdict = by_openvino(tmp_path, row_models.COUPLED[name])

    assert verdict is None or not verdict.is_proven


@pytest.mark.parametrize(
    "name",
    sorted(row_models.INDEPENDENT.keys() - NOT_BY_OPENVINO),
)
def test_openvino_proves_rows_that_do_not_meet(tmp_path: Path, name: str) -> None:
    assert by_openvino(tmp_path, row_models.INDEPENDENT[name]) == RowVerdict(why_not="")


@pytest.mark.parametrize("name", row_models.INDEPENDENT)
def test_rows_that_do_not_meet_are_batched(open_onnx: Open, name: str) -> None:
    signature = open_onnx(row_models.INDEPENDENT[name]).signature

    assert (signature.batched, signature.row_independence) == (True, RowIndependence.PROVEN)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cumulative sum", "node 'cumsum0' (CumSum) runs along the batch axis"),
        ("softmax over rows", "node 'softmax0' (Softmax) normalises along the batch axis"),
        ("mask as long as the longest row", "node 'reducemax0' (ReduceMax) reduces along the"),
        ("unique values", "node 'unique1' (Unique) is an operator that is not known"),
        ("divided by the number of rows", "node 'div3' (Div) computes with the number of rows"),
        ("dynamic quantisation", "takes the scale of its quantisation over the whole batch"),
        ("scan with a state", "(Scan) carries a state from row to row"),
    ],
)
def test_the_reason_names_the_node(open_onnx: Open, tmp_path: Path, name: str, reason: str) -> None:
    inputs = open_onnx(row_models.COUPLED[name]).signature.inputs

    assert reason in analyse_onnx(tmp_path / "model.onnx", inputs).why_not


def test_a_declared_model_is_batched(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(row_models.COUPLED["divided if a rare value is seen"])
    signature = OnnxModel.open(path, LoadOptions(device="cpu", rows_independent=True)).signature

    assert (signature.batched, signature.row_independence) == (True, RowIndependence.DECLARED)
    assert "declares it" in signature.row_reason


def test_a_function_named_as_an_operator_of_the_runtime_is_not_followed(tmp_path: Path) -> None:
    model = row_models.parsed(row_models.COUPLED["softmax over rows"])
    unchanged = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("", "Softmax", ["a"], ["b"], unchanged, model.opset_import, ["axis"])
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    assert "function in a domain of the runtime's own" in analyse_onnx(path, TABLE).why_not


def test_a_constant_that_is_written_in_parts_is_not_known(tmp_path: Path) -> None:
    model = row_models.parsed(
        row_models.model(
            lambda net: net.op(
                "CumSum",
                "x",
                net.op(
                    "Constant",
                    value=helper.make_tensor(
                        "axis", row_models.INT64, [], np.array(0).tobytes(), raw=True
                    ),
                ),
            )
        )
    )
    # Protocol Buffers join the parts of a message: the raw zero, and a one that does not count.
    more = onnx.AttributeProto(t=onnx.TensorProto(data_type=row_models.INT64, int64_data=[1]))
    graph = model.graph
    first, *others = graph.node
    (value,) = first.attribute
    joined = value.SerializeToString() + more.SerializeToString()
    for message, name in ((first, "attribute"), (graph, "node"), (model, "graph")):
        message.ClearField(name)
    nodes = [first.SerializeToString() + field(5, joined), *(n.SerializeToString() for n in others)]
    content = b"".join(field(1, node) for node in nodes) + graph.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString() + field(7, content))

    assert "takes axes that are computed" in analyse_onnx(path, TABLE).why_not


def field(number: int, content: bytes) -> bytes:
    """A message within another one of Protocol Buffers, of less than 16 KiB."""
    size = len(content)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + content


def test_a_damaged_graph_is_not_proven(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(row_models.INDEPENDENT["scale of the row"][:-40])

    assert "cannot be read" in analyse_onnx(path, ()).why_not
