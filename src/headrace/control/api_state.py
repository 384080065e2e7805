"""The whole system over HTTP: how it is, what it should be, what a change would change."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import Body, FastAPI, Query, Request, Response

from headrace.control import api_examples as examples
from headrace.control.access.scope import diff_seen_by, spec_seen_by, status_seen_by
from headrace.control.api_answers import (
    Actor,
    AppliedView,
    Left,
    WaitS,
    WhoAsks,
    answer,
    applied_answer,
    shown,
)
from headrace.control.api_metrics import Full, Names, metrics_answer
from headrace.control.differences import Diff
from headrace.control.plane import ControlPlane
from headrace.control.scrape import all_metrics
from headrace.control.status import Status
from headrace.core import InvalidArgumentError
from headrace.core.redact import redact
from headrace.core.spec import json_schema
from headrace.observe.metrics import Families

_MAX_EXPECTED: Final = 10_000

Document = Annotated[dict[str, Any], Body(examples=[examples.SPEC])]


def add_state(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of the system as a whole."""

    @api.get("/api/v1/health", summary="Whether the control plane answers; open to everybody")
    async def health() -> dict[str, bool]:
        return {"alive": True}

    @api.get("/api/v1/status", summary="How everything is now")
    async def status(caller: WhoAsks) -> Status:
        return status_seen_by(caller, replace(plane.status(), jobs=plane.jobs.views()))

    @api.get(
        "/api/v1/spec",
        summary="The spec as it was applied, and its generation",
        responses=shown({"generation": 12, "spec": examples.SPEC}),
    )
    async def spec(caller: WhoAsks) -> dict[str, Any]:
        document = redact(spec_seen_by(caller, plane.desired.spec))
        return {"generation": plane.desired.generation, "spec": document}

    @api.get("/api/v1/schema", summary="JSON Schema of the spec file")
    async def schema() -> dict[str, Any]:
        return json_schema()

    @api.post(
        "/api/v1/apply",
        summary="Want what the spec says, and nothing else",
        response_model=AppliedView,
        responses=shown(examples.APPLIED),
    )
    async def apply(
        document: Document,
        caller: WhoAsks,
        left: Left,
        wait_s: WaitS = 0.0,
        expected: Annotated[
            list[str],
            Query(
                max_length=_MAX_EXPECTED,
                description="`NAME:GENERATION`, repeated: refused with 409 if an endpoint is not "
                "at the generation that was read; 0 for one that must not exist.",
                examples=["fraud:3"],
            ),
        ] = [],  # noqa: B006  # FastAPI copies it
    ) -> Response:
        applied = await plane.orders.apply(
            document, caller=caller, expected=_generations(expected), cancel=left
        )
        return await applied_answer(plane, applied, caller=caller, wait_s=wait_s)

    @api.post(
        "/api/v1/diff",
        summary="What an apply would change; nothing is served differently",
        response_model=Diff,
        responses=shown(examples.DIFF),
    )
    async def diff(document: Document, caller: WhoAsks, left: Left) -> Response:
        found = await plane.orders.diff(document, caller=caller, cancel=left)
        return answer(diff_seen_by(caller, found))

    @api.post("/api/v1/stop", summary="Drain and stop everything, then exit", status_code=202)
    async def stop(actor: Actor) -> dict[str, Any]:
        await plane.note("system.stop", "", actor=actor)
        plane.request_stop()
        return {"stopping": True}

    @api.get("/metrics", summary="Metrics of all processes, in the format that `accept` asks for")
    async def metrics(
        request: Request,
        names: Names = [],  # noqa: B006  # FastAPI copies it
        *,
        full: Full = False,
    ) -> Response:
        async def read(everything: bool) -> Families:  # noqa: FBT001  # the function's only argument
            return await all_metrics(plane, full=everything)

        return await metrics_answer(request, read, names, full=full)


def _generations(expected: list[str]) -> Mapping[str, int] | None:
    """Generations by endpoint, of `NAME:GENERATION` each.

    Raises:
        InvalidArgumentError: One is something else.
    """
    found = {}
    for item in expected:
        name, _, number = item.rpartition(":")
        if not name or not number.isdecimal():
            raise InvalidArgumentError(f"expected={item[:200]!r} is not NAME:GENERATION")
        found[name] = int(number)
    return found or None
