"""How are metrics answered to a scraper? In the format that it likes best."""

import asyncio
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


async def metrics_answer(request: Request, families: Families, names: list[str]) -> Response:
    """`families` as `request` wants them."""
    wanted = negotiate(request.headers.get("accept", ""))
    # Those of thousands of endpoints take a while, and the loop has others to serve.
    body = await asyncio.to_thread(wanted.render, named(families, names))
    return Response(body, headers={"content-type": wanted.content_type, "vary": "accept"})
