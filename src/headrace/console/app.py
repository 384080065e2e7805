"""Console application: table of pages, sessions, requests to the management API."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route, compile_path
from starlette.staticfiles import StaticFiles

from headrace.console import access, logs, operate, rollout_start, upload
from headrace.console.diagram import diagram
from headrace.console.endpoint import endpoint
from headrace.console.fleet import activity, alerts, fleet, job, jobs, model, models
from headrace.console.playground import chat_body, open_chat, playground
from headrace.console.render import ALWAYS, MAX_STREAMS, STATIC, Parts, Renderer, stream
from headrace.console.rollout import confirm, rollout, rollouts, send_command
from headrace.console.streams import confirm as confirm_stream
from headrace.console.streams import send_command as send_stream_command
from headrace.console.streams import stream as stream_page
from headrace.console.streams import streams
from headrace.console.try_it import try_it
from headrace.console.usage import usage
from headrace.console.view import (
    GatewayLocation,
    MakeView,
    PageRequest,
    PageView,
    RefusedError,
    SendForm,
    Visitor,
)
from headrace.control.api.events import Watchers
from headrace.control.api.server import ConsoleParts
from headrace.control.asgi.guards import App, Message, Receive, Scope, Send
from headrace.control.asgi.multipart import MultipartBody
from headrace.control.auth.credentials import cookie_value, csrf_token, is_csrf_token, is_own_page
from headrace.core import OverloadedError

LIVE: Final[Mapping[str, MakeView]] = {
    "/": fleet,
    "/endpoints/{name}": endpoint,
    "/rollouts": rollouts,
    "/rollouts/{rollout}": rollout,
    "/streams": streams,
    "/streams/{stream}": stream_page,
    "/jobs": jobs,
    "/jobs/{job}": job,
    "/models": models,
    "/models/{name}": model,
    "/alerts": alerts,
    "/activity": activity,
    "/logs": logs.logs,
    "/access": access.access,
    "/diagram": diagram,
}
"""Pages that can be updated by a stream."""
TRY: Final = "/endpoints/{name}/try"
CHAT: Final = "/endpoints/{name}/chat"
UPLOAD: Final = "/upload"
USAGE: Final = "/usage"
ACTIONS: Final[Mapping[str, tuple[MakeView, SendForm]]] = {
    "/rollouts/{rollout}/{verb}": (confirm, send_command),
    "/streams/{stream}/{verb}": (confirm_stream, send_stream_command),
    "/endpoints/{name}/rollout": (rollout_start.start, rollout_start.send),
    "/endpoints/{name}/scale": (operate.scale, operate.send_scale),
    "/endpoints/{name}/{verb}": (operate.pause, operate.send_pause),
    "/endpoints/{name}/undo/{generation}": (operate.undo, operate.send_undo),
    "/models/{name}/{version}/serve": (operate.serve, operate.send_serve),
    "/access/keys/new": (access.new_key, access.create_key),
    "/access/keys/{id}/revoke": (access.revoke_key, access.send_revoke_key),
    "/access/users/new": (access.new_user, access.add_user),
    "/access/users/change": (access.edit_user, access.change_user),
    "/access/tokens/new": (access.new_token, access.create_token),
    "/access/tokens/{id}/revoke": (access.revoke_token, access.send_revoke_token),
}
"""Pages with a form, and what sends it."""
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageMatch:
    """Page and the names in its path."""

    make: MakeView
    names: Mapping[str, str]
    is_live: bool
    send: SendForm | None = None


_PAGES: Final = [
    *((compile_path(path)[0], make, None, True) for path, make in LIVE.items()),
    (compile_path(TRY)[0], try_it, None, False),
    (compile_path(CHAT)[0], playground, None, False),
    (compile_path(USAGE)[0], usage, None, False),
    (compile_path(UPLOAD)[0], upload.upload, None, False),
    *((compile_path(path)[0], make, send, False) for path, (make, send) in ACTIONS.items()),
]


def find_page(path: str) -> PageMatch | None:
    """Return the page of a path, or None."""
    for pattern, make, send, is_live in _PAGES:
        match = pattern.fullmatch(path)
        if match is not None and all(_SAFE.issuperset(name) for name in match.groups()):
            return PageMatch(make=make, names=match.groupdict(), is_live=is_live, send=send)
    return None


_SEE_OTHER: Final = 303
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_BUSY: Final = 503
_FORM_COOKIE: Final = "headrace-form"
_FORM_S: Final = 3600
_YEAR_S: Final = 365 * 86_400
_MAX_FIELDS: Final = 300


def build_console(parts: ConsoleParts) -> App:
    """Return the pages as an ASGI application."""
    return _with_headers(_pages(Console(parts=parts)))


@dataclass(slots=True, kw_only=True)
class Console:
    """Handlers of the console's pages; they store no state of visitors."""

    parts: ConsoleParts
    renderer: Renderer = field(default_factory=Renderer)
    watchers: Watchers = field(default_factory=lambda: Watchers(MAX_STREAMS))

    def visitor(self, request: Request, *, is_there: bool = True) -> Visitor:
        """Return the sender of the request."""
        return Visitor(
            api=self.parts.api,
            headers=request.headers,
            base_url=f"{request.url.scheme}://{request.headers.get('host', 'localhost')}",
            address=request.client.host if request.client else "",
            is_there=is_there,
        )

    async def page_request(
        self,
        visitor: Visitor,
        names: Mapping[str, str],
        query: Mapping[str, str],
        *,
        page: str,
    ) -> PageRequest:
        """Return the request for a page.

        Raises:
            RefusedError: The visitor is not authenticated.
        """
        caller, token = await visitor.who()
        return PageRequest(
            visitor=visitor,
            caller=caller,
            names=names,
            query=query,
            now=self.parts.now(),
            gateway=GatewayLocation(url=self.parts.gateway_url, ca=self.parts.gateway_ca),
            csrf=token,
            page_url=page,
        )

    async def page_request_of(
        self, request: Request, names: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> PageRequest:
        """Return the page request of an HTTP request; raises as `page_request`."""
        visitor, query = self.visitor(request), dict(request.query_params)
        shown = await self.page_request(visitor, names, query, page=_page_of(request))
        return replace(shown, form=form or {})

    async def show(self, request: Request) -> Response:
        """Return a page, or a redirect."""
        match = find_page(request.url.path)
        if match is None:
            raise RefusedError.of(_NOT_FOUND, f"no page {request.url.path[:100]}")
        page_request = await self.page_request_of(request, match.names)
        return self.written(await match.make(page_request), page_request, is_live=match.is_live)

    def written(
        self, view: PageView, page_request: PageRequest, *, is_live: bool = False
    ) -> Response:
        """Return the rendered view as a response."""
        return _html(self.renderer.page(view, _frame(page_request, is_live=is_live)), view.status)

    def refused(self, request: Request, error: Exception) -> Response:
        """Return the page for an error of the API, or a redirect to the login."""
        assert isinstance(error, RefusedError), "the handler is registered for RefusedError only"
        if error.status == _UNAUTHORIZED:
            page = _page_of(request) if request.method == "GET" else "/"
            location = "/login" if page == "/" else f"/login?next={quote(page, safe='')}"
            return RedirectResponse(location, _SEE_OTHER)
        # After a refused form: the nearest page above it.
        back = request.url.path if request.method == "POST" else "/"
        while (match := find_page(back)) is None or not match.is_live:
            back = back.rpartition("/")[0] or "/"
        view = PageView(
            template="problem.html",
            title=_PROBLEM_TITLES.get(error.status, "Request failed"),
            values={"detail": str(error), "back": back},
            status=error.status,
        )
        frame = {"caller": None, "csrf": "", "is_live": False, "page": "/"}
        return _html(self.renderer.page(view, frame), error.status)

    async def login_page(
        self, request: Request, *, problem: str = "", status: int = 200
    ) -> Response:
        """Return the login form, protected by a cookie against forged forms."""
        requested = request.query_params.get("next", "")
        cookie = secrets.token_urlsafe(24)
        next_page = requested if is_own_page(requested) else "/"
        view = PageView(
            template="login.html",
            title="Log in",
            values={
                "next": next_page,
                "form_token": csrf_token(cookie),
                "has_provider": self.parts.has_provider,
                "provider_link": f"/auth/login?{urlencode({'next': next_page})}",
                "problem": problem,
            },
        )
        frame = {"caller": None, "csrf": "", "is_live": False, "page": "/login"}
        answer = _html(self.renderer.page(view, frame), status)
        answer.set_cookie(
            _FORM_COOKIE,
            cookie,
            max_age=_FORM_S,
            path="/login",
            secure=self.parts.sessions.is_secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    async def log_in(self, request: Request) -> Response:
        """Start a session for a valid token."""
        form = await _form(request)
        cookie = cookie_value(request.headers.get("cookie", ""), _FORM_COOKIE)
        if not cookie or not is_csrf_token(cookie, form.get("form_token", "")):
            problem = "This form has expired. Please send it again."
            return await self.login_page(request, problem=problem, status=_FORBIDDEN)
        try:
            session = await self.visitor(request).post(
                "/auth/token", {"token": form.get("token", "")}
            )
        except RefusedError as error:
            return await self.login_page(request, problem=str(error), status=error.status)
        page = form.get("next", "/")
        answer = RedirectResponse(page if is_own_page(page) else "/", _SEE_OTHER)
        answer.headers.append("set-cookie", session.headers["set-cookie"])
        return answer

    async def log_out(self, request: Request) -> Response:
        """End the session."""
        form = await _form(request)
        token = form.get("csrf_token", "")
        ended = await self.visitor(request).post("/auth/logout", {}, csrf_token=token)
        answer = RedirectResponse("/login", _SEE_OTHER)
        answer.headers.append("set-cookie", ended.headers["set-cookie"])
        return answer

    async def send_form(self, request: Request) -> Response:
        """Send the form of an action; show it again with the reason if its fields are invalid."""
        match = find_page(request.url.path)
        if match is None or match.send is None:
            raise RefusedError.of(_NOT_FOUND, f"no form {request.url.path[:100]}")
        page_request = await self.page_request_of(request, match.names, await _form(request))
        try:
            result = await match.send(page_request)
        except RefusedError as error:
            return await self._again(error, page_request, match.make)
        if isinstance(result, PageView):
            return self.written(result, page_request)
        return RedirectResponse(result, _SEE_OTHER)

    async def upload_model(self, request: Request) -> Response:
        """Pass the file of a form on while it arrives."""
        page_request = await self.page_request_of(request, {})
        body = MultipartBody(
            content_type=request.headers.get("content-type", ""),
            chunks=request.stream(),
            refusal=partial(RefusedError.of, _BAD_REQUEST),
        )
        try:
            return RedirectResponse(await upload.send_upload(page_request, body), _SEE_OTHER)
        except RefusedError as error:
            return await self._again(error, replace(page_request, form=body.fields), upload.upload)

    async def _again(
        self, error: RefusedError, page_request: PageRequest, make: MakeView
    ) -> Response:
        """Return the form with the reason why its fields are invalid; raise other errors."""
        if error.status != _BAD_REQUEST:
            raise error
        view = await make(replace(page_request, problem=str(error)))
        return self.written(replace(view, status=_BAD_REQUEST), page_request)

    async def try_endpoint(self, request: Request) -> Response:
        """Send the form's request to an endpoint."""
        form = await self._own_form(request)
        page_request = await self.page_request_of(request, request.path_params)
        return self.written(await try_it(page_request, form), page_request)

    async def stream_chat(self, request: Request) -> Response:
        """Stream an endpoint's answer to a chat of its playground; errors have OpenAI's form."""
        try:
            form = await self._own_form(request)
            page_request = await self.page_request_of(request, request.path_params)
            body = await chat_body(page_request, form)
            self.watchers.check_room()
            key = form.get("key", "").strip()
            answer, chunks = await open_chat(page_request.gateway, body, key=key)
        except (OverloadedError, RefusedError) as error:
            status = error.status if isinstance(error, RefusedError) else _BUSY
            problem = {"error": {"message": str(error)}}
            return JSONResponse(problem, status, {"cache-control": "no-store"})
        return StreamingResponse(
            self.watchers.counted(chunks),
            answer.status_code,
            media_type=answer.headers.get("content-type", ""),
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _own_form(self, request: Request) -> dict[str, str]:
        """Return the sent form.

        Raises:
            RefusedError: It is not from a page of the visitor's session.
        """
        form = await _form(request)
        name = self.parts.sessions.cookie_name
        cookie = cookie_value(request.headers.get("cookie", ""), name)
        if not is_csrf_token(cookie, form.get("csrf_token", "")):
            detail = "the form does not belong to your session; reload the page"
            raise RefusedError.of(_FORBIDDEN, detail)
        return form

    async def stream_changes(self, request: Request) -> Response:
        """Return the event stream of a page's changes."""
        page = urlsplit(request.query_params.get("page", ""))
        match = find_page(page.path)
        if match is None or not match.is_live:
            return Response(status_code=_NOT_FOUND)
        visitor, query = self.visitor(request, is_there=False), _fields(page.query)
        try:
            self.watchers.check_room()
            await visitor.who()
        except OverloadedError:
            return Response(status_code=_BUSY, headers={"retry-after": "10"})
        except RefusedError as error:
            return Response(status_code=error.status)

        async def look() -> Parts:
            page_request = await self.page_request(visitor, match.names, query, page=page.geturl())
            view = await match.make(page_request)
            frame = _frame(page_request, is_live=True)
            return {**self.renderer.live_parts(view, frame), "say": view.announcement}

        return StreamingResponse(
            self.watchers.counted(stream(look, is_stopping=self.parts.is_stopping)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )


def _frame(page_request: PageRequest, *, is_live: bool) -> Mapping[str, object]:
    return {
        "caller": page_request.caller,
        "csrf": page_request.csrf,
        "page": page_request.page_url,
        "now": page_request.now,
        "search": page_request.search,
        "is_live": is_live,
    }


_PROBLEM_TITLES: Final = {
    _FORBIDDEN: "Not allowed",
    _NOT_FOUND: "Not found",
    _CONFLICT: "Not possible now",
}


def _pages(console: Console) -> App:
    return Starlette(
        routes=[
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/login", console.login_page, methods=["GET"]),
            Route("/login", console.log_in, methods=["POST"]),
            Route("/logout", console.log_out, methods=["POST"]),
            Route("/live", console.stream_changes, methods=["GET"]),
            Route(TRY, console.try_endpoint, methods=["POST"]),
            Route(CHAT, console.stream_chat, methods=["POST"]),
            Route(UPLOAD, console.upload_model, methods=["POST"]),
            Route("/{path:path}", console.send_form, methods=["POST"]),
            Route("/{path:path}", console.show),  # last: all other paths, with or without a page
        ],
        exception_handlers={RefusedError: console.refused},
    )


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a URL-encoded form; other content types have none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        return {}
    return _fields((await request.body()).decode("utf-8", "replace"))


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a query or a form; none if there are too many."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        return {}


def _html(text: str, status: int) -> HTMLResponse:
    return HTMLResponse(text, status, {"cache-control": "no-store"})


def _page_of(request: Request) -> str:
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path


def _with_headers(app: App) -> App:
    """Wrap `app` with common headers; static files are cached by their content's name."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        is_static = str(scope["path"]).startswith("/static/") and b"v=" in scope["query_string"]

        async def said(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in ALWAYS),
                ]
                if is_static:
                    caching = f"public, max-age={_YEAR_S}, immutable"
                    message["headers"].append((b"cache-control", caching.encode()))
            await send(message)

        await app(scope, receive, said)

    return call
