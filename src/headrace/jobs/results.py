"""Model runs over windows of rows, and the output columns built from their results.

Rows of different lengths are sorted first, so that a run has similar lengths: a tokenizer pads each
run to its longest row, and a model of lists takes only lists of equal length in one run.

An output with one value per row is a plain column; with several, a list of fixed size; with a
row-dependent size, a list. A row with an error has nulls.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Code,
    Datatype,
    HeadraceError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.jobs.columns import TensorWindow, row_shape
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.mapping import LABEL
from headrace.jobs.messages import ColumnPlan, ErrorsTo
from headrace.scoring.scorer import ScoredRows, Scorer

_RETRY_WAITS_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts while a dependency of the model is unavailable."""
_RETRYABLE: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


class JobStoppedError(HeadraceError):
    """The job was stopped."""

    code = Code.CANCELLED


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResults:
    """Results of a window."""

    rows: int
    parts: list[tuple[Array, Tensors]] = field(default_factory=list)
    """Row indexes, and their outputs in the same order."""
    errors: dict[int, str] = field(default_factory=dict)
    """Error of a row, by its index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRunner:
    """Runs the model over windows."""

    scorer: Scorer
    run_rows: int
    pool: Executor | None = None
    """Executor for parallel runs of one window; None for sequential runs."""
    is_stopped: Callable[[], bool] = lambda: False
    """Called before each run."""
    sleep: Callable[[float], object] = time.sleep
    """Waits while a dependency of the model is unavailable."""
    lock: contextlib.AbstractContextManager[object] = field(default_factory=threading.Lock)
    """Held for each run of a model that is not concurrent."""

    def answer(self, window: TensorWindow, outputs: Sequence[str]) -> WindowResults:
        """Run the model over all valid rows of a window.

        Raises:
            JobStoppedError: The job was stopped.
            HeadraceError: An error affects every row, also after retries.
        """
        errors = dict(window.bad)
        parts: list[tuple[Array, Tensors]] = []
        batches = list(_batches(window, self.scorer.signature, self.run_rows))
        for rows, scored in zip(batches, self._runs(batches, window, outputs), strict=True):
            for index, error in scored.errors.items():
                errors[int(rows[index])] = str(error)
            valid = rows
            if scored.errors:
                valid = rows[scored.rows_without_errors(len(rows))]
            if len(valid):
                parts.append((valid, scored.outputs))
        return WindowResults(rows=window.rows, parts=parts, errors=errors)

    def _runs(
        self, batches: Sequence[Array], window: TensorWindow, outputs: Sequence[str]
    ) -> Iterable[ScoredRows]:
        if self.pool is None or len(batches) == 1:
            return (self._run(rows, window, outputs) for rows in batches)
        return self.pool.map(lambda rows: self._run(rows, window, outputs), batches)

    def _run(self, rows: Array, window: TensorWindow, outputs: Sequence[str]) -> ScoredRows:
        inputs = _taken(window, rows, batched=self.scorer.signature.batched)
        lock = contextlib.nullcontext() if self.scorer.concurrent else self.lock
        for wait_s in (*_RETRY_WAITS_S, None):
            if self.is_stopped():
                raise JobStoppedError("the job was stopped")
            try:
                with lock:
                    return self.scorer.score(inputs, outputs)
            except HeadraceError as error:
                if error.code not in _RETRYABLE or wait_s is None:
                    raise
                self.sleep(wait_s)
        raise AssertionError


def _batches(window: TensorWindow, signature: ModelSignature, run_rows: int) -> Iterable[Array]:
    """Yield the rows of each run."""
    valid = np.arange(window.rows)
    if window.bad:
        valid = np.delete(valid, list(window.bad))
    if not signature.batched:
        yield from valid.reshape(-1, 1)
        return
    if window.ragged:
        yield from _equal(window, valid, run_rows)
        return
    texts = [
        window.dense[spec.name] for spec in signature.inputs if spec.datatype is Datatype.BYTES
    ]
    if texts and len(valid) > run_rows:
        lengths = sum(np.array([_length(row) for row in text[valid]]) for text in texts)
        valid = valid[np.argsort(lengths, kind="stable")]
    for start in range(0, len(valid), run_rows):
        yield valid[start : start + run_rows]


def _equal(window: TensorWindow, valid: Array, run_rows: int) -> Iterable[Array]:
    """Yield rows of equal shapes together, the shortest first."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for position in valid.tolist():
        shapes = tuple(parts[position].shape for parts in window.ragged.values())
        groups.setdefault(shapes, []).append(position)
    for _, rows in sorted(groups.items()):
        for start in range(0, len(rows), run_rows):
            yield np.array(rows[start : start + run_rows])


def _length(row: Array | bytes) -> int:
    return len(row) if isinstance(row, bytes) else sum(map(len, row.ravel()))


