"""What the peers' servers have in common: settings, one model, rows as batches.

Runs in the environments of peers: standard library, NumPy and ONNX Runtime only.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.session import session

Array = np.ndarray[Any, Any]
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
"""As ONNX Runtime names them."""


def setting(name: str) -> str:
    """One of the variables that `bench.peers.launch.Launch` sets, without its prefix."""
    return os.environ[f"PEER_{name}"]


def port() -> int:
    """Where HTTP is served."""
    return int(setting("PORT"))


def max_batch() -> int:
    """The most rows of one run."""
    return int(setting("MAX_BATCH"))


class Model:
    """The model in ONNX Runtime, with one thread."""

    def __init__(self) -> None:
        self.name = setting("NAME")
        self._session = session(Path(setting("MODEL")))
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self.inputs = {
            takes.name: (DTYPES[takes.type], takes.shape[1:])
            for takes in self._session.get_inputs()
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output of whole tensors `[batch, ...]`."""
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))

    def tensors(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Nested lists as tensors, each of the type that the model takes."""
        return {name: np.asarray(given[name], dtype) for name, (dtype, _) in self.inputs.items()}

    def raw(self, body: bytes) -> dict[str, Array]:
        """The bytes of the only input, without its batch axis."""
        ((name, (dtype, shape)),) = self.inputs.items()
        return {name: np.frombuffer(body, dtype).reshape(shape)}

    def run_rows(self, rows: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """A batch of rows without their batch axis; a row of every output for each.

        Rows of different lengths are padded with 0 to the longest, as tokenizers pad.
        """
        answers = self.run({name: _stack([row[name] for row in rows]) for name in self.inputs})
        return [{name: answers[name][at] for name in self.outputs} for at in range(len(rows))]


def _stack(rows: Sequence[Array]) -> Array:
    if all(row.shape == rows[0].shape for row in rows):
        return np.stack(rows)
    whole = np.zeros((len(rows), max(map(len, rows))), rows[0].dtype)
    for at, row in enumerate(rows):
        whole[at, : len(row)] = row
    return whole
