"""Dependencies, response helpers and examples that all routes of the API share."""

import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from headrace.control.asgi.guards import PROBLEM_TYPE, ProblemDocument
from headrace.control.auth.gatekeeper import CALLER, RULES, required_role_text
from headrace.control.auth.roles import Caller, Role
from headrace.control.desired.applier import Applied
from headrace.control.desired.models import caller_leaves
from headrace.control.plane.control_plane import ControlPlane
from headrace.core.names import NAME_PATTERN, VERSION_PATTERN
from headrace.rollout.state import RolloutPhase

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
    # No default: a route that is reached without the gatekeeper fails.
    caller: Caller = request.scope[CALLER]
    return caller


async def _left(request: Request) -> AsyncIterator[threading.Event]:
    async with caller_leaves(request.receive) as event:
        yield event


def _actor(request: Request) -> str:
    return _caller(request).name


WhoAsks = Annotated[Caller, Depends(_caller)]
"""The caller, as the gatekeeper authenticated it."""
Left = Annotated[threading.Event, Depends(_left)]
"""Set when the caller closes the connection; for routes that have read the body."""
Actor = Annotated[str, Depends(_actor)]
"""The caller's name, for histories."""


class RequestBody(BaseModel):
    """Request body; unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


View = TypeVar("View")


def view_of(kind: Callable[..., View], source: object, **more: object) -> View:
    """Return a view of `source`: fields come from attributes of the same name, or from `more`."""
    names = kind.__dataclass_fields__.keys() - more.keys()  # type: ignore[attr-defined]  # a dataclass
    return kind(**{name: getattr(source, name) for name in names}, **more)


def answer(
    document: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `document` as JSON; numbers that JSON lacks, such as infinity, become null."""
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedView:
    """Result of a change; `ready` and `not_ready` are set if the request waited."""

    changes: list[str]
    generation: int
    warnings: list[str] = field(default_factory=list)
    """Settings now in force that are rarely intended."""
    ready: bool | None = None
    not_ready: dict[str, str] | None = None
    """The reason, by endpoint or by `stream 'NAME'`."""


Handler = TypeVar("Handler", bound=Callable[..., Any])


def route(
    api: FastAPI,
    method_path: str,
    document: type | None = None,
    example: object = None,
    *,
    status: int = 200,
    **options: Any,  # noqa: ANN401  # FastAPI's own
) -> Callable[[Handler], Handler]:
    """Declare a route whose response is JSON; the function's docstring is its summary.

    Args:
        method_path: Method and path, such as `GET /api/v1/users`.
        document: The class of the response, which `describe_documents` describes; None without a
            class.
        example: An example response.
    """
    content: dict[str, Any] = {} if example is None else {"example": example}
    if document is not None:
        api.state.documents = getattr(api.state, "documents", {ProblemDocument}) | {document}
        content["schema"] = {"$ref": f"#/components/schemas/{document.__name__}"}
    options["responses"] = {status: {"content": {"application/json": content}}, **PROBLEMS}
    method, _, path = method_path.partition(" ")

    def declare(handler: Handler) -> Handler:
        summary = (handler.__doc__ or "").removesuffix(".")
        declared = api.api_route(
            path, methods=[method], summary=summary, status_code=status, **options
        )
        return declared(handler)

    return declare


