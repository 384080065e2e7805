"""The management API over ASGI, and a model to serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from headrace.control.api.app import build_api
from headrace.control.auth.access import AccessControl, make_access
from headrace.control.auth.credentials import hash_of, new_secret
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.plane.control_plane import ControlPlane

ACTOR = "ann@laptop"


def access_of(plane: ControlPlane) -> AccessControl:
    return make_access(plane.store, plane.clock)


def token_of(plane: ControlPlane, name: str = ACTOR, *roles: str) -> str:
    """A token of somebody who has these roles; of an admin if there are none."""
    store, (id_, text) = plane.store, new_secret("hrt")
    who = Principal(name=name, kind="service", created=1.0, roles=roles or ("admin",))
    store.save_principal.blocking(who)
    store.add_credential.blocking(
        Credential(id=id_, kind=CredentialKind.TOKEN, owner=name, hash=hash_of(text), created=1.0)
    )
    return text


def headers_of(plane: ControlPlane, name: str = ACTOR, *roles: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token_of(plane, name, *roles)}"}


@asynccontextmanager
async def client_of(plane: ControlPlane, *roles: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API as an admin, or with other roles."""
    app = build_api(plane, access_of(plane), allowed_hosts=frozenset())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    url = "http://localhost:8080/api/v1"
    name = ACTOR if not roles else f"{ACTOR} {' '.join(roles)}"
    headers = headers_of(plane, name, *roles)
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as client:
        yield client


def document(path: Path, *names: str) -> dict[str, object]:
    return {"endpoints": [{"name": name, "model": str(path)} for name in names]}
