"""Logging in and out by a browser over HTTP."""

from typing import Annotated

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from headrace.control.access.parts import Access
from headrace.control.access.sessions import cookie_value
from headrace.control.api_answers import PROBLEMS, WhoAsks
from headrace.core import FailedPreconditionError, InvalidArgumentError, NotFoundError

_SEE_OTHER = 303
_NO_CONTENT = 204
_MAX_TEXT = 4096
_REDIRECT = {_SEE_OTHER: {"description": "Where the browser goes next."}, **PROBLEMS}
_MISSING = (
    "there is no identity provider: `headrace up --oidc-issuer ...` names one; a token works "
    "without it"
)


class ShownToken(BaseModel):
    """What begins a session."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: str = Field(max_length=_MAX_TEXT, description="As `headrace token show` has it.")


def add_login(api: FastAPI, access: Access) -> None:
    """Add the routes of logging in and out; without an identity provider they say so."""
    login = access.login

    @api.get(
        "/auth/login",
        summary="Send a browser to the identity provider; open to everybody",
        status_code=_SEE_OTHER,
        responses=_REDIRECT,
    )
    async def begin(
        page: Annotated[
            str, Query(alias="next", max_length=_MAX_TEXT, description="Where to go in the end.")
        ] = "",
    ) -> Response:
        if login is None:
            raise NotFoundError(_MISSING)
        sent = await login.begin(page)
        return _redirect(sent.location, sent.cookies)

    @api.get(
        "/auth/callback",
        summary="Take a browser back from the identity provider; open to everybody",
        status_code=_SEE_OTHER,
        responses=_REDIRECT,
    )
    async def callback(
        request: Request,
        code: Annotated[str, Query(max_length=_MAX_TEXT)] = "",
        state: Annotated[str, Query(max_length=_MAX_TEXT)] = "",
        error: Annotated[str, Query(max_length=_MAX_TEXT)] = "",
    ) -> Response:
        if login is None:
            raise NotFoundError(_MISSING)
        if error or not code:
            from headrace.control.access.login import failed  # noqa: PLC0415  # needs an extra

            raise failed(error) if error else InvalidArgumentError("the login lacks its code")
        cookies = request.headers.get("cookie", "")
        sent = await login.finish(
            cookie=cookie_value(cookies, login.rules.login_cookie_name),
            state=state,
            code=code,
            address=request.client.host if request.client else "",
        )
        return _redirect(sent.location, sent.cookies)

    @api.post(
        "/auth/token",
        summary="Begin a session with a token; open to everybody",
        status_code=_NO_CONTENT,
        responses={_NO_CONTENT: {"description": "The cookie of a session."}, **PROBLEMS},
    )
    async def by_token(
        request: Request, shown: Annotated[ShownToken, Body(examples=[{"token": "hrt_..."}])]
    ) -> Response:
        address = request.client.host if request.client else ""
        cookie = await access.token_login.begin(shown.token.strip(), address)
        return _no_content(cookie)

    @api.post(
        "/auth/logout",
        summary="End the session of this browser",
        status_code=_NO_CONTENT,
        responses={_NO_CONTENT: {"description": "The session is not valid any more."}, **PROBLEMS},
    )
    async def logout(caller: WhoAsks) -> Response:
        if not caller.csrf_token:
            message = "this is no session; `headrace tokens revoke` ends a token"
            raise FailedPreconditionError(message)
        return _no_content(await access.token_login.end(caller))


def _no_content(cookie: str) -> Response:
    headers = {"set-cookie": cookie, "cache-control": "no-store"}
    return Response(status_code=_NO_CONTENT, headers=headers)


def _redirect(location: str, cookies: tuple[str, ...]) -> Response:
    response = RedirectResponse(location, _SEE_OTHER, {"cache-control": "no-store"})
    for cookie in cookies:
        response.headers.append("set-cookie", cookie)
    return response
