"""All recipes start from ONNX; any other source is converted, compared, and kept as a baseline."""

from pathlib import Path

import numpy as np
import pytest

from headrace.core import CodeNotAllowedError, UnsupportedModelError
from headrace.optimize.recipes import prepare
from headrace.optimize.recipes.source import is_prepared
from headrace.runtimes import LoadOptions, load_model
from headrace.testing.models import mlp, write_external
from tests.network_models import write

CPU = LoadOptions(device="cpu")


def test_onnx_is_left_as_it_is(tmp_path: Path) -> None:
    source = write(tmp_path, mlp())

    made = prepare(source, "onnx", tmp_path / "absent")

    assert made.onnx == source
    assert made.frameworks == ()
    assert made.notes == ()


def test_onnx_with_weights_beside_it_is_left_where_it_is(tmp_path: Path) -> None:
    source = write_external(tmp_path)

    assert prepare(source, "onnx", tmp_path / "absent").onnx == source


def test_what_nothing_converts_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model.xml"
    source.write_text('<net version="11"></net>')

    with pytest.raises(UnsupportedModelError, match="of the runtime 'openvino'"):
        prepare(source, "openvino", tmp_path)


def test_code_is_not_run_unasked(tmp_path: Path) -> None:
    source = tmp_path / "model.pt2"
    source.write_bytes(b"PK\x03\x04")

    with pytest.raises(CodeNotAllowedError):
        prepare(source, "torch_export", tmp_path)


@pytest.mark.slow
def test_another_library_is_a_baseline_beside_its_conversion(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost", reason="needs the extra `xgboost`")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, 4)).astype(np.float32)
    booster = xgboost.XGBRegressor(n_estimators=3, max_depth=2).fit(rows, rows[:, 0])
    source = tmp_path / "model.ubj"
    booster.save_model(source)

    made = prepare(source, "", tmp_path)

    (framework,) = made.frameworks
    assert (framework.name, framework.runtime, framework.path) == ("xgboost", "xgboost", source)
    (want,) = load_model(source, "xgboost", CPU).run({"input": rows}).values()
    (got,) = load_model(made.onnx, "onnx", CPU).run({"input": rows}).values()
    assert np.abs(want - got).max() < 1e-5
    (note,) = made.notes
    assert note.startswith("converted from xgboost to ONNX by onnxmltools")
    source.write_bytes(b"no model any more")
    assert is_prepared(tmp_path)
    assert prepare(source, "xgboost", tmp_path) == made


@pytest.mark.parametrize("left", [b"", b"{}", b'{"library": 1, "note": ""}'])
def test_a_conversion_that_was_not_finished_is_none(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "prepared.json").write_bytes(b'{"library": "x 1", "note": "made"}')
    assert not is_prepared(tmp_path)
    (tmp_path / "model.onnx").write_bytes(mlp())
    assert is_prepared(tmp_path)
    (tmp_path / "prepared.json").write_bytes(left)

    assert not is_prepared(tmp_path)
    with pytest.raises(UnsupportedModelError):
        prepare(tmp_path / "absent.ubj", "xgboost", tmp_path)


@pytest.mark.torch
@pytest.mark.slow
def test_a_torchscript_file_is_run_eagerly_too(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra `torch`")
    from tests.torch_models import PERCEPTRONS, ROWS  # noqa: PLC0415  # imports PyTorch

    saved = PERCEPTRONS["traced"](tmp_path)

    made = prepare(saved.path, "torchscript", tmp_path, allow_code=True)

    (framework,) = made.frameworks
    assert (framework.name, framework.runtime) == ("torch-eager", "torchscript")
    (want,) = load_model(saved.path, "torchscript", CPU).run({"x": ROWS}).values()
    (got,) = load_model(made.onnx, "onnx", CPU).run({"x": ROWS}).values()
    assert np.abs(want - got).max() < 1e-5