PROBLEMS: Final[dict[int | str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457); `code` is stable, `detail` is readable.",
        "content": {
            PROBLEM_TYPE: {
                "schema": {"$ref": "#/components/schemas/ProblemDocument"},
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
    """Return the response to a change, with what is not ready after `wait_s`.

    Args:
        caller: Limits the response to its endpoints; streams are included only for callers who may
            see the whole system.
        name: The changed endpoint, whose generation is returned and waited for; empty for all.
    """
    document: dict[str, Any] = asdict(applied)
    if wait_s > 0:
        is_all = not name and caller.may(Role.VIEWER)
        observed = await plane.wait_ready(wait_s, name=name, streams=is_all, rollouts=True)
        visible = [
            endpoint
            for endpoint in observed.endpoints
            if name in {"", endpoint.name} and caller.may(Role.VIEWER, endpoint.name)
        ]
        not_ready = {e.name: e.message for e in visible if not e.ready}
        for endpoint in visible if applied.changes else ():
            record = plane.target_state.rollout(endpoint.name)
            phase = None if record is None else record.state.phase
            if record is not None and phase in {RolloutPhase.PREPARING, RolloutPhase.ROLLED_BACK}:
                reason = record.state.reason.partition("\n")[0]
                state = f"rollout {record.id} is {record.state.phase.replace('_', ' ')}"
                not_ready.setdefault(endpoint.name, f"{state}: {reason}" if reason else state)
        if is_all:
            problems = [
                (stream.name, stream.problem) for stream in observed.streams if not stream.is_well
            ]
            not_ready |= {f"stream '{name_}'": problem for name_, problem in problems}
        document["ready"] = observed.gateway.ready and not not_ready
        document["not_ready"] = not_ready
    headers = {"etag": etag(plane.target_state.generation(name))} if name else None
    return answer(document, status=status, headers=headers)


def etag(generation: int) -> str:
    """Return a generation as an HTTP entity tag."""
    return f'"{generation}"'


def describe_documents(api: FastAPI) -> None:
    """Make the OpenAPI document describe the response documents and the role of each route."""
    make = api.openapi

    def described() -> dict[str, Any]:
        document = make()
        _, parts = msgspec.json.schema_components(
            api.state.documents, ref_template="#/components/schemas/{name}"
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(parts)
        components["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "`headrace token show` on the machine, or `headrace tokens create`.",
            }
        }
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                rule = RULES[method.upper(), path]
                if operation.get("description", "").rstrip(".") == operation.get("summary"):
                    del operation["description"]  # the same docstring
                operation["security"] = [] if rule.is_public else [{"token": []}]
                if needs := required_role_text(rule):
                    operation["x-headrace-role"] = needs
        return document

    api.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend it


ENTRY: Final = {"model": "fraud:3", "replicas": 2, "timeout_s": 0.5}
SPEC: Final = {"version": 1, "endpoints": [{"name": "fraud", "model": "fraud:3"}]}
APPLIED: Final[dict[str, Any]] = {
    "changes": ["endpoint 'fraud' added: version 3 (fraud:3, weight 100, 1 replica)"],
    "generation": 12,
    "warnings": [],
}
DIFF: Final[dict[str, Any]] = {
    "changes": ["endpoint 'fraud': starts a canary from version 3 to 4 (fraud:4)"],
    "warnings": [],
    "endpoints": {
        "fraud": {
            "before": {"name": "fraud", "model": "fraud:3"},
            "after": {"name": "fraud", "model": "fraud:4"},
        }
    },
}
START: Final[dict[str, Any]] = {
    "canary": {
        "summary": "Two steps, each until the metrics' verdict",
        "value": {
            "version": "4",
            "rollout": {
                "strategy": "canary",
                "steps": [
                    {"weight": 10, "until": "verdict"},
                    {"weight": 50, "pause_s": 60, "until": "verdict"},
                ],
            },
        },
    },
    "shadow": {
        "summary": "Copies of a tenth of the requests, compared answer by answer",
        "value": {"version": "4", "rollout": {"strategy": "shadow", "mirror_percent": 10}},
    },
    "upstream": {
        "summary": "A server that someone else runs",
        "value": {"upstream": {"url": "http://triton:8000", "protocol": "v2"}},
    },
}
ROLLOUT: Final[dict[str, Any]] = {
    "id": "r7",
    "endpoint": "fraud",
    "strategy": "canary",
    "phase": "rolled_back",
    "over": True,
    "from_version": "3",
    "to_version": "4",
    "from_model": "fraud:3",
    "to_model": "fraud:4",
    "weight": 0,
    "baseline_weight": 0,
    "mirror_percent": 0,
    "step": 0,
    "steps": [{"weight": 10, "pause_s": 0.0, "until": "verdict"}],
    "began": 1764000000.0,
    "since": 1764000184.0,
    "duration_s": 184.0,
    "reason": "errors: 5.1 % of 2,040 requests failed on version 4 against 0.1 % of 18,110",
    "problem": "",
    "actor": "ann@laptop",
    "verdict": {
        "outcome": "roll_back",
        "at": 1764000184.0,
        "explanation": "errors: 5.1 % of 2,040 requests failed on version 4 against 0.1 % of "
        "18,110 on version 3: between +3.2 and +7.1 points; 0.5 points are tolerated",
        "metrics": [
            {
                "metric": "errors",
                "outcome": "roll_back",
                "reason": "5.1 % against 0.1 %",
                "unit": "ratio difference",
                "baseline": 0.001,
                "candidate": 0.051,
                "effect": 0.05,
                "low": 0.032,
                "high": 0.071,
                "margin": 0.005,
                "alpha": 0.0125,
                "samples": [18110, 2040],
            }
        ],
    },
    "requests": {"baseline": 18110, "candidate": 2040},
    "counted": {"baseline_requests": 18110, "candidate_requests": 2040, "counted_s": 176.0},
    "outlook": None,
    "notes": [],
}
EVIDENCE: Final[dict[str, Any]] = {
    "id": "r7",
    "endpoint": "fraud",
    "step_s": 2.0,
    "metrics": [
        {
            "metric": "errors",
            "unit": "ratio difference",
            "points": [
                {
                    "at": 1764000010.0,
                    "effect": 0.04,
                    "low": -0.021,
                    "high": 0.19,
                    "margin": 0.005,
                },
                {
                    "at": 1764000184.0,
                    "effect": 0.05,
                    "low": 0.032,
                    "high": 0.071,
                    "margin": 0.005,
                },
            ],
        }
    ],
}
STATUS: Final[dict[str, Any]] = {
    "name": "fraud",
    "ready": True,
    "failed": False,
    "url": "http://127.0.0.1:8000/v2/models/fraud/infer",
    "revisions": [],
    "message": "",
}
ENDPOINT: Final[dict[str, Any]] = {
    "name": "fraud",
    "generation": 3,
    "spec": {"name": "fraud", **ENTRY},
    "status": STATUS,
    "conditions": [
        {
            "type": "Ready",
            "status": True,
            "reason": "Serving",
            "message": "",
            "since": 1764000000.0,
        }
    ],
    "rollout": ROLLOUT,
}
GENERATION: Final[dict[str, Any]] = {
    "generation": 3,
    "at": 1764000000.0,
    "reason": "applied",
    "actor": "ann@laptop",
    "current": True,
    "spec": {"name": "fraud", "model": "fraud:3"},
    "versions": [{"version": "3", "model": "fraud:3", "weight": 100, "replicas": 2}],
}
ROLLOUT_END: Final[dict[str, Any]] = {
    "id": "r7",
    "at": 1764000184.0,
    "phase": "rolled_back",
    "from_version": "3",
    "to_version": "4",
    "duration_s": 184.0,
    "decided_by": "verdict",
    "why": "errors: 5.1 % of 2,040 requests failed on version 4 against 0.1 % of 18,110",
}
ROLLOUT_PREVIEW: Final[dict[str, Any]] = {
    "strategy": "canary",
    "stages": [
        {
            "name": "step 1 of 1 (10 % of the requests)",
            "weight": 10,
            "baseline_weight": 0,
            "mirror_percent": 0,
            "pause_s": 0.0,
            "until": "verdict",
        }
    ],
    "max_duration_s": 7200.0,
    "keep_s": None,
    "outlook": {
        "requests_per_s": 50.0,
        "good_s": 1080.0,
        "worse_s": 2460.0,
        "max_duration_s": 7200.0,
        "suffices": True,
    },
    "simulation": {
        "runs": 50,
        "duration_s": 4920.0,
        "requests_per_s": 50.0,
        "outcomes": [
            {
                "candidate": "as good as the old version",
                "promoted_ratio": 1.0,
                "rolled_back_ratio": 0.0,
                "undecided_ratio": 0.0,
                "median_s": 1150.0,
            }
        ],
    },
    "notes": [
        "at 50 requests/s a version as good as the old one has its verdict after about 18 min, ..."
    ],
}
FEEDBACK: Final[dict[str, Any]] = {
    "one": {"summary": "One", "value": {"request_id": "5b0c6a", "reward": 1.0}},
    "many": {
        "summary": "Several, each answered for itself",
        "value": [{"request_id": "5b0c6a", "reward": 1.0}, {"request_id": "91fe2d", "reward": 0}],
    },
    "label": {"summary": "A label", "value": {"request_id": "5b0c6a", "label": "cat"}},
}
RESULTS: Final[dict[str, Any]] = {"results": [{"request_id": "5b0c6a", "outcome": "taken"}]}
EVENT: Final[dict[str, Any]] = {
    "at": 1764000184.0,
    "endpoint": "fraud",
    "kind": "rollout",
    "reason": "RolledBack",
    "message": "rollout r7: errors: 5.1 % against 0.1 %",
    "generation": 4,
    "rollout": "r7",
    "actor": "",
    "data": {"low": 0.032, "margin": 0.005},
    "id": 812,
}
MODEL: Final[dict[str, Any]] = {
    "name": "fraud",
    "version": "4",
    "reference": "fraud:4",
    "digest": "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    "size_bytes": 25918,
    "files": [
        {
            "path": "",
            "size_bytes": 25918,
            "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        }
    ],
    "filename": "model.onnx",
    "runtime": "onnx",
    "signature": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 32]}],
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 2]}],
        "batched": True,
    },
    "created_at": "2025-11-24T16:00:00Z",
    "created_by": "ann@laptop",
    "source": "git:4f442bb",
    "labels": {},
    "metadata": {},
    "runs_code": False,
    "first_run": {"run_s": 0.00012, "error": ""},
    "schema": 1,
}
