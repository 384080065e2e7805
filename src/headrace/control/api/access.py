"""Users, roles, tokens, sessions and the audit log over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import Body, FastAPI, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import Field

from headrace.control.api.answers import (
    LIFETIME_S,
    PROBLEMS,
    Actor,
    Lifetime,
    RequestBody,
    WhoAsks,
    answer,
    route,
    view_of,
)
from headrace.control.auth.access import AccessControl
from headrace.control.auth.checkpoint import read_checkpoint
from headrace.control.auth.credentials import cookie_value
from headrace.control.auth.people import People
from headrace.control.model.audit_log import Entry, Head
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import FailedPreconditionError, InvalidArgumentError, NotFoundError

_CREATED: Final = 201
_MAX_ENTRIES: Final = 1000
_MAX_ID: Final = 2**62
_MAX_ROLES: Final = 1000
_NAME_PATTERN: Final = r"^[^\s\x00-\x1f\x7f]{1,200}$"
_ID_PATTERN: Final = r"^[a-z0-9]{1,64}$"
RoleText = Annotated[str, Field(max_length=140, examples=["viewer", "operator:fraud"])]
Roles = Annotated[tuple[RoleText, ...], Field(max_length=_MAX_ROLES)]


class NewUser(RequestBody):
    """Request to add a user or a service account."""

    name: str = Field(
        pattern=_NAME_PATTERN,
        description="A person's name at the identity provider, or a program's.",
    )
    kind: Literal["user", "service"] = Field(
        default="user", description="`user` logs in, `service` has tokens."
    )
    roles: Roles = Field(default=(), description="`viewer`, `operator:ENDPOINT`, `admin`, ...")


class UserChange(RequestBody):
    """Request to change the roles of a principal, or to disable or enable it."""

    name: str = Field(pattern=_NAME_PATTERN, description="Whose roles.")
    grant: Roles = Field(default=(), description="Roles to give.")
    revoke: Roles = Field(default=(), description="Roles to take.")
    disabled: bool | None = Field(
        default=None, description="True rejects all sessions and tokens; null changes nothing."
    )


class NewTokenRequest(RequestBody):
    """Request to create a token for a service account."""

    owner: str = Field(
        pattern=_NAME_PATTERN, description="The service account; created if it does not exist."
    )
    roles: Roles = Field(default=(), description="Roles of a new account.")
    expires_in_s: Lifetime = LIFETIME_S


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoView:
    """The authenticated caller."""

    name: str
    kind: str
    roles: list[str]
    csrf_token: str
    """Value of the `x-csrf-token` header that changes require; empty without a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserList:
    """All principals, sorted by name."""

    users: list[Principal]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token or a session, without its secret; `state` is `valid`, `expired` or `revoked`."""

    id: str
    kind: str
    owner: str
    state: str
    created: float
    created_by: str
    expires: float | None
    revoked: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedToken:
    """A new token; `token` is shown only in this response."""

    id: str
    owner: str
    expires: float | None
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenList:
    """All tokens, or all sessions, sorted by age."""

    tokens: list[TokenView]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLogPage:
    """Audit log entries in order."""

    entries: list[Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailHead:
    """The end of the audit log, and the last checkpoint that the control plane took of it."""

    head: Head
    checkpoint: Head


_USER: Final[dict[str, Any]] = {
    "name": "ann@example.com",
    "kind": "user",
    "roles": ["viewer", "operator:fraud"],
    "disabled": False,
    "created": 1764000000.0,
    "created_by": "admin",
}
_TOKEN: Final[dict[str, Any]] = {
    "id": "k7m2p9x4w3ab",
    "kind": "token",
    "owner": "ci",
    "state": "valid",
    "created": 1764000000.0,
    "created_by": "admin",
    "expires": 1771776000.0,
    "revoked": None,
}
_HASH: Final = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
_ENTRY: Final[dict[str, Any]] = {
    "id": 1,
    "at": 1764000000.0,
    "actor": "admin",
    "action": "token.create",
    "object": "k7m2p9x4w3ab",
    "before": "null",
    "after": '{"owner":"ci","expires":1771776000.0}',
    "previous": "",
    "hash": _HASH,
}


def add_access(api: FastAPI, plane: ControlPlane, people: People) -> None:
    """Add the routes of users, tokens and the audit log."""

    @route(
        api,
        "GET /api/v1/whoami",
        WhoView,
        {"name": "admin", "kind": "service", "roles": ["admin"], "csrf_token": ""},
    )
    async def whoami(caller: WhoAsks) -> Response:
        """Return the name and the roles of the caller."""
        view = view_of(WhoView, caller, roles=[str(grant) for grant in caller.grants])
        return answer(view, headers={"cache-control": "no-store"})

    _add_users(api, people)
    _add_tokens(api, plane, people)
    _add_trail(api, plane)


def _add_users(api: FastAPI, people: People) -> None:
    @route(api, "GET /api/v1/users", UserList, {"users": [_USER]})
    async def users() -> Response:
        """List users and service accounts with their roles."""
        return answer(UserList(users=await people.store.principals()))

    @route(api, "POST /api/v1/users", Principal, _USER, status=_CREATED)
    async def add(
        body: Annotated[NewUser, Body(examples=[{"name": "ann", "roles": ["viewer"]}])],
        actor: Actor,
    ) -> Response:
        """Add a user or a service account."""
        added = await people.add(body.name, body.roles, kind=body.kind, actor=actor)
        return answer(added, status=_CREATED)

    @route(api, "POST /api/v1/users/change", Principal, _USER)
    async def change(
        body: Annotated[UserChange, Body(examples=[{"name": "ann", "grant": ["operator"]}])],
        actor: Actor,
    ) -> Response:
        """Grant and revoke roles; disable or enable a user or a service account."""
        changed = await people.change(
            body.name,
            grant=body.grant,
            revoke=body.revoke,
            disabled=body.disabled,
            actor=actor,
        )
        return answer(changed)


def _add_tokens(api: FastAPI, plane: ControlPlane, people: People) -> None:
    @route(api, "GET /api/v1/tokens", TokenList, {"tokens": [_TOKEN]})
    async def tokens(
        kind: Annotated[Literal["token", "session"], Query(description="Which.")] = "token",
    ) -> Response:
        """List tokens, or the sessions of people who logged in."""
        credentials = await people.store.credentials(CredentialKind(kind))
        now = plane.clock.now()
        return answer(TokenList(tokens=[_token(credential, now) for credential in credentials]))

    @route(
        api,
        "POST /api/v1/tokens",
        CreatedToken,
        {"id": "k7m2p9x4w3ab", "owner": "ci", "expires": None, "token": "hrt_k7m2p9x4w3ab_..."},
        status=_CREATED,
    )
    async def create(
        body: Annotated[NewTokenRequest, Body(examples=[{"owner": "ci", "roles": ["operator"]}])],
        actor: Actor,
    ) -> Response:
        """Create a token for a service account; it is shown once."""
        created = await people.create_token(
            body.owner, roles=body.roles, expires_in_s=body.expires_in_s, actor=actor
        )
        view = view_of(CreatedToken, created.credential, token=created.text)
        return answer(view, status=_CREATED, headers={"cache-control": "no-store"})

    @route(
        api,
        "DELETE /api/v1/tokens/{token_id}",
        TokenView,
        _TOKEN | {"state": "revoked", "revoked": 1764000060.0},
    )
    async def revoke(
        token_id: Annotated[str, Path(pattern=_ID_PATTERN, description="The part after `hrt_`.")],
        actor: Actor,
    ) -> Response:
        """Revoke a token or a session immediately."""
        return answer(_token(await people.revoke(token_id, actor=actor), plane.clock.now()))


def _add_trail(api: FastAPI, plane: ControlPlane) -> None:
    @route(api, "GET /api/v1/trail", AuditLogPage, {"entries": [_ENTRY]})
    async def trail(
        *,
        after: Annotated[int, Query(ge=0, le=_MAX_ID, description="Only later than this.")] = 0,
        limit: Annotated[int, Query(ge=1, le=_MAX_ENTRIES)] = 100,
        newest: Annotated[
            bool, Query(description="The last so many; else the first after `after`.")
        ] = False,
    ) -> Response:
        """List the audit log: a chain of entries, each with the hash of the previous entry."""
        store = plane.store
        entries = await store.trail(after=after, limit=limit, newest=newest)
        return answer(AuditLogPage(entries=entries))

    @route(
        api,
        "GET /api/v1/trail/head",
        TrailHead,
        {"head": {"count": 1, "hash": _HASH}, "checkpoint": {"count": 1, "hash": _HASH}},
    )
    async def head() -> Response:
        """Return the end of the audit log and its last checkpoint outside the database."""
        head = await plane.store.trail_head()
        noted = read_checkpoint(plane.home.checkpoint_file)
        return answer(
            TrailHead(
                head=head,
                checkpoint=noted,
            )
        )


def _token(credential: Credential, now: float) -> TokenView:
    return view_of(TokenView, credential, state=credential.state(now))


_SEE_OTHER = 303
_NO_CONTENT = 204
_MAX_TEXT = 4096
_REDIRECT = {_SEE_OTHER: {"description": "Where the browser goes next."}, **PROBLEMS}
_MISSING = (
    "no identity provider is configured: set `headrace up --oidc-issuer ...`, or log in with a "
    "token"
)


class ShownToken(RequestBody):
    """Token with which a session begins."""

    token: str = Field(max_length=_MAX_TEXT, description="As `headrace token show` has it.")


def add_login(api: FastAPI, access: AccessControl) -> None:
    """Add the login and logout routes; without an identity provider they return an error."""
    login = access.login

    @api.get(
        "/auth/login",
        summary="Send a browser to the identity provider; needs no authentication",
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
        summary="Complete the login from the identity provider; needs no authentication",
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
            from headrace.control.auth.login import failed  # noqa: PLC0415  # needs an extra

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
        summary="Begin a session with a token; needs no authentication",
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
            message = "the caller has no session; revoke a token with `headrace tokens revoke`"
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
