"""Which column of a table holds the labels, and what are they as numbers?"""

import math
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError, ModelSignature
from headrace.optimize.accuracy.tables import Table

LABEL_NAMES: Final = ("label", "labels", "y", "target", "targets", "class")
MAX_CLASSES: Final = 10_000
_EXACT: Final = 2**53
_TRUTH: Final = {"true": 1.0, "false": 0.0}


def label_column(table: Table, wish: str, *, inputs: Collection[str]) -> str | None:
    """The column of labels by its name; the last one, if all numbers, where none has a name.

    Args:
        wish: The name that somebody gave; empty for none.
        inputs: Names of the model's inputs, which are no labels.

    Raises:
        InvalidArgumentError: There is none of the name that was wished, or several may be meant.
    """
    if wish:
        if wish not in table.columns:
            msg = f"{table.path} has no column {wish!r} for the labels: {table.told()}"
            raise InvalidArgumentError(msg)
        return wish
    if not table.is_named:
        last = list(table.columns)[-1]
        has_others = len(table.columns) > 1
        return last if has_others and are_numbers(table.columns[last]) else None
    found = [name for name in table.columns if name.casefold() in LABEL_NAMES]
    found = [name for name in found if name not in inputs]
    if len(found) > 1:
        msg = f"{table.path}: {' and '.join(map(repr, found))} may be the labels; say which"
        raise InvalidArgumentError(msg)
    return found[0] if found else None


def number_of(cell: object) -> float | None:
    """The number that a cell says; None if it says none, or is empty."""
    if not isinstance(cell, str | bool | int | float):
        return None
    try:
        return float(cell)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf
    except ValueError:
        return _TRUTH.get(str(cell).strip().casefold())


def are_numbers(cells: Sequence[object]) -> bool:
    """Whether all cells say numbers."""
    return all(number_of(cell) is not None for cell in cells)


def labels_of(
    table: Table, column: str, signature: ModelSignature
) -> tuple[Array, tuple[str, ...]]:
    """Labels as int64 where all are whole numbers, else float64; and the classes' names.

    Labels that are texts are numbered as the model numbers its classes where it names them, else
    by their order in the alphabet, as scikit-learn does.

    Raises:
        InvalidArgumentError: A row has none, or one of another kind; the message names the line.
    """
    cells = table.columns[column]
    for row, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise table.wrong(row, f"no label in column {column!r}; add it or remove the line")
    numbers = [number_of(cell) for cell in cells]
    odd = [row for row, number in enumerate(numbers) if number is None]
    if not odd:
        return _numbered(table, numbers), ()
    if len(odd) < len(cells):
        shown = str(cells[odd[0]])[:40]
        raise table.wrong(odd[0], f"label {shown!r} is no number, as others in {column!r} are")
    if not all(isinstance(cell, str) for cell in cells):
        raise table.wrong(0, f"column {column!r} holds neither numbers nor texts")
    return _of_texts([str(cell).strip() for cell in cells], signature, table, column)


def numbers_as_labels(values: Array) -> Array:
    """int64 where all are whole numbers, else float64."""
    wide = values.astype(np.float64)
    whole = bool((wide == np.round(wide)).all()) and bool((np.abs(wide) < _EXACT).all())
    return wide.astype(np.int64) if whole else wide


def classes_named(texts: Sequence[str], signature: ModelSignature) -> tuple[Array, tuple[str, ...]]:
    """Numbers of classes that are named by texts, and the names by number."""
    present = set(texts)
    declared = (names for names in signature.labels.values() if present <= set(names))
    names = next(declared, tuple(sorted(present)))
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[text] for text in texts], np.int64), tuple(names)


def _numbered(table: Table, numbers: Sequence[float | None]) -> Array:
    values = np.array(numbers, np.float64)
    endless = np.flatnonzero(~np.isfinite(values))
    if len(endless):
        raise table.wrong(int(endless[0]), "the label is not a finite number")
    return numbers_as_labels(values)


def _of_texts(
    texts: Sequence[str], signature: ModelSignature, table: Table, column: str
) -> tuple[Array, tuple[str, ...]]:
    if len(set(texts)) > min(MAX_CLASSES, max(len(texts) // 2, 2)):
        msg = (
            f"{table.path}: column {column!r} holds {len(set(texts))} different texts in "
            f"{len(texts)} rows, too many for classes; say which column holds the labels"
        )
        raise InvalidArgumentError(msg)
    return classes_named(texts, signature)
