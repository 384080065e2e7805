"""Exported programs: their own shapes and bounds, what they keep, what is refused and why."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    InvalidArgumentError,
    RowIndependence,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, inspect_model, load_model
from tests.torch_models import (
    FEATURES,
    ROWS,
    answered,
    by_row,
    example,
    export,
    exported_perceptron,
    nn,
    torch,
    trained,
)

pytestmark = [pytest.mark.torch, pytest.mark.slow]

CPU = LoadOptions(device="cpu")
Dim = torch.export.Dim


class Mixed(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Nested and named arguments, one of which is always the same."""

    def forward(self, pair: tuple[Any, Any], *, scale: int, extra: dict[str, Any]) -> Any:
        low, high = pair
        return {"sum": (low + high) * scale, "half": (extra["z"] / 2, extra["z"].sum())}


class Counts(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.runs.add_(1)
        return x + self.runs


class InPlace(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: Any) -> Any:
        return (x * 2).relu_()


class Half(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: Any) -> Any:
        return x * 2


class Cumulative(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: Any) -> Any:
        return torch.cumsum(x, 0)


def test_shapes_and_datatypes_are_the_programs_own(tmp_path: Path) -> None:
    saved = exported_perceptron(tmp_path)

    seen = inspect_model(saved.path, allow_code=True)
    (spec,) = seen.signature.inputs

    assert seen.runtime == "torch_export"
    assert (spec.name, spec.datatype, spec.shape) == ("x", Datatype.FP32, (-1, FEATURES))
    assert seen.signature.outputs[0].shape == (-1, 3)
    assert seen.signature.row_independence is RowIndependence.PROVEN
    assert seen.signature.batched


def test_nested_and_named_arguments_are_flattened(tmp_path: Path) -> None:
    x = torch.ones(2, 3)
    path = tmp_path / "m.pt2"
    options = {"kwargs": {"scale": 3, "extra": {"z": torch.ones(4, dtype=torch.float64)}}}
    saved = export(path, Mixed(), (x, x * 2), **options)

    model = load_model(saved.path, "", CPU)
    inputs = [(spec.name, spec.datatype, spec.shape) for spec in model.signature.inputs]
    answers = model.run(
        {
            "pair_0": np.ones((2, 3), np.float32),
            "pair_1": np.ones((2, 3), np.float32),
            "extra_z": np.full(4, 8.0),
        }
    )

    assert inputs == [
        ("pair_0", Datatype.FP32, (2, 3)),
        ("pair_1", Datatype.FP32, (2, 3)),
        ("extra_z", Datatype.FP64, (4,)),
    ]
    assert answers["sum"].tolist() == [[6.0] * 3] * 2
    assert answers["half_0"].tolist() == [4.0] * 4
    assert answers["half_1"] == 32


def test_more_rows_than_it_was_exported_for_run_in_pieces(tmp_path: Path) -> None:
    dims = {"dynamic_shapes": {"x": {0: Dim("rows", max=4)}}}
    saved = export(tmp_path / "m.pt2", trained(), example(3), **dims)

    model = load_model(saved.path, "", replace(CPU, rows_independent=True))
    (answer,) = model.run({"x": ROWS[:11]}).values()

    assert model.signature.batched
    assert np.abs(answer - answered(trained(), ROWS[:11])).max() <= 1e-6


def test_pieces_are_not_made_where_rows_depend_on_each_other(tmp_path: Path) -> None:
    dims = {"dynamic_shapes": {"x": {0: Dim("rows", max=4)}}}
    saved = export(tmp_path / "m.pt2", Cumulative(), example(3), **dims)

    model = load_model(saved.path, "", CPU)

    assert not model.signature.batched
    with pytest.raises(InvalidArgumentError, match="was not exported for this input: Guard failed"):
        model.run({"x": ROWS[:5]})


def test_bfloat16_is_single_precision_to_callers(tmp_path: Path) -> None:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    model = load_model(export(tmp_path / "m.pt2", Half(), x, **by_row()).path, "", CPU)

    answer = model.run({"x": np.full((1, 2), 1.5, np.float32)})["output"]

    assert model.signature.inputs[0].datatype is Datatype.FP32
    assert answer.dtype == np.float32
    assert answer.tolist() == [[3.0, 3.0]]


def test_a_program_that_counts_is_refused(tmp_path: Path) -> None:
    saved = export(tmp_path / "m.pt2", Counts(), example(), **by_row())

    with pytest.raises(UnsupportedModelError, match="keeps state between requests"):
        load_model(saved.path, "", CPU)


def test_operators_in_place_on_its_own_values_are_harmless(tmp_path: Path) -> None:
    model = load_model(export(tmp_path / "m.pt2", InPlace(), example(), **by_row()).path, "", CPU)
    inputs = ROWS[:2].copy()

    model.run({"x": inputs})

    assert model.concurrent
    assert np.array_equal(inputs, ROWS[:2])


def test_tensors_may_be_renamed_and_narrowed(tmp_path: Path) -> None:
    declared = {
        "inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [7, FEATURES]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
    }
    files = {"signature.json": json.dumps(declared)}
    saved = export(tmp_path / "m.pt2", trained(), example(), **by_row(), extra_files=files)

    signature = load_model(saved.path, "", CPU).signature

    assert signature.inputs[0].name == "INPUT__0"
    assert signature.inputs[0].shape == (7, FEATURES)
    assert signature.outputs[0].name == "scores"
    assert not signature.batched


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (
            {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, FEATURES]}]},
            r"declares 'x' as FP64 \[-1, 5\], but the program takes FP32 \[-1, 5\]",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]},
            r"but the program takes FP32 \[-1, 5\]",
        ),
        ({"values": {"x": 1}}, "'values' or 'method', which exported programs do not have"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(
    tmp_path: Path, declared: object, reason: str
) -> None:
    files = {"signature.json": json.dumps(declared)}
    saved = export(tmp_path / "m.pt2", trained(), example(), **by_row(), extra_files=files)

    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(saved.path, "", CPU)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    x = torch.ones(2, 2, dtype=torch.complex64)
    saved = export(tmp_path / "m.pt2", Half(), x, **by_row())

    with pytest.raises(UnsupportedModelError, match=r"input 'x' is torch.complex64, which the"):
        load_model(saved.path, "", CPU)


def test_an_absurd_shape_is_refused_before_anything_is_made_of_it(tmp_path: Path) -> None:
    saved = export(tmp_path / "m.pt2", Half(), torch.ones(2, 3), **by_row())
    path = tmp_path / "changed.pt2"
    with zipfile.ZipFile(saved.path) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("models/model.json"):
                data = data.replace(b'{"as_int": 3}', b'{"as_int": 3000000000}')
            new.writestr(entry.filename, data)

    with pytest.raises(UnsupportedModelError, match="a request may not have more than"):
        load_model(path, "", CPU)


@pytest.mark.parametrize("record", ["models/model.json", "data/weights/weight_0"])
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, record: str) -> None:
    saved = exported_perceptron(tmp_path)
    path = tmp_path / "changed.pt2"
    with zipfile.ZipFile(saved.path) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data[:10] if entry.filename.endswith(record) else data)

    with pytest.raises(UnsupportedModelError, match=r"changed\.pt2: PyTorch cannot load it"):
        load_model(path, "", CPU)


