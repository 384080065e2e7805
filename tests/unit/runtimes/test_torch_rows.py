"""Row analysis of PyTorch's files: networks that are proven, and modules that never are."""

import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings

from headrace.core import VARIABLE, Datatype, RowIndependence, TensorSpec
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.rows.torch_graph import analyse_torch_graph
from headrace.runtimes.rows.torchscript import analyse_torchscript
from headrace.runtimes.rows.values import RowVerdict
from tests.random_torch import SIZES, Program, Step, programs
from tests.torch_models import no_warnings, torch
from tests.torch_networks import (
    FLOATS,
    MIXING,
    NOT_EXPORTED,
    ROWS,
    USUAL,
    coupled_by_a_rare_value,
    inputs,
    outputs,
)

pytestmark = [pytest.mark.torch, pytest.mark.slow]

_DATATYPES = {torch.float32: Datatype.FP32, torch.int64: Datatype.INT64}


def exported(folder: Path, module: Any, examples: tuple[Any, ...]) -> RowVerdict:
    """The verdict on a module as an exported program, whose axis 0 may have any size."""
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    path = folder / "m.pt2"
    with no_warnings():
        program = torch.export.export(module, examples, dynamic_shapes=sizes)
        torch.export.save(program, str(path))
    return by_graph(path)


def decomposed(folder: Path, module: Any, examples: tuple[Any, ...]) -> RowVerdict:
    """The same of the program in terms of PyTorch's core operators."""
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    path = folder / "m.pt2"
    with no_warnings():
        program = torch.export.export(module, examples, dynamic_shapes=sizes)
        torch.export.save(program.run_decompositions(), str(path))
    return by_graph(path)


