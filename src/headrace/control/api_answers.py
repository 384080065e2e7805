"""What do all routes of the management API have in common? Who asks, how answers are written."""

import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from pydantic import Field

from headrace.control.access.gatekeeper import CALLER
from headrace.control.access.roles import Caller, Role
from headrace.control.access.route_roles import RULES, told
from headrace.control.model_work import caller_leaves
from headrace.control.plane import ControlPlane
from headrace.control.problems import PROBLEM_TYPE, Problem
from headrace.control.wishes import Applied
from headrace.core.names import NAME_PATTERN, VERSION_PATTERN
from headrace.registry import ModelVersion

MAX_WAIT_S: Final = 3600.0
_DAY_S: Final = 86_400.0
LIFETIME_S: Final = 90 * _DAY_S

Name = Annotated[str, Path(pattern=NAME_PATTERN, description="The endpoint's name.")]
ModelName = Annotated[str, Path(pattern=NAME_PATTERN, description="The model's name.")]
Version = Annotated[str, Path(pattern=VERSION_PATTERN, description="The version's number.")]
WaitS = Annotated[
    float,
    Query(ge=0, le=MAX_WAIT_S, description="Wait until all is ready, so many seconds at most."),
]
Lifetime = Annotated[
    float | None,
    Field(
        gt=0,
        le=10 * 366 * _DAY_S,
        allow_inf_nan=False,
        description="How long it is valid, in seconds; null for ever.",
    ),
]


def _caller(request: Request) -> Caller:
    # Without a default: a route that is reached past the gatekeeper fails.
    caller: Caller = request.scope[CALLER]
    return caller


async def _left(request: Request) -> AsyncIterator[threading.Event]:
    async with caller_leaves(request.receive) as event:
        yield event


def _actor(request: Request) -> str:
    return _caller(request).name


WhoAsks = Annotated[Caller, Depends(_caller)]
"""Who asks, as the gatekeeper found it."""
Left = Annotated[threading.Event, Depends(_left)]
"""Set when the caller closes the connection; for routes that have read the body."""
Actor = Annotated[str, Depends(_actor)]
"""The name of who asks, for histories."""


def answer(
    document: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`document` as JSON; what is no number there (an endless interval's end) becomes null."""
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedView:
    """What a change did; `ready` and `not_ready` if it was waited for.

    `not_ready`: why not, by endpoint, or by `stream 'NAME'`. `warnings`: what is in force by it and
    rarely meant.
    """

    changes: list[str]
    generation: int
    warnings: list[str] = field(default_factory=list)
    ready: bool | None = None
    not_ready: dict[str, str] | None = None


def shown(example: object, *, status: int = 200, schema: str = "") -> dict[int | str, Any]:
    """How an answer looks, for the API's own description.

    Args:
        schema: One of `MESSAGES`, where FastAPI cannot tell the type itself.
    """
    content: dict[str, Any] = {"example": example}
    if schema:
        content["schema"] = {"$ref": f"#/components/schemas/{schema}"}
    return {status: {"content": {"application/json": content}}, **PROBLEMS}


MESSAGES: Final = (Problem, ModelVersion)
"""Messages that answers are made of, which FastAPI does not know."""


PROBLEMS: Final[dict[int | str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457); `code` is stable, `detail` is for people.",
        "content": {
            PROBLEM_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "example": {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "code": "NOT_FOUND",
                    "detail": "Request for unknown model: 'nobody' is not found",
                    "error": "Request for unknown model: 'nobody' is not found",
                },
            }
        },
    }
}


async def applied_answer(
    plane: ControlPlane,
    applied: Applied,
    *,
    caller: Caller,
    wait_s: float = 0.0,
    name: str = "",
    status: int = 200,
) -> Response:
    """What a change answers; with the endpoints and streams that are not ready after `wait_s`.

    Args:
        caller: Whose endpoints are told; of streams only who may see the whole system is told.
        name: The endpoint that was changed, whose generation is told and waited for; empty for all.
    """
    document: dict[str, Any] = asdict(applied)
    if wait_s > 0:
        is_all = not name and caller.may(Role.VIEWER)
        found = await plane.wait_ready(wait_s, name=name, streams=is_all)
        mine = [
            endpoint
            for endpoint in found.endpoints
            if name in {"", endpoint.name} and caller.may(Role.VIEWER, endpoint.name)
        ]
        not_ready = {e.name: e.message for e in mine if not e.ready}
        if is_all:
            problems = [(one.name, one.problem) for one in found.streams if not one.is_well]
            not_ready |= {f"stream '{name_}'": problem for name_, problem in problems}
        document["ready"] = found.gateway.ready and not not_ready
        document["not_ready"] = not_ready
    headers = {"etag": etag(plane.endpoint_generation(name))} if name else None
    return answer(document, status=status, headers=headers)


def etag(generation: int) -> str:
    """A generation as HTTP's validator."""
    return f'"{generation}"'


def add_message_schemas(api: FastAPI) -> None:
    """Let the API's description say what `MESSAGES` hold."""
    make = api.openapi

    def with_messages() -> dict[str, Any]:
        document = make()
        _, parts = msgspec.json.schema_components(
            MESSAGES, ref_template="#/components/schemas/{name}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        _add_security(document)
        return document

    api.openapi = with_messages  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _add_security(document: dict[str, Any]) -> None:
    """Say how a caller shows who it is, and which role each route needs."""
    document["components"]["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "`headrace token show` on the machine, or `headrace tokens create`.",
        }
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            rule = RULES[method.upper(), path]
            operation["security"] = [] if rule.is_public else [{"token": []}]
            if needs := told(rule):
                operation["x-headrace-role"] = needs
