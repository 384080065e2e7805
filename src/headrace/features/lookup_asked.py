"""What does a caller ask of a reader? Keys and values of one length, or all that is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError

MAX_ROWS: Final = 10_000

Given = Mapping[str, Sequence[object] | Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`keys` by join key and `values` by request column, a value for each of `rows`."""

    keys: Mapping[str, Sequence[object]]
    values: Mapping[str, Sequence[object] | Array]
    rows: int


def asked_of(joins: Sequence[str], taken: Sequence[str], keys: Given, values: Given) -> Asked:
    """What is asked, in order; InvalidArgumentError with all that is wrong.

    Values themselves are looked at where they become keys and arrays.

    Args:
        joins: The service's join keys.
        taken: Its request columns.
    """
    wrong = [f"the join key {name!r} is missing" for name in joins if name not in keys]
    wrong += _unknown(keys, joins, "join key") + _unknown(values, taken, "request column")
    listed: dict[str, Sequence[object]] = {}
    arrays: dict[str, Sequence[object] | Array] = {}
    for name in joins:
        if name in keys:
            column = _column(keys[name])
            listed[name] = column.tolist() if isinstance(column, np.ndarray) else (column or [])
            if column is None:
                wrong.append(_no_list(name))
    for name in taken:
        if name in values:
            given = _column(values[name])
            if given is None:
                wrong.append(_no_list(name))
            else:
                arrays[name] = given
    lengths = {name: len(column) for name, column in {**listed, **arrays}.items()}
    if len(set(lengths.values())) > 1 and not wrong:
        what = "columns" if arrays else "join keys"
        wrong.append(f"{what} have different numbers of rows: {lengths}")
    rows = max(lengths.values(), default=0)
    if rows > MAX_ROWS:
        wrong.append(f"there are more than {MAX_ROWS} rows; ask in several parts")
    if wrong:
        raise InvalidArgumentError("; ".join(wrong))
    return Asked(keys=listed, values=arrays, rows=rows)


def _unknown(given: Given, known: Sequence[str], what: str) -> list[str]:
    takes = f"the service takes: {', '.join(known) or 'none'}"
    return [f"{str(name)[:60]!r} is no {what}; {takes}" for name in given if name not in known]


def _no_list(name: str) -> str:
    return f"{name!r} should be a list of values, one a row"


def _column(column: object) -> Sequence[object] | Array | None:
    if isinstance(column, np.ndarray):
        is_column = column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1)  # noqa: PLR2004  # [rows, 1]
        return column.reshape(-1) if is_column else None
    if isinstance(column, Sequence) and not isinstance(column, str | bytes | bytearray):
        return column
    return None
