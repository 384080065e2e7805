from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.core import RowIndependence
from headrace.runtimes import LoadOptions
from headrace.runtimes.onnx import OnnxModel
from headrace.runtimes.rows.onnx import analyse_onnx
from tests import row_models

Open = Callable[[bytes], OnnxModel]


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


def test_a_damaged_graph_is_not_proven(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(row_models.INDEPENDENT["scale of the row"][:-40])

    assert "cannot be read" in analyse_onnx(path, ()).why_not
