"""One perceptron, wide enough that INT8 gains: as PyTorch saves it and as Keras does."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from headrace.core import Array
from tests.savedmodels import tensorflow

FEATURES: Final = 64
WIDTH: Final = 1024
CLASSES: Final = 3
_RNG: Final = np.random.default_rng(11)
LABELS: Final[Array] = _RNG.integers(0, CLASSES, 600)
ROWS: Final[Array] = (
    _RNG.normal(size=(CLASSES, FEATURES))[LABELS] + 0.4 * _RNG.normal(size=(600, FEATURES))
).astype(np.float32)
"""Of classes that are far apart, so that no rounding changes one."""


@cache
def weights() -> tuple[Array, ...]:
    """Of three layers that were drawn, and of the last, which is fitted to the labels."""
    rng = np.random.default_rng(12)
    sizes = ((FEATURES, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH))
    drawn = [(rng.normal(size=size) * (2 / size[0]) ** 0.5).astype(np.float32) for size in sizes]
    hidden = _hidden(drawn, ROWS)
    wanted = 6 * np.eye(CLASSES)[LABELS] - 2
    head, *_ = np.linalg.lstsq(hidden, wanted, rcond=1e-3)
    return (*drawn, head.astype(np.float32))


def _hidden(layers: list[Array], rows: Array) -> Array:
    found = rows
    for layer in layers:
        found = np.maximum(found @ layer, 0)
    return found


def expected(rows: Array) -> Array:
    """What it answers, about 4 for the class and -2 for the others: [N, 3]."""
    *layers, head = weights()
    answer: Array = _hidden(layers, rows) @ head
    return answer


def write_labelled(file: Path) -> Path:
    """`ROWS` with their labels, as `--data` takes them."""
    np.savez(file, x=ROWS, label=LABELS)
    return file


def _module() -> tuple[Any, Any]:
    torch: Any = pytest.importorskip(
        "torch", reason="PyTorch is not installed: make test SUITE=all installs it"
    )
    parts: list[Any] = []
    for matrix in weights():
        layer = torch.nn.Linear(*matrix.shape, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(matrix.T.copy()))
        parts += [layer, torch.nn.ReLU()]

    class Wide(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not always there
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(*parts[:-1])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    return torch, Wide().eval()


def _traced(folder: Path) -> Path:
    from tests.torch_models import trace  # noqa: PLC0415  # imports PyTorch

    torch, module = _module()
    return trace(folder / "wide.pt", module, torch.from_numpy(ROWS[:2].copy())).path


def _exported(folder: Path) -> Path:
    from tests.torch_models import by_row, export  # noqa: PLC0415  # imports PyTorch

    torch, module = _module()
    return export(folder / "wide.pt2", module, torch.from_numpy(ROWS[:2].copy()), **by_row()).path


def _keras(folder: Path) -> Path:
    keras = tensorflow().keras
    layers = [keras.layers.Input((FEATURES,), name="x")]
    *_, last = sizes = [matrix.shape[1] for matrix in weights()]
    assert last == CLASSES
    layers += [keras.layers.Dense(size, activation="relu", use_bias=False) for size in sizes[:-1]]
    layers.append(keras.layers.Dense(last, use_bias=False))
    model = keras.Sequential(layers)
    model.set_weights(list(weights()))
    model.export(folder / "wide", verbose=False)
    return folder / "wide"


SAVED: Final[Mapping[str, Callable[[Path], Path]]] = {
    "torchscript": _traced,
    "torch_export": _exported,
    "savedmodel": _keras,
}
"""By runtime: writes the network below a folder, and says where. Takes `x` FP32 [N, 64]."""
