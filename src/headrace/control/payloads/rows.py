"""Which rows did a payload log keep last? As plain JSON, the newest first."""

import math
from datetime import datetime
from pathlib import Path

from headrace.control.payloads.files import list_files, read_batches

_LONGEST = 64
"""Values of a tensor that are shown; the file has all of them."""

Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None


def newest_rows(directory: Path, *, limit: int, request_id: str = "") -> list[dict[str, Json]]:
    """The newest rows of an endpoint's files; of one request if it is named. Blocking.

    Tensors are cut after 64 values, and strings in them shown as text.
    """
    found: list[dict[str, Json]] = []
    for file in reversed(list_files(directory)):
        if len(found) >= limit:
            break
        try:
            rows = list(_rows(file.path, request_id, limit - len(found)))
        except FileNotFoundError:  # it became a Parquet file, or too old, just now
            continue
        found += reversed(rows)
    found.sort(key=lambda row: str(row.get("time")), reverse=True)
    return found[:limit]


def _rows(path: Path, request_id: str, limit: int) -> list[dict[str, Json]]:
    """The last `limit` rows of a file."""
    kept: list[dict[str, Json]] = []
    for batch in read_batches(path):
        rows = (
            row for row in batch.to_pylist() if not request_id or row["request_id"] == request_id
        )
        kept = [*kept, *({name: _shown(v) for name, v in row.items()} for row in rows)][-limit:]
    return kept


def _shown(value: object) -> Json:
    match value:
        case list():
            cut: list[Json] = [_shown(item) for item in value[:_LONGEST]]
            return cut
        case bytes():
            return value.decode(errors="replace")
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case float() if not math.isfinite(value):
            return str(value)
        case None | str() | int() | float():
            return value
        case _:
            return str(value)
