"""Cells of a table to a model's numeric inputs: by their names, or as the columns of one matrix."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)
from headrace.optimize.accuracy.examples import StackedRows
from headrace.optimize.accuracy.label_cells import number_of
from headrace.optimize.accuracy.tables import Table

_MATRIX: Final = 2
_ROW_NAMES: Final = frozenset({"", "id", "idx", "index", "unnamed: 0", "row", "row_id"})


def named_inputs(table: Table, signature: ModelSignature) -> list[Tensors]:
    """Requests of columns that are named like the inputs; lists are tensors of their own shape.

    Raises:
        InvalidArgumentError: A cell does not fit its input; the message names the line.
    """
    requests: list[Tensors] = [{} for _ in table.lines]
    for spec in signature.inputs:
        for row, cell in enumerate(table.columns[spec.name]):
            try:
                requests[row][spec.name] = as_request(_array(cell, spec), spec, signature)
            except InvalidArgumentError as error:
                raise table.wrong(row, str(error)) from None
    return requests


def matrix_inputs(
    table: Table, signature: ModelSignature, *, label: str | None
) -> tuple[Sequence[Tensors], tuple[str, ...]]:
    """Requests of all other columns beside each other; and what was taken for what.

    Raises:
        InvalidArgumentError: There are too many or too few, or a cell is no number.
    """
    spec = signature.inputs[0]
    names, notes = _matrix_columns(table, signature, label)
    wide = np.empty((len(table.lines), len(names)))
    for i, name in enumerate(names):
        wide[:, i] = _numbers(table, name, spec)
    made = cast(wide, spec)
    rows = StackedRows({spec.name: made}, has_batch_axis=True)
    if len(spec.shape) != _MATRIX:  # [F] or [N, F, 1]: as the model has it
        return [{spec.name: as_request(row[spec.name], spec, signature)} for row in rows], notes
    return rows, notes


def as_request(array: Array, spec: TensorSpec, signature: ModelSignature) -> Array:
    """One row as a request, in the shape that the input declares.

    Raises:
        InvalidArgumentError: It does not fit.
    """
    inner = spec.shape[1:] if signature.batched else spec.shape
    tried = [array, array[np.newaxis]]
    if VARIABLE not in inner and array.size == math.prod(inner):
        tried.append(array.reshape((1, *inner) if signature.batched else inner))
    for one in tried:
        if spec.fits(one.shape) and (not signature.batched or one.shape[0] == 1):
            return np.asarray(one, order="C")
    shown = [size if size != VARIABLE else "any" for size in inner]
    msg = f"input '{spec.name}' takes {shown} a row, this is {list(array.shape)}"
    raise InvalidArgumentError(msg)


def cast(array: Array, spec: TensorSpec) -> Array:
    """Numbers in the input's datatype.

    Raises:
        InvalidArgumentError: One is not of it: a fraction, too large, or missing.
    """
    if array.dtype.kind not in "fiub":
        raise InvalidArgumentError(f"input '{spec.name}' takes {spec.datatype}, not {array.dtype}")
    dtype = spec.datatype.dtype
    with np.errstate(invalid="ignore", over="ignore"):
        made = array.astype(dtype)
        if dtype.kind == "f":
            fits = np.isinf(made) <= np.isinf(array)
        else:
            fits = made.astype(array.dtype) == array
    if not fits.all():
        shown = array[~fits].reshape(-1)[0]
        raise InvalidArgumentError(f"input '{spec.name}': {shown:g} is no {spec.datatype}")
    return made


def _array(cell: object, spec: TensorSpec) -> Array:
    if spec.datatype is Datatype.BYTES:
        return _texts(cell, spec)
    if isinstance(cell, list):
        try:
            found = np.array(cell)
        except ValueError:
            raise InvalidArgumentError(f"input '{spec.name}': rows differ in length") from None
        return cast(found, spec)
    text = cell.strip() if isinstance(cell, str) else cell
    if isinstance(text, str | int) and spec.datatype.dtype.kind in "iu":
        try:
            return cast(np.array(int(text)), spec)  # a float would lose the digits of a long id
        except (ValueError, OverflowError):
            pass
    missing = math.nan if text is None or text == "" else None
    number = missing if missing is not None else number_of(text)
    if number is None:
        shown = str(cell)[:40]
        raise InvalidArgumentError(f"input '{spec.name}': {shown!r} is no {spec.datatype}")
    return cast(np.array(number), spec)


def _texts(cell: object, spec: TensorSpec) -> Array:
    cells = np.array(cell, np.object_)
    made = np.empty(cells.shape, np.object_)
    for place in np.ndindex(cells.shape):
        element = cells[place]
        if not isinstance(element, str | bytes | int | float):
            raise InvalidArgumentError(f"input '{spec.name}' takes texts, not {element!r:.40}")
        made[place] = element if isinstance(element, bytes) else str(element).encode()
    return made


def _numbers(table: Table, name: str, spec: TensorSpec) -> Array:
    cells = table.columns[name]
    if all(isinstance(cell, str) for cell in cells):
        try:
            return np.array(cells).astype(np.float64)
        except ValueError:
            pass  # something is missing, or no number: told below, with its line
    can_miss = spec.datatype.dtype.kind == "f"
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        is_missing = cell is None or (isinstance(cell, str) and not cell.strip())
        number = math.nan if is_missing and can_miss else number_of(cell)
        if number is None:
            shown = "nothing" if is_missing else repr(str(cell)[:40])
            raise table.wrong(row, f"column {name!r}: {shown} is no {spec.datatype}")
        values[row] = number
    return values


def _matrix_columns(
    table: Table, signature: ModelSignature, label: str | None
) -> tuple[list[str], tuple[str, ...]]:
    """Columns in the model's order."""
    spec = signature.inputs[0]
    others = [name for name in table.columns if name != label]
    declared = signature.columns.get(spec.name, ())
    if declared and set(declared) <= set(others):
        return list(declared), ()
    inner = spec.shape[1:] if signature.batched else spec.shape
    width = len(others) if VARIABLE in inner else math.prod(inner)
    notes = []
    if len(others) == width + 1:
        numbering = [name for name in others if name.casefold() in _ROW_NAMES]
        if len(numbering) == 1:
            others.remove(numbering[0])
            notes.append(f"column {numbering[0]!r} was taken for the rows' number, and left out")
    if len(others) != width:
        said = f"column {label!r} is the label" if label else "no column was taken for the label"
        msg = (
            f"input '{spec.name}' takes {width} numbers a row, and {table.path} has {len(others)} "
            f"columns for it ({said}; {table.told()}); remove or add columns, or say which one "
            "is the label"
        )
        raise InvalidArgumentError(msg)
    if table.is_named:
        notes.append(f"columns are input '{spec.name}' in the file's order: the model names none")
    return others, tuple(notes)
