"""How are metrics answered to a scraper? In the format that it likes best."""

import asyncio

from fastapi import Request, Response

from headrace.control.metrics import Families
from headrace.control.metrics_formats import negotiate


async def metrics_answer(request: Request, families: Families) -> Response:
    """`families` as `request` wants them."""
    wanted = negotiate(request.headers.get("accept", ""))
    # Those of thousands of endpoints take a while, and the loop has others to serve.
    body = await asyncio.to_thread(wanted.render, families)
    return Response(body, headers={"content-type": wanted.content_type, "vary": "accept"})
