"""Whoever has a token begins a session with it, which lives no longer than the token."""

import pytest

from headrace.control.auth.access import TokenLogin, make_access
from headrace.control.auth.credentials import hash_of, new_secret
from headrace.control.auth.roles import Role
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import HeadraceError, OverloadedError, UnauthenticatedError
from tests.unit.control.access.test_login import Turned
from tests.unit.control.api_client import token_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def login(plane: ControlPlane, clock: Turned) -> TokenLogin:
    return make_access(plane.store, clock).token_login


def cookie_of(header: str) -> str:
    return header.partition(";")[0]


async def test_a_session_has_the_roles_of_the_tokens_owner(
    plane: ControlPlane, login: TokenLogin
) -> None:
    header = await login.begin(token_of(plane, "ci", "operator:fraud"), "10.0.0.1")
    caller = await login.authenticator.caller({"cookie": cookie_of(header)}, "10.0.0.1")

    assert "HttpOnly; SameSite=Lax" in header
    assert (caller.name, caller.may(Role.OPERATOR, "fraud")) == ("ci", True)
    assert not caller.may(Role.VIEWER)
    assert caller.csrf_token
    assert [one.action for one in plane.store.trail.blocking()] == ["login"]


async def test_the_token_itself_is_not_in_the_cookie(
    plane: ControlPlane, login: TokenLogin
) -> None:
    token = token_of(plane)

    assert token not in await login.begin(token, "10.0.0.1")


@pytest.mark.parametrize("token", ["", "hrt_x", "hrs_" + "a" * 12 + "_" + "b" * 43])
async def test_what_is_no_token_begins_none(login: TokenLogin, token: str) -> None:
    with pytest.raises(UnauthenticatedError, match="unknown token"):
        await login.begin(token, "10.0.0.1")


async def test_a_session_is_no_token_to_begin_another(
    plane: ControlPlane, login: TokenLogin
) -> None:
    header = await login.begin(token_of(plane), "10.0.0.1")

    with pytest.raises(UnauthenticatedError):
        await login.begin(cookie_of(header).partition("=")[2], "10.0.0.1")


async def test_who_guesses_is_slowed_here_too(login: TokenLogin) -> None:
    failures = []
    for _ in range(100):
        try:
            await login.begin("hrt_x", "10.0.0.1")
        except HeadraceError as error:
            failures.append(type(error))

    assert failures[0] is UnauthenticatedError
    assert failures[-1] is OverloadedError


async def test_a_session_ends_with_its_token(
    plane: ControlPlane, login: TokenLogin, clock: Turned
) -> None:
    token = token_of(plane)
    header = await login.begin(token, "10.0.0.1")
    store, id_ = plane.store, token.split("_")[1]
    store.revoke_credential.blocking(id_, revoked_at=clock.at, changes=[])
    login.authenticator.credentials.forget()

    with pytest.raises(UnauthenticatedError, match="began with"):
        await login.authenticator.caller({"cookie": cookie_of(header)}, "10.0.0.1")


async def test_a_session_ends_when_its_token_expires(
    plane: ControlPlane, login: TokenLogin, clock: Turned
) -> None:
    id_, token = new_secret("hrt")
    plane.store.save_principal.blocking(Principal(name="ci", kind="service", created=1.0))
    plane.store.add_credential.blocking(
        Credential(
            id=id_,
            kind=CredentialKind.TOKEN,
            owner="ci",
            hash=hash_of(token),
            created=1.0,
            expires=clock.at + 60,
        )
    )
    cookie = {"cookie": cookie_of(await login.begin(token, "10.0.0.1"))}
    before = await login.authenticator.caller(cookie, "10.0.0.1")
    clock.at += 61

    assert before.name == "ci"
    with pytest.raises(UnauthenticatedError, match="began with"):
        await login.authenticator.caller(cookie, "10.0.0.1")


async def test_an_encrypted_api_has_a_cookie_that_only_it_can_set(plane: ControlPlane) -> None:
    access = make_access(plane.store, Turned(), is_encrypted=True)
    header = await access.token_login.begin(token_of(plane), "10.0.0.1")

    assert header.startswith("__Host-headrace=")
    assert "Secure" in header
