"""Scores many rows at once with the model of an endpoint; a row that fails costs itself only.

The same model, features and pipeline as a replica runs, without its queue: whoever has rows already
needs no requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import (
    Code,
    HeadraceError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    check_inputs,
)
from headrace.scoring.loading import LoadedModel

_OF_ALL: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})
"""Errors that say nothing of the rows: to run half of them comes to the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What came of some rows.

    `outputs` hold a value for each row that is not in `errors`, in the rows' order. `errors`: why a
    row has none, by its place.
    """

    outputs: Tensors
    errors: dict[int, HeadraceError] = field(default_factory=dict)

    def places(self, rows: int) -> list[int]:
        """The rows that `outputs` belong to."""
        return [place for place in range(rows) if place not in self.errors]


class Scorer:
    """A loaded model that takes rows. As safe to use from several threads as the model itself."""

    def __init__(self, loaded: LoadedModel, *, name: str, version: str) -> None:
        self.name, self.version = name, version
        self.signature: ModelSignature = loaded.signature
        self.loaded = loaded
        self.concurrent = loaded.model.concurrent

    def score(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Scored:
        """Run a batch; one that fails is run in halves until it is known which rows it was.

        Args:
            inputs: As the signature says; axis 0 of each is the row where the model is batched.
            outputs: Names of the outputs that are wanted; None for all.

        Raises:
            InvalidArgumentError: The inputs are not of the model's names, datatypes or shapes.
            HeadraceError: What stands in the way of every row, such as a store that is away.
        """
        rows = check_inputs(self.name, self.signature, inputs)
        if not self.signature.batched:
            rows = 1
        errors: dict[int, HeadraceError] = {}
        parts: list[Tensors] = []
        self._halved(inputs, outputs, first=0, rows=rows, parts=parts, errors=errors)
        return Scored(outputs=_joined(parts), errors=errors)

    def close(self) -> None:
        """Free the model."""
        self.loaded.model.close()

    def _halved(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None,
        *,
        first: int,
        rows: int,
        parts: list[Tensors],
        errors: dict[int, HeadraceError],
    ) -> None:
        """Take `rows` rows that begin at `first` of all that were given."""
        try:
            parts.append(self._run(inputs, outputs, rows))
        except HeadraceError as error:
            if error.code in _OF_ALL:
                raise
            if rows == 1:
                errors[first] = error
                return
            half = rows // 2
            for start, end in ((0, half), (half, rows)):
                some = {name: array[start:end] for name, array in inputs.items()}
                self._halved(
                    some,
                    outputs,
                    first=first + start,
                    rows=end - start,
                    parts=parts,
                    errors=errors,
                )

    def _run(self, inputs: Tensors, outputs: Sequence[str] | None, rows: int) -> Tensors:
        found = self.loaded.model.run(inputs, outputs)
        for name, array in found.items():
            if self.signature.batched and (not array.shape or array.shape[0] != rows):
                msg = (
                    f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows: "
                    "its first axis is no batch axis"
                )
                raise RuntimeFailedError(msg)
        return found


def _joined(parts: Sequence[Tensors]) -> Tensors:
    if len(parts) < 2:  # noqa: PLR2004  # nothing to join
        return parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
