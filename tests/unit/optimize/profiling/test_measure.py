import itertools
from pathlib import Path

import pytest

from headrace.optimize.profiling.measure import profile
from headrace.optimize.profiling.messages import (
    Cell,
    Event,
    Failed,
    Memory,
    Note,
    Operators,
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

    lengths = {event.length for event in events if isinstance(event, Cell)}
    noted = [event.text for event in events if isinstance(event, Note)]
    assert 16 in lengths
    assert 1_000_000 in lengths or any("length of 1000000" in text for text in noted)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\x08\x07" + b"x" * 50, "m.onnx")]
)
def test_what_is_no_model_is_said_to_be_none(here: Path, content: bytes, said: str) -> None:
    path = here / "m.onnx"
    path.write_bytes(content)

    (event,) = measure(path)

    assert isinstance(event, Failed)
    assert said in event.error


def test_code_is_not_run_unless_it_is_allowed(here: Path) -> None:
    folder = here / "double"
    folder.mkdir()
    mark = here / "ran"
    text = models.python_double()
    (folder / "model.py").write_text(f"open({str(mark)!r}, 'w').close()\n{text}")

    (refused,) = measure(folder)

    assert isinstance(refused, Failed)
    assert refused.needs_code == "python"
    assert not mark.exists()
    allowed = measure(folder, allow_code=True, rows=(1, 2))
    kinds = {type(event) for event in allowed}
    assert kinds >= {Cell, Memory, Operators}
    assert mark.exists()
