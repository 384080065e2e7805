"""API keys over HTTP: created, listed and revoked by operators of the keys' endpoints."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Body, FastAPI, Path, Response
from pydantic import Field

from headrace.control.api.answers import (
    LIFETIME_S,
    Actor,
    Lifetime,
    RequestBody,
    WhoAsks,
    answer,
    route,
    view_of,
)
from headrace.control.auth.roles import Caller, Role
from headrace.control.model.credentials import Credential
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.caller_policy import (
    EVERYTHING,
    KeyGrants,
    Keys,
    endpoint_of,
    grants_of,
)
from headrace.core import InvalidArgumentError, PermissionDeniedError
from headrace.core.names import NAME_PATTERN
from headrace.core.spec.access import INFER_SCOPE_PATTERN

_CREATED: Final = 201
_MAX_SCOPES: Final = 64
_TEXT_PATTERN: Final = r"^[A-Za-z0-9_.-]{1,128}$"

Scope = Annotated[str, Field(pattern=INFER_SCOPE_PATTERN, examples=["infer:fraud"])]


class NewKeyRequest(RequestBody):
    """Request to create an API key."""

    name: str = Field(
        pattern=NAME_PATTERN, description="How callers with it are named, in logs too."
    )
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=_MAX_SCOPES)] = Field(
        default=(EVERYTHING,),
        description="`infer:ENDPOINT`, `infer:ENDPOINT:VERSION`, or `infer:*` for all.",
    )
    tier: str = Field(
        default="", pattern=rf"^$|{NAME_PATTERN}", description="One of the spec's; empty for none."
    )
    expires_in_s: Lifetime = LIFETIME_S


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """A key without its secret; `state` is `valid`, `expired` or `revoked`."""

    id: str
    name: str
    state: str
    scopes: list[str]
    tier: str
    created: float
    created_by: str
    expires: float | None
    revoked: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """All API keys, sorted by age."""

    keys: list[KeyView]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedKey:
    """A new key; `key` is shown only in this response."""

    id: str
    name: str
    scopes: list[str]
    tier: str
    expires: float | None
    key: str


_MADE: Final[dict[str, Any]] = {
    "id": "k7m2p9x4w3ab",
    "name": "shop",
    "scopes": ["infer:fraud"],
    "tier": "",
    "expires": 1771776000.0,
    "key": "hr_k7m2p9x4w3ab_...",
}
_KEY: Final[dict[str, Any]] = {
    **{name: value for name, value in _MADE.items() if name != "key"},
    "state": "valid",
    "created": 1764000000.0,
    "created_by": "admin",
    "revoked": None,
}


def add_keys(api: FastAPI, plane: ControlPlane, keys: Keys) -> None:
    """Add the routes of API keys."""

    @route(api, "GET /api/v1/keys", KeyList, {"keys": [_KEY]})
    async def listed(caller: WhoAsks) -> Response:
        """List the API keys whose scopes the caller may see."""
        now = plane.clock.now()
        visible = [key for key in await keys.all() if _may(caller, Role.VIEWER, _scopes(key))]
        return answer(KeyList(keys=[_view(key, now) for key in visible]))

    @route(api, "POST /api/v1/keys", CreatedKey, _MADE, status=_CREATED)
    async def create(
        body: Annotated[
            NewKeyRequest, Body(examples=[{"name": "shop", "scopes": ["infer:fraud"]}])
        ],
        caller: WhoAsks,
        actor: Actor,
    ) -> Response:
        """Create an API key; it is shown once, and in force when the response arrives."""
        _require(caller, body.scopes)
        tiers = [str(tier.get("name")) for tier in plane.target_state.desired.spec.get("tiers", ())]
        if body.tier and body.tier not in tiers:
            there = f"there are: {', '.join(tiers)}" if tiers else "the spec's 'tiers' name none"
            raise InvalidArgumentError(f"unknown tier '{body.tier}'; {there}")
        grants = KeyGrants(scopes=body.scopes, tier=body.tier)
        created = await keys.create(body.name, grants, expires_in_s=body.expires_in_s, actor=actor)
        view = CreatedKey(
            id=created.credential.id,
            name=body.name,
            scopes=list(body.scopes),
            tier=body.tier,
            expires=created.credential.expires,
            key=created.text,
        )
        return answer(view, status=_CREATED, headers={"cache-control": "no-store"})

    @route(
        api,
        "DELETE /api/v1/keys/{key}",
        KeyView,
        _KEY | {"state": "revoked", "revoked": 1764000060.0},
    )
    async def revoke(
        key: Annotated[str, Path(pattern=_TEXT_PATTERN, description="Its id, or its name.")],
        caller: WhoAsks,
        actor: Actor,
    ) -> Response:
        """Revoke an API key; the revocation is in force when the response arrives."""
        api_key = await keys.find(
            key, lambda candidate: _may(caller, Role.VIEWER, _scopes(candidate))
        )
        _require(caller, _scopes(api_key))
        return answer(_view(await keys.revoke(api_key, actor=actor), plane.clock.now()))


def _scopes(key: Credential) -> tuple[str, ...]:
    """Return a key's scopes; a key with unreadable grants gets the scope of all endpoints."""
    return grants_of(key).scopes or (EVERYTHING,)


def _may(caller: Caller, role: Role, scopes: Iterable[str]) -> bool:
    return all(caller.may(role, endpoint_of(scope)) for scope in scopes)


def _require(caller: Caller, scopes: Iterable[str]) -> None:
    beyond = [scope for scope in scopes if not _may(caller, Role.OPERATOR, [scope])]
    if beyond:
        message = f"a key for {', '.join(beyond)} is made and revoked by operators of that"
        raise PermissionDeniedError(message)


def _view(key: Credential, now: float) -> KeyView:
    grants = grants_of(key)
    scopes = list(grants.scopes)
    return view_of(
        KeyView, key, name=key.owner, state=key.state(now), scopes=scopes, tier=grants.tier
    )
