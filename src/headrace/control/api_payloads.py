"""The payload log of an endpoint over HTTP: its files, and the newest rows."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Response

from headrace.control.api_answers import Name, answer, shown
from headrace.control.payloads.files import check_pyarrow, list_files
from headrace.control.payloads.rows import newest_rows
from headrace.control.plane import ControlPlane
from headrace.core import ModelNotFoundError

_MAX_ROWS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadFileView:
    """One file on the machine of the control plane. `open`: rows are still added."""

    path: str
    version: str
    begin: str
    bytes: int
    open: bool


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
    """Requests and answers, the newest first; tensors are cut after 64 values."""

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

    @api.get(
        "/api/v1/endpoints/{name}/payloads",
        summary="The files of an endpoint's payload log",
        response_model=PayloadLogView,
        responses=shown(_LOG_EXAMPLE),
    )
    async def payloads(name: Name) -> Response:
        endpoint = plane.desired.endpoint(name)
        if endpoint is None:
            raise ModelNotFoundError(name, "")
        files = await asyncio.to_thread(list_files, plane.home.payloads / name)
        writer = plane.payloads
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

    @api.get(
        "/api/v1/endpoints/{name}/payloads/rows",
        summary="The newest requests and answers of an endpoint's payload log",
        response_model=PayloadRows,
        responses=shown(_ROWS_EXAMPLE),
    )
    async def rows(
        name: Name,
        limit: Annotated[int, Query(ge=1, le=_MAX_ROWS)] = 20,
        request_id: Annotated[str, Query(max_length=1024)] = "",
    ) -> Response:
        if plane.desired.endpoint(name) is None:
            raise ModelNotFoundError(name, "")
        check_pyarrow()
        directory = plane.home.payloads / name
        found = await asyncio.to_thread(newest_rows, directory, limit=limit, request_id=request_id)
        return answer(PayloadRows(rows=list(found)))
