"""Answers with metrics to scrapers, in the format that they prefer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import Query, Request, Response

from headrace.control.metrics import Families, named
from headrace.control.metrics_formats import negotiate

_MAX_NAMES: Final = 20

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
    chosen = negotiate(request.headers.get("accept", ""))
    families = await read(full)
    # Those of thousands of endpoints take a while, and the loop has others to serve.
    body = await asyncio.to_thread(chosen.render, named(families, names))
    return Response(body, headers={"content-type": chosen.content_type, "vary": "accept"})
