"""Tokens of OpenAI's API by day, endpoint and credential, over HTTP."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import FastAPI, Query, Response

from headrace.control.api.answers import answer, route
from headrace.control.base.context import ServiceContext
from headrace.control.telemetry.service import TelemetryService
from headrace.gateway.statistics import TokenUse

_DAY: Final = r"^\d{4}-\d{2}-\d{2}$"
_DEFAULT_DAYS: Final = 30
_EXAMPLE: Final[dict[str, Any]] = {
    "day": "2026-11-25",
    "endpoint": "chat",
    "version": "2",
    "credential": "key:alice",
    "input": 70124,
    "cached": 31000,
    "output": 20400,
    "reasoning": 0,
    "unknown": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Used tokens, the oldest day first."""

    usage: Sequence[TokenUse]


def add_usage(api: FastAPI, context: ServiceContext, telemetry: TelemetryService) -> None:
    """Add the route of used tokens."""

    @route(api, "GET /api/v1/usage", Usage, {"usage": [_EXAMPLE]})
    async def usage(
        first: Annotated[
            str, Query(pattern=rf"^$|{_DAY}", description="First day, UTC; default: 30 days ago.")
        ] = "",
        last: Annotated[
            str, Query(pattern=rf"^$|{_DAY}", description="Last day, UTC; default: today.")
        ] = "",
        output: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
    ) -> Response:
        """Return tokens of OpenAI's API by day, endpoint, version and credential."""
        today = datetime.fromtimestamp(context.clock.now(), UTC).date()
        begin = first or (today - timedelta(days=_DEFAULT_DAYS)).isoformat()
        uses = await telemetry.tokens.between(begin, last or today.isoformat())
        if output == "json":
            return answer(Usage(usage=uses))
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(TokenUse.__struct_fields__)
        writer.writerows(map(msgspec.structs.astuple, uses))
        return Response(text.getvalue(), media_type="text/csv; charset=utf-8")
