"""Scorer of many rows at once with an endpoint's model; a failing row fails alone.

It uses the same model, features and pipeline as a replica, without the request queue.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.core import (
    Code,
    HeadraceError,
    ModelSignature,
    RowIndependence,
    RuntimeFailedError,
    Tensors,
    check_inputs,
)
from headrace.engine.row_check import MIN_INTERVAL_S, REPAY_RATIO, compare_row, note_scales
from headrace.scoring.loading import LoadedModel

if TYPE_CHECKING:
    from headrace.observe.row_checks import RowDifference

_log = logging.getLogger(__name__)

_NOT_ABOUT_ROWS: Final = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
)
"""Errors that are not caused by a row: running half of the rows gives the same error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """Results of scoring rows."""

    outputs: Tensors
    """Values of the rows without errors, in order."""
    errors: dict[int, HeadraceError] = field(default_factory=dict)
    """Why a row has no values, by its index."""

    def rows_without_errors(self, rows: int) -> list[int]:
        """Return the indexes of the rows in `outputs`."""
        return [row for row in range(rows) if row not in self.errors]


class Scorer:
    """A loaded model that scores rows. As thread-safe as the model itself.

    If rows are declared independent without proof, a row of a batch is sometimes run alone and
    compared, until a row differs: at most once a second, and for at most 1 % of the time.

    Args:
        checks_rows: False where a second run has side effects.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        name: str,
        version: str,
        checks_rows: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.version = name, version
        self.signature: ModelSignature = loaded.signature
        self.loaded = loaded
        self.concurrent = loaded.model.concurrent
        self.difference: RowDifference | None = None
        """The row whose answer changed when it was run alone; None if no such row was detected."""
        is_declared = self.signature.row_independence is RowIndependence.DECLARED
        self._checks_rows = checks_rows and self.signature.batched and is_declared
        self._clock = clock
        self._check_at = -math.inf
        self._scales: dict[str, float] = {}

    def score(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> ScoredRows:
        """Run a batch; a failing one is run in halves to find the failing rows.

        Args:
            inputs: As in the signature; axis 0 is the row if the model is batched.
            outputs: Names of the requested outputs; None for all.

        Raises:
            InvalidArgumentError: The inputs have wrong names, datatypes or shapes.
            HeadraceError: The error affects every row, such as an unavailable store.
        """
        rows = check_inputs(self.name, self.signature, inputs)
        if not self.signature.batched:
            rows = 1
        errors: dict[int, HeadraceError] = {}
        parts: list[Tensors] = []
        self._halved(inputs, outputs, first=0, rows=rows, parts=parts, errors=errors)
        scored = ScoredRows(outputs=_joined(parts), errors=errors)
        if self._checks_rows and rows > 1 and not errors and self._clock() >= self._check_at:
            self._check_row(inputs, scored.outputs, rows)
        return scored

    def _check_row(self, inputs: Tensors, outputs: Tensors, rows: int) -> None:
        """Run one row of a batch alone and set `difference` if the result differs."""
        row, names, started = random.randrange(rows), tuple(outputs), self._clock()  # noqa: S311  # sampling

        def row_of(tensors: Tensors) -> Tensors:
            return copied({name: array[row : row + 1] for name, array in tensors.items()})

        def copied(tensors: Tensors) -> Tensors:
            return {name: array.copy() for name, array in tensors.items()}

        note_scales(self._scales, outputs)
        difference = None
        try:
            _, difference = compare_row(
                row_of(outputs),
                lambda: self._run(row_of(inputs), names, 1),
                # Copied: a model may change its inputs in place, and answer with them.
                lambda: row_of(self._run(copied(inputs), names, rows)),
                self._scales,
                requests=rows,
                rows=rows,
            )
        except Exception as error:  # noqa: BLE001  # a plug-in call; the batch has its answers
            # A model's error message may quote the row.
            reason = error.code if isinstance(error, HeadraceError) else type(error).__name__
            _log.warning("a row failed when it was run alone", extra={"error": reason})
        self._check_at = self._clock() + max(
            MIN_INTERVAL_S, REPAY_RATIO * (self._clock() - started)
        )
        if difference is not None:
            self._check_at = math.inf
            self.difference = difference
            _log.warning("rows depend on each other: %s", difference.text)

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
        """Run `rows` rows in halves; `first` is the index of the first in the whole batch."""
        try:
            parts.append(self._run(inputs, outputs, rows))
        except HeadraceError as error:
            if error.code in _NOT_ABOUT_ROWS:
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
        tensors = self.loaded.model.run(inputs, outputs)
        for name, array in tensors.items():
            if self.signature.batched and (not array.shape or array.shape[0] != rows):
                msg = (
                    f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows: "
                    "its first axis is not the batch axis"
                )
                raise RuntimeFailedError(msg)
        return tensors


def _joined(parts: Sequence[Tensors]) -> Tensors:
    if len(parts) < 2:  # noqa: PLR2004  # nothing to join
        return parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
