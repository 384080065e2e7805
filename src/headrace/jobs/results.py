"""Answers as columns: keys, outputs, class names, the model's version, and errors.

An output of one value a row is a plain column, one of several a list of fixed size, one whose size
depends on the row a list. A row with an error has nulls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from headrace.core import VARIABLE, Array, Datatype, ModelSignature, RuntimeFailedError, TensorSpec
from headrace.jobs.answering import Answers, together
from headrace.jobs.columns import row_shape
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.mapping import LABEL
from headrace.jobs.messages import ColumnPlan, ErrorsTo

VERSION: Final = "model_version"
ERROR: Final = "error"
_MAX_ERROR: Final = 1000

_ARROW: Final[dict[Datatype, Any]] = {
    **{kind: pa.from_numpy_dtype(kind.dtype) for kind in Datatype if kind is not Datatype.BYTES},
    Datatype.BYTES: pa.large_string(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of an output; the same for every shard."""

    plan: ColumnPlan
    signature: ModelSignature
    version: str
    errors: ErrorsTo
    keys: Schema

    @property
    def schema(self) -> Schema:
        """Of each file."""
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
        answers: Answers,
        origin: Callable[[int], str] = lambda _: "",
    ) -> tuple[Any, dict[int, str]]:
        """The rows of a window, and the errors among them (those of bad outputs are new).

        Args:
            keys: A table of the key columns, all rows.
            origin: What the error of a row begins with: where the row comes from.
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
        made = pa.table(columns, schema=self.schema)
        if self.errors is ErrorsTo.FILE and errors:
            keep = np.ones(answers.rows, np.bool_)
            keep[list(errors)] = False
            made = made.filter(pa.array(keep))
        return made, errors

    def _specs(self) -> list[TensorSpec]:
        return [spec for spec in self.signature.outputs if spec.name in self.plan.outputs]

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = row_shape(spec, batched=self.signature.batched)
        return () if shape == (1,) else shape

    def _labels(self, spec: TensorSpec) -> Sequence[str]:
        """Class names of an output that has a value for each."""
        names = self.signature.labels.get(spec.name, ())
        return names if self._shape(spec) in {(len(names),), (VARIABLE,)} else ()


Values = Array | list[Array | None]
"""One tensor for all rows, or one a row where they differ."""


def keys_of(frame: pl.DataFrame, plan: ColumnPlan) -> Any:  # noqa: ANN401  # a pyarrow.Table
    """The key columns by what they are called; categories become texts."""
    # Not by `select`, whose plan costs more than all the rest here. In one piece, as the other
    # columns of a table are: rows that were read together may lie in several.
    columns = [frame[column].rechunk().alias(name) for name, column in plan.keys.items()]
    made = pl.DataFrame(
        [
            column.cast(pl.String) if isinstance(column.dtype, pl.Categorical | pl.Enum) else column
            for column in columns
        ]
    )
    return made.to_arrow(compat_level=pl.CompatLevel.oldest())


def _arrow(spec: TensorSpec, shape: tuple[int, ...]) -> Any:  # noqa: ANN401  # pyarrow has no types
    kind = _ARROW[spec.datatype]
    for size in reversed(shape):
        kind = pa.large_list(kind) if size == VARIABLE else pa.list_(kind, size)
    return kind


def _gathered(
    answers: Answers, spec: TensorSpec, shape: tuple[int, ...], *, batched: bool
) -> Values:
    """What every row got, in order; zeros or None where a row got nothing."""
    parts = [(places, outputs[spec.name]) for places, outputs in answers.parts]
    if not batched:
        parts = [(places, array.reshape(1, *_trimmed(array.shape))) for places, array in parts]
    trails = {array.shape[1:] for _, array in parts}
    if len(trails) > 1 or not all(_fits(trail, shape) for trail in trails):
        if VARIABLE not in shape:
            got = [list(trail) for trail in trails][:3]
            msg = f"output '{spec.name}' has rows of the shapes {got}, and not {list(shape)}"
            raise RuntimeFailedError(msg)
        rows: list[Array | None] = [None] * answers.rows
        for places, array in parts:
            for at, place in enumerate(places.tolist()):
                rows[place] = array[at]
        return rows
    trail = trails.pop() if trails else tuple(max(size, 0) for size in shape)
    if len(parts) == 1 and len(parts[0][0]) == answers.rows:
        places, array = parts[0]
        if bool((np.diff(places) == 1).all()):
            return array
    whole = np.zeros((answers.rows, *trail), spec.datatype.dtype)
    for places, array in parts:
        whole[together(places)] = array
    return whole


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _fits(trail: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if shape == () and trail == (1,):
        return True
    return len(trail) == len(shape) and all(
        want in {VARIABLE, got} for want, got in zip(shape, trail, strict=True)
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
    """A tensor as lists in lists, the first axis the rows."""
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
        return [_decoded(one) for one in value]
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_texts(values: Values, name: str, errors: dict[int, str]) -> None:
    """Name the rows whose texts are none; they become empty, as a file of text has no bytes."""
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
    """The class with the largest value of each row."""
    if not isinstance(values, list) and values.shape[1:] == (len(names),):
        best = pa.array(names, pa.large_string()).take(pa.array(np.argmax(values, axis=1)))
        if not errors:
            return best
        mask = np.zeros(rows, np.bool_)
        mask[list(errors)] = True
        return pa.compute.if_else(pa.array(mask), pa.scalar(None, pa.large_string()), best)
    return pa.nulls(rows, pa.large_string())
