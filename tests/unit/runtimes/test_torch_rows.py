"""Row analysis of PyTorch's files: networks that are proven, and modules that never are."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.core import VARIABLE, Datatype, TensorSpec
from headrace.runtimes.rows.torch_graph import analyse_torch_graph
from headrace.runtimes.rows.torchscript import analyse_torchscript
from headrace.runtimes.rows.values import Verdict
from tests.torch_models import no_warnings, torch
from tests.torch_networks import FLOATS, MIXING, NOT_EXPORTED, ROWS, USUAL, inputs, outputs

pytestmark = [pytest.mark.torch, pytest.mark.slow]

_DATATYPES = {torch.float32: Datatype.FP32, torch.int64: Datatype.INT64}


def exported(folder: Path, module: Any, examples: tuple[Any, ...]) -> Verdict:
    """The verdict on a module as an exported program, whose axis 0 may have any size."""
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    path = folder / "m.pt2"
    with no_warnings():
        program = torch.export.export(module, examples, dynamic_shapes=sizes)
        torch.export.save(program, str(path))
    return by_graph(path)


def decomposed(folder: Path, module: Any, examples: tuple[Any, ...]) -> Verdict:
    """The same of the program in terms of PyTorch's core operators."""
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    path = folder / "m.pt2"
    with no_warnings():
        program = torch.export.export(module, examples, dynamic_shapes=sizes)
        torch.export.save(program.run_decompositions(), str(path))
    return by_graph(path)


def by_graph(path: Path) -> Verdict:
    """The verdict on an exported program's file."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        return analyse_torch_graph(archive.read(name))


def traced(folder: Path, module: Any, examples: tuple[Any, ...]) -> Verdict:
    """The verdict on a module as it is traced."""
    path = folder / "m.pt"
    with no_warnings():
        torch.jit.save(torch.jit.trace(module, examples, check_trace=False), str(path))
    return by_code(path, examples)


def scripted(folder: Path, module: Any, examples: tuple[Any, ...]) -> Verdict:
    """The verdict on a module as it is scripted."""
    path = folder / "m.pt"
    with no_warnings():
        torch.jit.save(torch.jit.script(module), str(path))
    return by_code(path, examples)


def by_code(path: Path, examples: tuple[Any, ...]) -> Verdict:
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


Saved = Callable[[Path, Any, tuple[Any, ...]], Verdict]
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
