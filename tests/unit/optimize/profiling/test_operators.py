from pathlib import Path

import numpy as np
import pytest

from headrace.optimize.profiling.measure import TOP, by_operator, onnx_times, shares
from headrace.testing import models


def test_shares_sum_to_one_and_the_largest_comes_first() -> None:
    found = shares([("Add", 0.1), ("MatMul", 0.6), ("Add", 0.3)], runs=2)

    assert [one.name for one in found] == ["MatMul", "Add"]
    assert [one.share_ratio for one in found] == pytest.approx([0.6, 0.4])
    assert found[1].run_s == pytest.approx(0.2)
    assert found[1].calls == 1.0


def test_the_many_small_ones_are_others() -> None:
    found = shares([(f"Op{k}", 1.0 + k) for k in range(TOP + 3)], runs=1)

    assert len(found) == TOP + 1
    assert found[-1].name == "3 others"
    assert sum(one.share_ratio for one in found) == pytest.approx(1.0)


def test_nothing_spent_has_no_shares() -> None:
    assert shares([], runs=5) == ()
    assert shares([("Add", 0.0)], runs=5) == ()


def test_first_runs_of_a_trace_do_not_count() -> None:
    def node(op: str, at: int) -> dict[str, object]:
        name = f"{op}_kernel_time"
        return {"cat": "Node", "name": name, "ts": at, "dur": 1000, "args": {"op_name": op}}

    def run(at: int) -> dict[str, object]:
        return {"cat": "Session", "name": "model_run", "ts": at, "dur": 5000}

    trace = [node("Cold", 11), run(10), node("MatMul", 101), run(100), node("Add", 102)]

    assert onnx_times(trace, skip_runs=1) == [("MatMul", 0.001), ("Add", 0.001)]


@pytest.mark.parametrize("trace", [{}, None, [1, "x", {}], [{"cat": "Node", "name": 3}]])
def test_a_trace_that_makes_no_sense_says_nothing(trace: object) -> None:
    assert onnx_times(trace) == []


def test_a_model_says_where_its_time_goes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.mlp())
    inputs = {"x": np.zeros((1, 32), np.float32)}
    import onnxruntime as ort  # noqa: PLC0415  # the name of its input

    name = ort.InferenceSession(path).get_inputs()[0].name

    found = by_operator(path, "onnx", {name: inputs["x"]}, rows=1, length=0, folder=tmp_path)

    assert found.reason == ""
    assert any("Gemm" in one.name or "MatMul" in one.name for one in found.items)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_other_runtimes_say_that_it_is_not_available(tmp_path: Path) -> None:
    found = by_operator(tmp_path, "xgboost", {}, rows=1, length=0, folder=tmp_path)

    assert found.reason == "not available for the runtime 'xgboost'"
    assert found.items == ()


def test_a_profiler_that_fails_is_a_reason_not_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"nothing")

    found = by_operator(path, "onnx", {}, rows=1, length=0, folder=tmp_path)

    assert found.items == ()
    assert found.reason