def test_compiled_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/aotinductor/model/lib.so", b"\x7fELF")

    with pytest.raises(UnsupportedModelError, match="machine code compiled by AOTInductor"):
        load_model(path, "", CPU)


def test_code_has_to_be_allowed_because_pickles_are_read(tmp_path: Path) -> None:
    """The reason that `runs_code` is True: what is marked as a pickle is read as one."""
    target = tmp_path / "written-by-the-model"
    saved = exported_perceptron(tmp_path)
    path = tmp_path / "changed.pt2"
    # `exec` of a line that writes a file, as any pickle may have it.
    line = f"open({str(target)!r}, 'w').close()"
    code = b"cbuiltins\nexec\n(V" + line.encode() + b"\ntR."
    with zipfile.ZipFile(saved.path) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif entry.filename.endswith("data/weights/weight_0"):
                data = code
            new.writestr(entry.filename, data)

    with pytest.raises(CodeNotAllowedError):
        inspect_model(path)
    assert not target.exists()
    with pytest.raises(UnsupportedModelError):
        inspect_model(path, allow_code=True)
    assert target.exists()


def test_what_fails_inside_is_one_line(tmp_path: Path) -> None:
    class Looks(nn.Module):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, x: Any) -> Any:
            return self.table(x)

    x = torch.ones(2, 2, dtype=torch.int64)
    model = load_model(export(tmp_path / "m.pt2", Looks(), x, **by_row()).path, "", CPU)

    with pytest.raises(RuntimeFailedError, match="the model failed: index out of range in self"):
        model.run({"x": np.full((1, 2), 99)})