def contiguous(rows: Array) -> slice | Array:
    """Return rows as a slice if they are contiguous: a slice needs no copy."""
    first, last = int(rows[0]), int(rows[-1])
    is_run = last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all())
    return slice(first, last + 1) if is_run else rows


def _taken(window: TensorWindow, rows: Array, *, batched: bool) -> Tensors:
    """Return the inputs of some rows, without a copy where they are contiguous."""
    selected = contiguous(rows)
    inputs = {name: array[selected] for name, array in window.dense.items()}
    for name, parts in window.ragged.items():
        inputs[name] = np.stack([parts[row] for row in rows.tolist()])
    if not batched:
        return {name: array[0] for name, array in inputs.items()}
    return inputs


VERSION: Final = "model_version"
ERROR: Final = "error"
_MAX_ERROR: Final = 1000
_ARROW: Final[dict[Datatype, Any]] = {
    **{kind: pa.from_numpy_dtype(kind.dtype) for kind in Datatype if kind is not Datatype.BYTES},
    Datatype.BYTES: pa.large_string(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnLayout:
    """The columns of an output; the same for every shard."""

    plan: ColumnPlan
    signature: ModelSignature
    version: str
    errors: ErrorsTo
    keys: Schema

    @property
    def schema(self) -> Schema:
        """Return the schema of each output file."""
        fields = list(self.keys)
        for spec in self._specs():
            fields.append(pa.field(spec.name, _arrow(spec, self._shape(spec))))
            if self._labels(spec):
                fields.append(pa.field(f"{spec.name}{LABEL}", pa.large_string()))
        fields.append(pa.field(VERSION, pa.large_string()))
        if self.errors is ErrorsTo.COLUMN:
            fields.append(pa.field(ERROR, pa.large_string()))
        return pa.schema(fields)

    def table(
        self,
        keys: Any,  # noqa: ANN401  # pyarrow has no types
        answers: WindowResults,
        origin: Callable[[int], str] = lambda _: "",
    ) -> tuple[Any, dict[int, str]]:
        """Return the output rows of a window, and the row errors, including those of bad outputs.

        Args:
            keys: A table of the key columns with all rows.
            origin: Returns the prefix of a row's error: the location of the row in the input.
        """
        errors = dict(answers.errors)
        columns = list(keys.columns)
        for spec in self._specs():
            values = _gathered(answers, spec, self._shape(spec), batched=self.signature.batched)
            if spec.datatype is Datatype.BYTES:
                _check_texts(values, spec.name, errors)
            columns.append(_column(values, _arrow(spec, self._shape(spec)), errors, answers.rows))
            if names := self._labels(spec):
                columns.append(_named(values, names, errors, answers.rows))
        errors = {row: f"{origin(row)}{text}"[:_MAX_ERROR] for row, text in sorted(errors.items())}
        columns.append(pa.repeat(pa.scalar(self.version, pa.large_string()), answers.rows))
        if self.errors is ErrorsTo.COLUMN:
            texts = [errors.get(row) for row in range(answers.rows)] if errors else None
            columns.append(
                pa.nulls(answers.rows, pa.large_string())
                if texts is None
                else pa.array(texts, pa.large_string())
            )
        table = pa.table(columns, schema=self.schema)
        if self.errors is ErrorsTo.FILE and errors:
            keep = np.ones(answers.rows, np.bool_)
            keep[list(errors)] = False
            table = table.filter(pa.array(keep))
        return table, errors

    def _specs(self) -> list[TensorSpec]:
        return [spec for spec in self.signature.outputs if spec.name in self.plan.outputs]

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = row_shape(spec, batched=self.signature.batched)
        return () if shape == (1,) else shape

    def _labels(self, spec: TensorSpec) -> Sequence[str]:
        """Return the class names of an output that has one value per class; else nothing."""
        names = self.signature.labels.get(spec.name, ())
        return names if self._shape(spec) in {(len(names),), (VARIABLE,)} else ()


Values = Array | list[Array | None]
"""One tensor for all rows, or one tensor per row where shapes differ."""


def keys_of(frame: pl.DataFrame, plan: ColumnPlan) -> Any:  # noqa: ANN401  # a pyarrow.Table
    """Return the key columns under their output names; categories become texts."""
    # Not with `select`, whose query plan costs more than the rest of this function. Columns are
    # rechunked to one chunk, as the table's other columns have; the rows read may span several.
    columns = [frame[column].rechunk().alias(name) for name, column in plan.keys.items()]
    keys = pl.DataFrame(
        [
            column.cast(pl.String) if isinstance(column.dtype, pl.Categorical | pl.Enum) else column
            for column in columns
        ]
    )
    return keys.to_arrow(compat_level=pl.CompatLevel.oldest())


def _arrow(spec: TensorSpec, shape: tuple[int, ...]) -> Any:  # noqa: ANN401  # pyarrow has no types
    kind = _ARROW[spec.datatype]
    for size in reversed(shape):
        kind = pa.large_list(kind) if size == VARIABLE else pa.list_(kind, size)
    return kind


def _gathered(
    answers: WindowResults, spec: TensorSpec, shape: tuple[int, ...], *, batched: bool
) -> Values:
    """Return the value of every row, in order; zeros or None for a row without one."""
    parts = [(indexes, outputs[spec.name]) for indexes, outputs in answers.parts]
    if not batched:
        parts = [(indexes, array.reshape(1, *_trimmed(array.shape))) for indexes, array in parts]
    row_shapes = {array.shape[1:] for _, array in parts}
    if len(row_shapes) > 1 or not all(_fits(row_shape, shape) for row_shape in row_shapes):
        if VARIABLE not in shape:
            actual = [list(row_shape) for row_shape in row_shapes][:3]
            msg = f"output '{spec.name}' has rows of the shapes {actual}, and not {list(shape)}"
            raise RuntimeFailedError(msg)
        rows: list[Array | None] = [None] * answers.rows
        for indexes, array in parts:
            for index, row in enumerate(indexes.tolist()):
                rows[row] = array[index]
        return rows
    row_shape = row_shapes.pop() if row_shapes else tuple(max(size, 0) for size in shape)
    if len(parts) == 1 and len(parts[0][0]) == answers.rows:
        indexes, array = parts[0]
        if bool((np.diff(indexes) == 1).all()):
            return array
    whole = np.zeros((answers.rows, *row_shape), spec.datatype.dtype)
    for indexes, array in parts:
        whole[contiguous(indexes)] = array
    return whole


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _fits(row_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if shape == () and row_shape == (1,):
        return True
    return len(row_shape) == len(shape) and all(
        expected in {VARIABLE, actual} for expected, actual in zip(shape, row_shape, strict=True)
    )


def _column(values: Values, kind: Any, errors: dict[int, str], rows: int) -> Any:  # noqa: ANN401  # as above
    mask = None
    if errors:
        mask = np.zeros(rows, np.bool_)
        mask[list(errors)] = True
    if isinstance(values, list):
        plain = [
            None if value is None or row in errors else _plain(value)
            for row, value in enumerate(values)
        ]
        return pa.array(plain, kind)
    return _nested(values, kind, mask)


def _nested(values: Array, kind: Any, mask: Array | None) -> Any:  # noqa: ANN401  # as above
    """Return a tensor as a column of nested lists; axis 0 is the rows."""
    if pa.types.is_fixed_size_list(kind):
        inner = _nested(values.reshape(-1, *values.shape[2:]), kind.value_type, None)
        flags = None if mask is None else pa.array(mask)
        return pa.FixedSizeListArray.from_arrays(inner, type=kind, mask=flags)
    if pa.types.is_large_list(kind):
        size = values.shape[1]
        inner = _nested(values.reshape(-1, *values.shape[2:]), kind.value_type, None)
        offsets = pa.array(np.arange(len(values) + 1, dtype=np.int64) * size)
        flags = None if mask is None else pa.array(mask)
        return pa.LargeListArray.from_arrays(offsets, inner, type=kind, mask=flags)
    flat = values.reshape(-1)
    if flat.dtype.kind == "O":
        texts = [value.decode() if isinstance(value, bytes) else (value or "") for value in flat]
        return pa.array(texts, kind, mask=mask)
    return pa.array(flat, kind, mask=mask)


def _plain(value: Array) -> Any:  # noqa: ANN401  # nested lists
    if value.dtype.kind != "O":
        return value.tolist()
    return _decoded(value.tolist())


def _decoded(value: Any) -> Any:  # noqa: ANN401  # as above
    if isinstance(value, list):
        return [_decoded(element) for element in value]
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_texts(values: Values, name: str, errors: dict[int, str]) -> None:
    """Add errors for rows whose bytes are not UTF-8, and empty them: text columns need UTF-8."""
    for row, value in enumerate(values):
        if row in errors or value is None:
            continue
        try:
            _decoded(value.tolist() if isinstance(value, np.ndarray) else value)
        except UnicodeDecodeError:
            errors[row] = f"output '{name}' is not UTF-8"
            if isinstance(values, list):
                values[row] = None
            else:
                values[row] = b""


def _named(values: Values, names: Sequence[str], errors: dict[int, str], rows: int) -> Any:  # noqa: ANN401  # as above
    """Return the name of the class with the largest value of each row."""
    if not isinstance(values, list) and values.shape[1:] == (len(names),):
        best = pa.array(names, pa.large_string()).take(pa.array(np.argmax(values, axis=1)))
        if not errors:
            return best
        mask = np.zeros(rows, np.bool_)
        mask[list(errors)] = True
        return pa.compute.if_else(pa.array(mask), pa.scalar(None, pa.large_string()), best)
    return pa.nulls(rows, pa.large_string())
