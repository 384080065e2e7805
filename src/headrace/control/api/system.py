"""System routes over HTTP: status, spec, differences and metrics."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import Body, FastAPI, Query, Request, Response

from headrace.control.api import answers as examples
from headrace.control.api.answers import (
    Actor,
    AppliedView,
    Left,
    WaitS,
    WhoAsks,
    answer,
    applied_answer,
    route,
)
from headrace.control.auth.roles import Caller, Role
from headrace.control.desired.applier import Diff
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.plane.metrics import all_metrics
from headrace.control.plane.status import SystemStatus
from headrace.core import InvalidArgumentError
from headrace.core.redact import redact
from headrace.core.spec.parse import json_schema
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
        description="Include every bucket of every histogram, KServe's metrics and all of Envoy's: "
        "five times the size."
    ),
]


async def metrics_answer(
    request: Request,
    read: Callable[[bool], Awaitable[Families]],
    names: list[str],
    *,
    full: bool,
) -> Response:
    """Return the metrics in the format that `request` accepts.

    Args:
        read: Returns the metrics; all of them if its argument is true.
    """
    is_open = prefers_openmetrics(request.headers.get("accept", ""))
    families = named(await read(full), names)
    # Rendering the metrics of thousands of endpoints is slow, so it must not block the loop.
    if is_open:
        body, content_type = await asyncio.to_thread(openmetrics, families), OPENMETRICS_TYPE
    else:
        body, content_type = await asyncio.to_thread(text, families.values()), TEXT_TYPE
    return Response(body, headers={"content-type": content_type, "vary": "accept"})


def named(families: Families, prefixes: Sequence[str]) -> Families:
    """Return the families whose names begin with one of `prefixes`; all without prefixes."""
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


def status_seen_by(caller: Caller, status: SystemStatus) -> SystemStatus:
    """Return the status limited to the caller's endpoints, without features, streams and jobs."""
    visible = caller.endpoints(Role.VIEWER)
    if visible is None:
        return status
    endpoints = tuple(endpoint for endpoint in status.endpoints if endpoint.name in visible)
    ready = status.gateway.ready and all(endpoint.ready for endpoint in endpoints)
    return replace(
        status,
        ready=ready,
        endpoints=endpoints,
        features=(),
        feature_skew=(),
        streams=(),
        jobs=(),
        faults=tuple(fault for fault in status.faults if fault.endpoint in visible),
    )


def spec_seen_by(caller: Caller, document: dict[str, Any]) -> dict[str, Any]:
    """Return the spec limited to the caller's endpoints, without settings of the whole system."""
    visible = caller.endpoints(Role.VIEWER)
    if visible is None:
        return document
    entries = [entry for entry in document.get("endpoints", []) if entry.get("name") in visible]
    return {"version": document.get("version", 1), "endpoints": entries}


def diff_seen_by(caller: Caller, diff: Diff) -> Diff:
    """Return the differences of the caller's endpoints."""
    visible = caller.endpoints(Role.VIEWER)
    if visible is None:
        return diff
    starts = tuple(f"endpoint '{name}'" for name in visible)
    return Diff(
        changes=[line for line in diff.changes if line.startswith(starts)],
        endpoints={
            name: difference for name, difference in diff.endpoints.items() if name in visible
        },
        warnings=[line for line in diff.warnings if line.startswith(starts)],
    )


_MAX_EXPECTED: Final = 10_000
Document = Annotated[dict[str, Any], Body(examples=[examples.SPEC])]


def add_state(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of the whole system."""

    @route(api, "GET /api/v1/health")
    async def health() -> dict[str, bool]:
        """Return ok if the control plane answers; needs no authentication."""
        return {"alive": True}

    @route(api, "GET /api/v1/status", SystemStatus)
    async def status(caller: WhoAsks) -> Response:
        """Return the status of the whole system."""
        status = replace(plane.status(), jobs=plane.workloads.jobs.views())
        return answer(status_seen_by(caller, status))

    @route(api, "GET /api/v1/spec", example={"generation": 12, "spec": examples.SPEC})
    async def spec(caller: WhoAsks) -> dict[str, Any]:
        """Return the applied spec and its generation."""
        document = redact(spec_seen_by(caller, plane.target_state.desired.spec))
        return {"generation": plane.target_state.desired.generation, "spec": document}

    @route(api, "GET /api/v1/schema")
    async def schema() -> dict[str, Any]:
        """Return the JSON Schema of the spec file."""
        return json_schema()

    @route(api, "POST /api/v1/apply", AppliedView, examples.APPLIED)
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
        """Apply the spec; what it does not name is removed."""
        applied = await plane.desired_state.apply(
            document, caller=caller, expected=_generations(expected), cancel=left
        )
        return await applied_answer(plane, applied, caller=caller, wait_s=wait_s)

    @route(api, "POST /api/v1/diff", Diff, examples.DIFF)
    async def diff(document: Document, caller: WhoAsks, left: Left) -> Response:
        """Return what an apply would change; serving is unaffected."""
        difference = await plane.desired_state.diff(document, caller=caller, cancel=left)
        return answer(diff_seen_by(caller, difference))

    @route(api, "POST /api/v1/stop", status=202)
    async def stop(actor: Actor) -> dict[str, Any]:
        """Drain and stop everything, then exit."""
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
    """Return generations by endpoint, parsed from `NAME:GENERATION`.

    Raises:
        InvalidArgumentError: An item has another format.
    """
    generations = {}
    for item in expected:
        name, _, number = item.rpartition(":")
        if not name or not number.isdecimal():
            raise InvalidArgumentError(f"expected={item[:200]!r} is not NAME:GENERATION")
        generations[name] = int(number)
    return generations or None
