"""What did a request bring besides entities? Values of request columns, checked, as arrays.

Entity rows of training data go the same way, so that equal values become equal arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.features.definitions import Feature
from headrace.features.values import misfit, value_column

_SHOWN: Final = 60


def request_arrays(
    columns: Sequence[Feature], values: Mapping[str, Sequence[object] | Array], rows: int
) -> dict[str, Array]:
    """An array [rows] for each column; one with a default may be absent, or have nulls.

    Raises:
        InvalidArgumentError: With all that is wrong; at each column the first value that is.
    """
    wrong: list[str] = []
    made: dict[str, Array] = {}
    for column in columns:
        given = values.get(column.name)
        if given is None:
            if column.default is None:
                wrong.append(f"{column.name!r} ({column.datatype}) is missing, and has no default")
            made[column.name] = np.full(rows, column.filling, dtype=column.datatype.dtype)
            continue
        array = _as_it_is(column, given)
        if array is None:
            listed = given.reshape(-1).tolist() if isinstance(given, np.ndarray) else given
            wrong += _wrong(column, listed)
            array = np.empty(0) if wrong else _filled(column, listed)
        made[column.name] = array
    if wrong:
        raise InvalidArgumentError("; ".join(wrong))
    return made


def _as_it_is(column: Feature, given: Sequence[object] | Array) -> Array | None:
    """An array of the right type needs no look at its values; BYTES may be anything."""
    fits = isinstance(given, np.ndarray) and given.dtype == column.datatype.dtype
    if not fits or column.datatype is Datatype.BYTES:
        return None
    return np.ascontiguousarray(given).reshape(-1)


def _wrong(column: Feature, listed: Sequence[object]) -> Iterator[str]:
    for row, value in enumerate(listed):
        if value is None:
            if column.default is None:
                yield f"{column.name!r}[{row}] is null, and the column has no default"
                return
        elif wanted := misfit(column.datatype, value):
            shown = repr(value)[:_SHOWN]
            yield f"{column.name!r}[{row}] is {column.datatype} and takes {wanted}, not {shown}"
            return


def _filled(column: Feature, listed: Sequence[object]) -> Array:
    given = [column.filling if value is None else value for value in listed]
    return value_column(column.datatype, given).values
