"""Small modules of PyTorch's, trained and saved in no time; skips where PyTorch is absent."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest

from headrace.core import Array

torch: Any = pytest.importorskip(
    "torch", reason="PyTorch is not installed: make test SUITE=all installs it"
)
nn: Any = torch.nn
FEATURES: Final = 5
CLASSES: Final = 3
_RNG: Final = np.random.default_rng(7)
ROWS: Final[Array] = _RNG.normal(size=(240, FEATURES)).astype(np.float32)
LABELS: Final[Array] = (ROWS[:, 0] * 2 + ROWS[:, 1] > 0).astype(np.int64) + (ROWS[:, 2] > 1)
SIGNATURE: Final = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, FEATURES]}]}


class Saved(NamedTuple):
    """A file, and the module that was saved to it."""

    path: Path
    module: Any


class Perceptron(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """What is trained: normalised, with dropout, so that training and answering differ."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.body(x)), dim=1)


@cache
def trained() -> Any:
    """A perceptron that tells the classes of `ROWS`."""
    torch.manual_seed(3)
    module = Perceptron()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    rows, labels = torch.from_numpy(ROWS), torch.from_numpy(LABELS)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.nll_loss(torch.log(module(rows)), labels).backward()
        optimizer.step()
    return module.eval()


@contextmanager
def no_warnings() -> Iterator[None]:
    """PyTorch calls TorchScript deprecated wherever it is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def script(
    path: Path, module: Any, signature: Mapping[str, object] | None = None, *, train: bool = False
) -> Saved:
    """A scripted module's file; `signature` becomes its extra file."""
    extra = {} if signature is None else {"signature.json": json.dumps(signature)}
    with no_warnings():
        scripted = torch.jit.script(module.train(train))
        torch.jit.save(scripted, str(path), _extra_files=extra)
    return Saved(path, module)


def trace(path: Path, module: Any, *examples: Any) -> Saved:
    """A traced module's file."""
    with no_warnings():
        torch.jit.save(torch.jit.trace(module.eval(), examples), str(path))
    return Saved(path, module)


def export(path: Path, module: Any, *examples: Any, **options: Any) -> Saved:
    """An exported program's file; `options` go to `torch.export.export`."""
    extra = options.pop("extra_files", None)
    with no_warnings():
        exported = torch.export.export(module.eval(), examples, **options)
        torch.export.save(exported, str(path), extra_files=extra)
    return Saved(path, module)


def by_row() -> dict[str, Any]:
    """Options of an export whose axis 0 may have any size."""
    return {"dynamic_shapes": {"x": {0: torch.export.Dim("rows")}}}


def example(rows: int = 2) -> Any:
    """An input to trace and export with."""
    return torch.from_numpy(ROWS[:rows].copy())


def scripted_perceptron(folder: Path) -> Saved:
    return script(folder / "scripted.pt", trained(), SIGNATURE)


def traced_perceptron(folder: Path) -> Saved:
    return trace(folder / "traced.pt", trained(), example())


def exported_perceptron(folder: Path) -> Saved:
    return export(folder / "exported.pt2", trained(), example(), **by_row())


PERCEPTRONS: Final[Mapping[str, Callable[[Path], Saved]]] = {
    "scripted": scripted_perceptron,
    "traced": traced_perceptron,
    "exported": exported_perceptron,
}


def answered(module: Any, *inputs: Array) -> Array:
    """What a module answers in this process."""
    with torch.inference_mode():
        found: Array = module(*(torch.from_numpy(one) for one in inputs)).numpy()
    return found


@cache
def silero() -> Path:
    """The TorchScript file of the wheel `silero-vad`; skips where there is none."""
    from importlib.util import find_spec  # noqa: PLC0415  # nothing of it is imported

    found = find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        pytest.skip("silero-vad is not installed: make test SUITE=all installs it")
    return Path(found.submodule_search_locations[0]) / "data" / "silero_vad.jit"


SILERO: Final = json.dumps(
    {
        "method": "audio_forward",
        "values": {"sr": 16000},
        "inputs": [{"name": "audio", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [{"name": "speech", "datatype": "FP32", "shape": [-1, -1]}],
        "batched": True,
    }
)
"""What silero's file does not say: a whole recording in, a probability for each 512 samples out."""
