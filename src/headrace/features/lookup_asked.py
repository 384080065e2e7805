"""What does a caller ask of a reader? Keys and values of one length, or all that is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError
from headrace.features.definitions import FeatureService

MAX_ROWS: Final = 10_000

Given = Mapping[str, Sequence[object] | Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`keys` by join key and `values` by request column, a value for each of `rows`."""

    keys: Mapping[str, Sequence[object]]
    values: Mapping[str, Sequence[object] | Array]
    rows: int


class Asking:
    """What one service takes; made once, as its names are asked for at each read."""

    def __init__(self, service: FeatureService) -> None:
        self._joins = [entity.join_key for entity in service.entities]
        self._taken = [column.name for column in service.request_columns]

    def asked(self, keys: Given, values: Given) -> Asked:
        """What is asked, in order; InvalidArgumentError with all that is wrong.

        Values themselves are looked at where they become keys and arrays.
        """
        joins, taken = self._joins, self._taken
        wrong = [f"the join key {name!r} is missing" for name in joins if name not in keys]
        wrong += _unknown(keys, joins, "join key") + _unknown(values, taken, "request column")
        columns: dict[str, Sequence[object] | Array] = {}
        for name, given in (*keys.items(), *values.items()):
            column = _column(given)
            if column is None:
                wrong.append(f"{name!r} should be a list of values, one a row")
            else:
                columns[name] = column
        lengths = {name: len(columns[name]) for name in (*joins, *taken) if name in columns}
        if len(set(lengths.values())) > 1:
            what = "columns" if values else "join keys"
            wrong.append(f"{what} have different numbers of rows: {lengths}")
        rows = max(lengths.values(), default=0)
        if rows > MAX_ROWS:
            wrong.append(f"there are more than {MAX_ROWS} rows; ask in several parts")
        if wrong:
            raise InvalidArgumentError("; ".join(wrong))
        return Asked(
            keys={name: _listed(columns[name]) for name in joins},
            values={name: columns[name] for name in taken if name in columns},
            rows=rows,
        )


def _listed(column: Sequence[object] | Array) -> Sequence[object]:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _unknown(given: Given, known: Sequence[str], what: str) -> list[str]:
    wrong = [name for name in given if name not in known]
    takes = f"the service takes: {', '.join(known) or 'none'}" if wrong else ""
    return [f"{str(name)[:60]!r} is no {what}; {takes}" for name in wrong]


def _column(column: object) -> Sequence[object] | Array | None:
    if isinstance(column, np.ndarray):
        is_column = column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1)  # noqa: PLR2004  # [rows, 1]
        return column.reshape(-1) if is_column else None
    if isinstance(column, Sequence) and not isinstance(column, str | bytes | bytearray):
        return column
    return None