def by_graph(path: Path) -> RowVerdict:
    """The verdict on an exported program's file."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        return analyse_torch_graph(archive.read(name))


def traced(folder: Path, module: Any, examples: tuple[Any, ...]) -> RowVerdict:
    """The verdict on a module as it is traced."""
    path = folder / "m.pt"
    with no_warnings():
        torch.jit.save(torch.jit.trace(module, examples, check_trace=False), str(path))
    return by_code(path, examples)


def scripted(folder: Path, module: Any, examples: tuple[Any, ...]) -> RowVerdict:
    """The verdict on a module as it is scripted."""
    path = folder / "m.pt"
    with no_warnings():
        torch.jit.save(torch.jit.script(module), str(path))
    return by_code(path, examples)


def by_code(path: Path, examples: tuple[Any, ...]) -> RowVerdict:
    """The verdict on a TorchScript file."""
    with no_warnings():
        arguments = torch.jit.load(str(path)).forward.schema.arguments[1:]
    specs = {
        argument.name: TensorSpec(
            name=argument.name,
            datatype=_DATATYPES[tensor.dtype],
            shape=(VARIABLE, *tensor.shape[1:]),
        )
        for argument, tensor in zip(arguments, examples, strict=True)
    }
    return analyse_torchscript(path, "forward", specs, {})


Saved = Callable[[Path, Any, tuple[Any, ...]], RowVerdict]
WAYS: dict[str, Saved] = {
    "exported": exported,
    "decomposed": decomposed,
    "traced": traced,
    "scripted": scripted,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", USUAL)
def test_usual_networks_are_proven_and_answer_rows_as_alone(
    name: str, way: str, tmp_path: Path
) -> None:
    make, example = USUAL[name]
    torch.manual_seed(0)
    module = make().eval()
    if way == "scripted" and hasattr(module, "computed"):
        pytest.skip("a function in an attribute is not scripted")
    if (name, way) == ("gru", "decomposed"):
        pytest.skip("PyTorch's decomposition joins all steps of all rows")
    batch = inputs(example, ROWS)

    verdict = WAYS[way](tmp_path, module, batch)
    with torch.inference_mode():
        together = outputs(module(*batch))
        alone = [outputs(module(*(part[i : i + 1] for part in batch))) for i in range(ROWS)]

    assert verdict.why_not == ""
    for number, output in enumerate(together):
        rows = torch.cat([answer[number] for answer in alone])
        assert torch.allclose(output, rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["exported", "decomposed", "traced"])
@pytest.mark.parametrize("name", MIXING)
def test_modules_that_mix_rows_are_never_proven(name: str, way: str, tmp_path: Path) -> None:
    if name in NOT_EXPORTED and way != "traced":
        pytest.skip("PyTorch exports it for one number of rows only")
    torch.manual_seed(0)
    module = MIXING[name]().eval()
    rows = torch.randn(4, *FLOATS)

    verdict = WAYS[way](tmp_path, module, (rows,))

    assert verdict.why_not


@pytest.mark.parametrize("way", ["exported", "traced"])
def test_a_model_that_no_run_refutes_is_served_unbatched_and_names_the_operator(
    way: str, tmp_path: Path
) -> None:
    module = coupled_by_a_rare_value()
    WAYS[way](tmp_path, module, (torch.randn(4, *FLOATS),))
    (path,) = tmp_path.iterdir()

    signature = load_model(path, "", LoadOptions(device="cpu")).signature
    declared = load_model(path, "", LoadOptions(device="cpu", rows_independent=True)).signature

    assert not signature.batched
    assert signature.row_independence is RowIndependence.UNPROVEN
    assert re.search(
        r"(aten\.max\.default|torch\.max)\)? reduces along the batch axis", signature.row_reason
    )
    assert declared.row_independence is RowIndependence.DECLARED


def check(steps: list[Step], way: Saved, run: Callable[[Path], Callable[[Any], Any]]) -> str:
    """Compare a random program that is called independent with its rows alone.

    Returns:
        What became of it.
    """
    torch.manual_seed(1)
    program = Program(steps).eval()
    with tempfile.TemporaryDirectory() as folder:
        try:
            verdict = way(Path(folder), program, (torch.randn(4, *SIZES),))
        except Exception as error:  # noqa: BLE001  # the exporter's errors share no base class
            # The exporter takes it for one number of rows only, or does not take it.
            return f"not saved: {type(error).__name__}"
        if not verdict.is_proven:
            return "not proven"
        (path,) = Path(folder).iterdir()
        saved = run(path)
        for rows, scale in ((3, 1.0), (5, 100.0)):
            x = torch.randn(rows, *SIZES) * scale
            with torch.inference_mode():
                try:
                    together = outputs(saved(x.clone()))
                    alone = [outputs(saved(x[i : i + 1].clone())) for i in range(rows)]
                except (RuntimeError, IndexError, AssertionError):
                    return "proven, but takes not these rows"
            for number, output in enumerate(together):
                want = torch.cat([answer[number] for answer in alone])
                assert output.shape == want.shape, program.steps
                assert torch.allclose(output, want, rtol=1e-3, atol=1e-4 * scale), program.steps
    return "proven"


def load_traced(path: Path) -> Callable[[Any], Any]:
    with no_warnings():
        loaded: Callable[[Any], Any] = torch.jit.load(str(path))
    return loaded


def load_exported(path: Path) -> Callable[[Any], Any]:
    loaded: Callable[[Any], Any] = torch.export.load(str(path)).module()
    return loaded


@pytest.mark.filterwarnings(
    "ignore:Use of masked_fill_ on expanded"
)  # random programs may fill one
@given(programs())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_traced_programs_that_are_called_independent_are(steps: list[Step]) -> None:
    event(check(steps, traced, load_traced))


@pytest.mark.filterwarnings(
    "ignore:Use of masked_fill_ on expanded"
)  # random programs may fill one
@given(programs())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_exported_programs_that_are_called_independent_are(steps: list[Step]) -> None:
    event(check(steps, exported, load_exported))


@pytest.mark.long
@pytest.mark.filterwarnings(
    "ignore:Use of masked_fill_ on expanded"
)  # random programs may fill one
@given(programs())
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_for_many_traced_programs(steps: list[Step]) -> None:
    event(check(steps, traced, load_traced))
