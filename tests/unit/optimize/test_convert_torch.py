"""What PyTorch saved is converted to ONNX that answers as the module does."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import CodeNotAllowedError, Datatype, UnsupportedModelError
from headrace.optimize import Conversion
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source, source_runtime
from headrace.runtimes import inspect_model, load_model
from tests.torch_models import (
    FEATURES,
    PERCEPTRONS,
    ROWS,
    SIGNATURE,
    SILERO,
    answered,
    export,
    nn,
    script,
    silero,
    torch,
    trace,
    trained,
)

pytestmark = [pytest.mark.torch, pytest.mark.slow]

pytest.importorskip("onnx", reason="needs the extra `convert`")
ROUNDING = 1e-6
"""Of a probability: other kernels sum in another order."""


def made(path: Path) -> tuple[Path, Conversion]:
    source = open_source(path, source_runtime(path), allow_code=True)
    target = path.with_suffix(".onnx")
    return target, convert(source, target, max_changed_ratio=0.001)


@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_each_kind_of_file_is_converted_and_answers_the_same(tmp_path: Path, kind: str) -> None:
    saved = PERCEPTRONS[kind](tmp_path)

    target, conversion = made(saved.path)

    model = load_model(target)
    before, after = inspect_model(saved.path, allow_code=True), inspect_model(target)
    assert after.signature == replace(before.signature, batched=True)
    assert after.signature.batched
    assert not after.runs_code
    for rows in (ROWS[:1], ROWS):
        (answer,) = model.run({"x": rows}).values()
        assert np.abs(answer - answered(saved.module, rows)).max() < ROUNDING
    assert conversion.converter == conversion.library == f"torch {version('torch')}"
    assert conversion.differences.inputs == "1024 generated rows"
    assert conversion.differences.largest_relative < 1e-4


class Words(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Sentences of any length with a mask; a dictionary of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        words = self.table(ids) * mask.unsqueeze(-1)
        mean = words.sum(1) / (mask.sum(1, keepdim=True) + 1)
        return {"scores": self.head(mean), "words": words}


def scripted_words(folder: Path) -> Path:
    inputs = [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in ("ids", "mask")]
    return script(folder / "words.pt", Words().eval(), {"inputs": inputs}).path


def exported_words(folder: Path) -> Path:
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64)
    shapes = {"ids": axes, "mask": axes}
    return export(folder / "words.pt2", Words().eval(), ids, mask, dynamic_shapes=shapes).path


@pytest.mark.parametrize("save", [scripted_words, exported_words])
def test_axes_that_vary_stay_so(save: Callable[[Path], Path], tmp_path: Path) -> None:
    path = save(tmp_path)
    target, conversion = made(path)
    ids = np.random.default_rng(1).integers(0, 16, (5, 11))
    asked = {"ids": ids, "mask": (ids > 3).astype(np.int64)}
    want = load_model(path).run(asked)
    model = load_model(target)

    assert model.signature.inputs[0].shape == (-1, -1)
    for name, answer in model.run(asked).items():
        assert np.abs(answer - want[name]).max() < ROUNDING
    assert conversion.differences.inputs.endswith(
        "rows of size 1 and 1024 generated rows of size 8"
    )


class Branches(nn.Module):  # type: ignore[misc]  # as above
    """Goes another way for other values, and round a loop for each column."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2 if bool(x.sum() > 0) else x - 1
        for i in range(x.size(1)):
            y = y + i
        return y

    def score(self, x: torch.Tensor, times: int, plus: float) -> torch.Tensor:
        return x * times + plus


torch.jit.export(Branches.score)  # scripted along with `forward`


def test_loops_and_branches_stay_what_they_are(tmp_path: Path) -> None:
    signature = SIGNATURE | {"batched": False}
    saved = script(tmp_path / "branches.pt", Branches(), signature)

    target, conversion = made(saved.path)

    model = load_model(target)
    for rows in (ROWS[:3], np.abs(ROWS[:4]), -np.abs(ROWS[:4])):
        (answer,) = model.run({"x": rows}).values()
        assert np.array_equal(answer, answered(saved.module, rows))
    assert conversion.differences.inputs.startswith("generated requests")
    assert conversion.differences.rows >= 4


def test_the_method_and_the_values_that_were_written_down_are_converted(tmp_path: Path) -> None:
    signature = SIGNATURE | {"method": "score", "values": {"times": 3, "plus": 1.5}}
    target, _ = made(script(tmp_path / "method.pt", Branches(), signature).path)

    (answer,) = load_model(target).run({"x": ROWS}).values()

    assert np.allclose(answer, ROWS * 3 + 1.5, rtol=1e-6)


def test_doubles_are_compared_as_doubles(tmp_path: Path) -> None:
    saved = trace(tmp_path / "d.pt", nn.Linear(FEATURES, 2).double(), torch.rand(2, 5).double())

    _, conversion = made(saved.path)

    assert conversion.computes is Datatype.FP64
    assert conversion.differences.largest_relative < 1e-12


class First(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        del y
        return x * 2


def test_an_input_that_nothing_uses_is_still_taken(tmp_path: Path) -> None:
    saved = trace(tmp_path / "first.pt", First(), torch.rand(2, 5), torch.rand(2, 5))
    target, _ = made(saved.path)

    (answer,) = load_model(target).run({"x": ROWS, "y": ROWS}).values()

    assert np.array_equal(answer, ROWS * 2)


class Times(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
        return x * times


def test_what_tracing_would_fix_is_refused_with_a_way_out(tmp_path: Path) -> None:
    number = {"name": "times", "datatype": "INT64", "shape": []}
    inputs: list[Any] = [*SIGNATURE["inputs"], number]
    path = script(tmp_path / "times.pt", Times(), {"inputs": inputs}).path

    with pytest.raises(UnsupportedModelError, match=r"'times' is one number.*in 'values'"):
        made(path)
    assert not path.with_suffix(".onnx").exists()


class Places(nn.Module):  # type: ignore[misc]  # as above
    """Computes with the sizes of what it is given, as transformers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length = x.shape
        flat = x.reshape(rows * length) * 2
        return flat.reshape(rows, length) + torch.arange(length)


def test_an_exported_program_that_computes_with_its_sizes_keeps_them_open(tmp_path: Path) -> None:
    axes = {"x": {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}}
    path = export(tmp_path / "places.pt2", Places(), torch.rand(2, 4), dynamic_shapes=axes).path
    target, _ = made(path)

    (answer,) = load_model(target).run({"x": ROWS}).values()

    assert np.array_equal(answer, ROWS * 2 + np.arange(FEATURES, dtype=np.float32))


def test_what_the_exporter_does_not_know_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "model.jit").write_bytes(silero().read_bytes())
    (folder / "signature.json").write_text(SILERO)

    with pytest.raises(UnsupportedModelError, match=r"^torch .* cannot convert it: \w+: "):
        made(folder)


def test_nothing_runs_where_code_is_not_allowed(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    script(path, trained(), SIGNATURE)

    with pytest.raises(CodeNotAllowedError, match=r"scripted\.pt: .*--allow-code"):
        open_source(path, source_runtime(path), allow_code=False)
