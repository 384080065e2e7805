"""What do the replicas of one model version count together? Triton's statistics, summed."""

from collections.abc import Iterable
from typing import Final, TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_NEWEST: Final = frozenset({"last_inference"})
_KEYS: Final = frozenset({"name", "version", "batch_size", "type", "id"})
"""What tells rows apart; never added up."""


def merge_model_stats(answers: Iterable[Json]) -> list[dict[str, Json]]:
    """The rows of many `{"model_stats": [...]}`: one per model and version, counters added up.

    Rows that are no objects are dropped.
    """
    rows: dict[tuple[str, str], dict[str, Json]] = {}
    for answer in answers:
        stats = answer.get("model_stats") if isinstance(answer, dict) else None
        for row in stats if isinstance(stats, list) else []:
            if isinstance(row, dict):
                key = (str(row.get("name", "")), str(row.get("version", "")))
                rows[key] = _add_fields(rows[key], row) if key in rows else row
    return [rows[key] for key in sorted(rows)]


def _add_fields(one: dict[str, Json], other: dict[str, Json]) -> dict[str, Json]:
    return {key: _add_field(key, one.get(key), other.get(key)) for key in {**one, **other}}


def _add(one: Json, other: Json) -> Json:
    match one, other:
        case dict(), dict():
            return _add_fields(one, other)
        case list(), list():
            return _add_rows(one, other)
        case None, _:
            return other
        case ((int() | float()), (int() | float())):
            return one + other
        case _:
            return one


def _add_field(key: str, one: Json, other: Json) -> Json:
    if key in _NEWEST and isinstance(one, int) and isinstance(other, int):
        return max(one, other)
    return one if key in _KEYS and one is not None else _add(one, other)


def _add_rows(one: list[Json], other: list[Json]) -> list[Json]:
    """Lists of rows, such as `batch_stats`: rows with equal keys are added up."""
    rows: dict[tuple[str, ...], Json] = {}
    for row in [*one, *other]:
        fields = row if isinstance(row, dict) else {"": row}
        key = tuple(f"{name}={fields[name]}" for name in sorted(fields) if name in _KEYS)
        rows[key] = _add(rows[key], row) if key in rows else row
    return list(rows.values())
