"""Answers with metrics to scrapers, in the format that they prefer."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

from fastapi import Query, Request, Response

from headrace.observe.metrics import OPENMETRICS_TYPE, TEXT_TYPE, Families, openmetrics, text

_MAX_NAMES: Final = 20
_OPENMETRICS: Final = "application/openmetrics-text"
_WEIGHT: Final = re.compile(r"[01](?:\.[0-9]{0,3})?")

Names = Annotated[
    list[str],
    Query(
        max_length=_MAX_NAMES,
        description="What metrics' names begin with, repeated; all without any.",
        examples=["headrace_"],
    ),
]


Full = Annotated[
    bool,
    Query(
        description="Whether to tell every bucket of every histogram, KServe's metrics and all of "
        "Envoy's: five times as much."
    ),
]


async def metrics_answer(
    request: Request,
    read: Callable[[bool], Awaitable[Families]],
    names: list[str],
    *,
    full: bool,
) -> Response:
    """The metrics as `request` wants them.

    Args:
        read: Returns them, all if its argument is true.
    """
    is_open = prefers_openmetrics(request.headers.get("accept", ""))
    families = named(await read(full), names)
    # Those of thousands of endpoints take a while, and the loop has others to serve.
    if is_open:
        body, content_type = await asyncio.to_thread(openmetrics, families), OPENMETRICS_TYPE
    else:
        body, content_type = await asyncio.to_thread(text, families.values()), TEXT_TYPE
    return Response(body, headers={"content-type": content_type, "vary": "accept"})


def named(families: Families, prefixes: Sequence[str]) -> Families:
    """Those whose names begin with one of `prefixes`; all if there are none."""
    if not prefixes:
        return families
    start = tuple(prefixes)
    return {name: family for name, family in families.items() if name.startswith(start)}


def prefers_openmetrics(accept: str) -> bool:
    """Whether `accept` weighs OpenMetrics 1.0 above the text format, which is the default."""
    is_open, best_weight = False, 0.0
    for item in accept.lower().split(","):
        media, *rest = (part.strip() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        is_known = media == "text/plain" or (
            media == _OPENMETRICS and parameters.get("version", "") in {"", "1.0.0"}
        )
        weight = parameters.get("q", "1")
        if is_known and _WEIGHT.fullmatch(weight) and float(weight) > best_weight:
            is_open, best_weight = media == _OPENMETRICS, float(weight)
    return is_open
