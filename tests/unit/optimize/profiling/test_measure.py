"""Measurement of a model, and its operators."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from headrace.optimize.profiling.measure import TOP, by_operator, onnx_times, profile, shares
from headrace.optimize.profiling.messages import (
    Event,
    GridCell,
    ModelMemory,
    Operators,
    ProfileFailed,
    ProfileNote,
    ProfileRequest,
    gathered,
)
from headrace.testing import models

pytestmark = pytest.mark.slow


def measure(path: Path, **given: object) -> list[Event]:
    found: list[Event] = []
    request = ProfileRequest(path=str(path), **{"budget_s": 0.6, **given})  # type: ignore[arg-type]  # named by the tests
    ticks = itertools.count()
    profile(request, found.append, lambda: next(ticks) / 1000)  # however busy this machine is
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_is_measured_over_rows_runs_and_threads(here: Path) -> None:
    path = here / "m.onnx"
    path.write_bytes(models.mlp())

    events = measure(path, cores=2, rows=(1, 8))

    found = gathered(events)
    assert found is not None
    assert found.complete
    settings = {(cell.threads, cell.runs, cell.rows) for cell in found.cells}
    assert settings >= {(1, 1, 1), (1, 1, 8), (1, 2, 1), (2, 1, 8)}
    assert all(cell.p99_s >= cell.p50_s > 0.0 for cell in found.cells)
    assert found.memory is not None
    assert found.memory.largest_bytes > 0
    assert found.operators.items
    assert found.loaded.length == 0


def test_lengths_are_found_by_trying(here: Path) -> None:
    path = here / "m.onnx"
    path.write_bytes(models.encoder())

    found = gathered(measure(path, rows=(1,), threads=(1,)))

    assert found is not None
    assert len({cell.length for cell in found.cells}) > 1
    assert found.loaded.length in found.loaded.lengths


def test_a_length_that_the_model_refuses_is_noted(here: Path) -> None:
    path = here / "m.onnx"
    path.write_bytes(models.encoder())

    events = measure(path, rows=(1,), threads=(1,), lengths=(16, 1_000_000))

    lengths = {event.length for event in events if isinstance(event, GridCell)}
    noted = [event.text for event in events if isinstance(event, ProfileNote)]
    assert 16 in lengths
    assert 1_000_000 in lengths or any("length 1000000" in text for text in noted)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\x08\x07" + b"x" * 50, "m.onnx")]
)
def test_what_is_no_model_is_said_to_be_none(here: Path, content: bytes, said: str) -> None:
    path = here / "m.onnx"
    path.write_bytes(content)

    (event,) = measure(path)

    assert isinstance(event, ProfileFailed)
    assert said in event.error


def test_code_is_not_run_unless_it_is_allowed(here: Path) -> None:
    folder = here / "double"
    folder.mkdir()
    mark = here / "ran"
    text = models.python_double()
    (folder / "model.py").write_text(f"open({str(mark)!r}, 'w').close()\n{text}")

    (refused,) = measure(folder)

    assert isinstance(refused, ProfileFailed)
    assert refused.needs_code == "python"
    assert not mark.exists()
    allowed = measure(folder, allow_code=True, rows=(1, 2))
    kinds = {type(event) for event in allowed}
    assert kinds >= {GridCell, ModelMemory, Operators}
    assert mark.exists()


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
