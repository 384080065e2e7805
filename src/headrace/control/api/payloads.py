"""Payload log of an endpoint over HTTP: its files and its newest rows."""

import asyncio
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Response

from headrace.control.api.answers import Name, answer, route
from headrace.control.payloads.files import check_pyarrow, list_files, read_batches
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import EndpointNotFoundError

_LONGEST = 64
"""Maximum number of values shown per tensor; the file holds all of them."""
Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None


def newest_rows(directory: Path, *, limit: int, request_id: str = "") -> list[dict[str, Json]]:
    """Return the newest rows of an endpoint's files, or of one request. Blocking.

    Tensors are truncated to 64 values; their strings are decoded to text.
    """
    newest: list[dict[str, Json]] = []
    for file in reversed(list_files(directory)):
        if len(newest) >= limit:
            break
        try:
            rows = list(_rows(file.path, request_id, limit - len(newest)))
        except FileNotFoundError:  # converted to Parquet or deleted by retention meanwhile
            continue
        newest += reversed(rows)
    newest.sort(key=lambda row: str(row.get("time")), reverse=True)
    return newest[:limit]


def _rows(path: Path, request_id: str, limit: int) -> list[dict[str, Json]]:
    """Return the last `limit` rows of a file."""
    last_rows: list[dict[str, Json]] = []
    for batch in read_batches(path):
        rows = (
            row for row in batch.to_pylist() if not request_id or row["request_id"] == request_id
        )
        last_rows = [*last_rows, *({name: _display(v) for name, v in row.items()} for row in rows)][
            -limit:
        ]
    return last_rows


def _display(value: object) -> Json:
    match value:
        case list():
            cut: list[Json] = [_display(item) for item in value[:_LONGEST]]
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


_MAX_ROWS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadFileView:
    """One file on the control plane's machine."""

    path: str
    version: str
    begin: str
    bytes: int
    open: bool
    """Whether rows are still appended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLogView:
    """The payload log of an endpoint; counts since the control plane started."""

    endpoint: str
    on: bool
    written: int
    dropped: int
    files: list[PayloadFileView]


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRows:
    """Requests and responses, the newest first; tensors are truncated to 64 values."""

    rows: list[dict[str, Any]]


_LOG_EXAMPLE: Final = {
    "endpoint": "fraud",
    "on": True,
    "written": 1204,
    "dropped": 0,
    "files": [
        {
            "path": "/srv/headrace/payloads/fraud/20261125T120000.000000Z-v3.parquet",
            "version": "3",
            "begin": "20261125T120000.000000Z",
            "bytes": 184_320,
            "open": False,
        }
    ],
}
_ROWS_EXAMPLE: Final = {
    "rows": [
        {
            "time": "2026-11-25T12:00:03.120000Z",
            "request_id": "5f0c",
            "trace_id": "",
            "caller": "shop",
            "version": "3",
            "code": "OK",
            "duration_s": 0.0021,
            "input.x": [0.5, 1.5],
            "input.x.shape": [1, 2],
            "output.y": [0.93],
            "output.y.shape": [1, 1],
        }
    ]
}


def add_payloads(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of payload logs."""

    @route(api, "GET /api/v1/endpoints/{name}/payloads", PayloadLogView, _LOG_EXAMPLE)
    async def payloads(name: Name) -> Response:
        """List the files of an endpoint's payload log."""
        endpoint = plane.target_state.desired.endpoint(name)
        if endpoint is None:
            raise EndpointNotFoundError(name)
        files = await asyncio.to_thread(list_files, plane.home.payloads / name)
        writer = plane.telemetry.payloads
        return answer(
            PayloadLogView(
                endpoint=name,
                on=endpoint.payload_log is not None,
                written=writer.written_of(name),
                dropped=writer.dropped_of(name),
                files=[
                    PayloadFileView(
                        path=str(file.path),
                        version=file.version,
                        begin=file.begin,
                        bytes=file.size_bytes,
                        open=file.is_open,
                    )
                    for file in files
                ],
            )
        )

    @route(api, "GET /api/v1/endpoints/{name}/payloads/rows", PayloadRows, _ROWS_EXAMPLE)
    async def rows(
        name: Name,
        limit: Annotated[int, Query(ge=1, le=_MAX_ROWS)] = 20,
        request_id: Annotated[str, Query(max_length=1024)] = "",
    ) -> Response:
        """Return the newest requests and responses of an endpoint's payload log."""
        if plane.target_state.desired.endpoint(name) is None:
            raise EndpointNotFoundError(name)
        check_pyarrow()
        directory = plane.home.payloads / name
        newest = await asyncio.to_thread(newest_rows, directory, limit=limit, request_id=request_id)
        return answer(PayloadRows(rows=list(newest)))
