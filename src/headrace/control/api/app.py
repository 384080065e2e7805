"""Management API over HTTP. Imported late because FastAPI loads slower than a replica."""

from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from headrace import __version__
from headrace.control.api.access import add_access, add_login
from headrace.control.api.alerts import add_alerts
from headrace.control.api.answers import RequestBody, describe_documents
from headrace.control.api.bulk import BULK_PREFIXES, add_batches, add_files
from headrace.control.api.endpoints import add_endpoints
from headrace.control.api.events import add_events, add_logs
from headrace.control.api.features import add_drift, add_features
from headrace.control.api.history import add_history
from headrace.control.api.jobs import add_jobs
from headrace.control.api.keys import add_keys
from headrace.control.api.models import add_models
from headrace.control.api.payloads import add_payloads
from headrace.control.api.rollouts import add_rollouts
from headrace.control.api.server import MakeConsole, PathRouter, pages_over
from headrace.control.api.streams import add_streams
from headrace.control.api.system import Full, Names, add_state, metrics_answer
from headrace.control.api.triton import add_grpc_statistics, add_repository, add_statistics
from headrace.control.api.usage import add_usage
from headrace.control.asgi.edge import SharedCall
from headrace.control.asgi.guards import (
    PROBLEM_TYPE,
    App,
    BodyLimit,
    HostGuard,
    ProblemDocument,
    problem_body,
    problem_of,
)
from headrace.control.auth.access import AccessControl
from headrace.control.auth.gatekeeper import FromGateway, Gatekeeper
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.plane.metrics import all_metrics
from headrace.core import Code, HeadraceError, InvalidArgumentError
from headrace.core.spec.mistakes import mistakes_of
from headrace.core.spec.parse import SpecMistake
from headrace.observe.metrics import Families
from headrace.protocol.openai import encode_openai_error

_BAD_REQUEST: Final = 400
_HTTP_CODES: Final = {
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    400: Code.INVALID_ARGUMENT,
}


def build_api(
    plane: ControlPlane,
    access: AccessControl,
    *,
    allowed_hosts: frozenset[str],
    console: MakeConsole | None = None,
) -> App:
    """Return the management API as an ASGI application behind its guard and its gatekeeper.

    Args:
        console: Builds the web console that is served beside the API.
    """
    api = management_app(plane, access)
    app = _gatekeeper(BodyLimit(app=api), plane, access)
    if console is not None:
        app = PathRouter(api=app, pages=console(pages_over(app, plane, access)))
    return HostGuard(app=app, allowed_hosts=allowed_hosts)


def management_app(plane: ControlPlane, access: AccessControl) -> FastAPI:
    """Return the routes of the management API, which expect authorized callers."""
    api = FastAPI(
        title="Headrace management API",
        version=__version__,
        description="Desired and observed state of one installation.",
        docs_url=None,  # they load scripts from another site
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    _add_errors(api)
    add_state(api, plane)
    add_endpoints(api, plane)
    add_rollouts(api, plane)
    add_drift(api, plane)
    add_events(api, plane)
    add_features(api, plane)
    add_streams(api, plane.context, plane.workloads.streams)
    add_history(api, plane)
    add_jobs(api, plane.context, plane.workloads.jobs)
    add_models(api, plane)
    add_logs(api, plane)
    add_payloads(api, plane)
    add_statistics(api, plane)
    add_repository(api, plane)
    add_keys(api, plane, plane.reconciling.keys)
    add_access(api, plane, access.people)
    add_login(api, access)
    add_alerts(api, plane.context, plane.telemetry)
    add_usage(api, plane.context, plane.telemetry)
    describe_documents(api)
    return api


def _gatekeeper(app: App, plane: ControlPlane, access: AccessControl) -> App:
    return Gatekeeper(
        app=app, authenticator=access.authenticator, model_facts=plane.desired_state.model_facts
    )


def build_metrics(plane: ControlPlane, access: AccessControl, *, is_open: bool) -> App:
    """Return the application of the metrics port: `/metrics` and nothing else.

    Args:
        is_open: Whether metrics need no authentication; else only viewers of the whole system
            may read them.
    """
    api = FastAPI(openapi_url=None)
    _add_errors(api)
    # Each scrape calls every replica: many concurrent callers would flood them.
    shared = {full: SharedCall(partial(all_metrics, plane, full=full)) for full in (False, True)}

    @api.get("/metrics")
    async def metrics(
        request: Request,
        names: Names = [],  # noqa: B006  # FastAPI copies it
        *,
        full: Full = False,
    ) -> Response:
        def read(everything: bool) -> Awaitable[Families]:  # noqa: FBT001  # its only argument
            return shared[everything].get()

        return await metrics_answer(request, read, names, full=full)

    # Scrapers reach this port under any host name; the port only allows reads.
    if is_open:
        return api
    return _gatekeeper(api, plane, access)


def build_gateway_answers(plane: ControlPlane, *, is_local: bool) -> App:
    """Return the application that serves a gateway: statistics, OpenAI's files and batches.

    Args:
        is_local: Whether the gateway runs on this host. The others forward no credentials, without
            which files have no owner.
    """
    api = FastAPI(openapi_url=None)
    _add_errors(api)
    add_statistics(api, plane)
    add_grpc_statistics(api, plane)
    if is_local:
        add_files(api, plane)
        add_batches(api, plane)
    return FromGateway(app=api)


def _problem(
    request: Request, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a problem document, or an error in OpenAI's form if the path is of its API."""
    if not request.url.path.startswith(BULK_PREFIXES):
        return Response(body, status, headers, media_type=PROBLEM_TYPE)
    detail = msgspec.json.decode(body, type=ProblemDocument).detail
    content = encode_openai_error(HeadraceError(detail), status)
    return Response(content, status, headers, media_type="application/json")


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(HeadraceError)
    async def headrace_error(request: Request, error: HeadraceError) -> Response:
        status, body = problem_of(error)
        headers = {}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(max(round(error.retry_after_s), 1))
        return _problem(request, status, body, headers)

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        mistakes = mistakes_of(error.errors(), RequestBody)
        content_type = request.headers.get("content-type", "nothing")
        if "json" not in content_type and any(m.place.startswith("body") for m in mistakes):
            # The type that `curl -d` sends. A form on another site can send it too, but not JSON.
            message = f"is read with content-type: application/json only, not {content_type[:100]}"
            mistakes = [SpecMistake(place="body", message=message)]
        body = problem_body(
            status=_BAD_REQUEST,
            code=Code.INVALID_ARGUMENT,
            detail="; ".join(map(str, mistakes)),
            mistakes=mistakes,
        )
        return _problem(request, _BAD_REQUEST, body)

    @api.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> Response:
        code = _HTTP_CODES.get(error.status_code, Code.UNKNOWN)
        detail = f"{error.detail}: {request.method} {request.url.path}"
        body = problem_body(status=error.status_code, code=code, detail=detail)
        return _problem(request, error.status_code, body, error.headers)

    @api.exception_handler(RecursionError)
    async def nested(request: Request, _error: RecursionError) -> Response:
        # Only code that walks a caller's document recurses here.
        error = InvalidArgumentError("the document is nested too deeply")
        return await headrace_error(request, error)

    @api.exception_handler(Exception)
    async def unexpected(request: Request, _error: Exception) -> Response:
        # The traceback goes to the log; the caller only learns that it exists.
        detail = "internal error; the control plane's log has the details"
        body = problem_body(status=500, code=Code.INTERNAL, detail=detail)
        return _problem(request, 500, body)
