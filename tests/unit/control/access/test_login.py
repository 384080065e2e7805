"""People log in at an identity provider, whose word is checked before it counts."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from joserfc.jwk import OctKey, RSAKey

from headrace.control.auth.access import TokenLogin, make_access
from headrace.control.auth.credentials import cookie_value, is_own_page
from headrace.control.auth.login import Login, Redirect, check_settings, failed
from headrace.control.auth.provider import Provider
from headrace.control.auth.roles import Role
from headrace.control.base.settings import OidcSettings, secret_reader
from headrace.control.model.credentials import CredentialKind, Principal
from headrace.control.state import home_url, open_store
from headrace.control.state.store import Store
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.unit.control.access.provider import CLIENT, ISSUER, FakeProvider

pytestmark = pytest.mark.anyio
SETTINGS = OidcSettings(
    issuer=ISSUER,
    client_id=CLIENT,
    redirect_url="https://models.example/auth/callback",
    roles=("ml=operator", "audit=viewer:fraud"),
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Turned:
    """A clock that the test turns."""

    at: float = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@dataclass
class Lab:
    """A login against a provider that does as it is told."""

    login: Login
    provider: FakeProvider
    clock: Turned
    token_login: TokenLogin

    async def log_in(self, page: str = "/x") -> Redirect:
        """As a browser does it; the cookies travel along."""
        sent = await self.login.begin(page)
        code, state = self.provider.authorize(sent.location)
        return await self.finish(sent, code=code, state=state)

    async def finish(self, sent: Redirect, *, code: str, state: str) -> Redirect:
        cookie = sent.cookies[0].partition(";")[0].partition("=")[2]
        return await self.login.finish(cookie=cookie, state=state, code=code, address="10.0.0.1")

    async def caller(self, sent: Redirect) -> Any:  # noqa: ANN401  # of the package under test
        cookie = sent.cookies[0].partition(";")[0]
        return await self.login.authenticator.caller({"cookie": cookie}, "10.0.0.1")

    def add(self, name: str, *roles: str, **more: Any) -> None:  # noqa: ANN401  # any field
        kept = Principal(name=name, kind="user", created=1.0, roles=roles)
        self.login.store.save_principal.blocking(msgspec.structs.replace(kept, **more))


MakeLab = Callable[..., Lab]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Store]:
    store = open_store(home_url(tmp_path))
    yield store
    store.close()


@pytest.fixture
def make_lab(kept: Store) -> MakeLab:
    def make(provider: FakeProvider | None = None, **settings: Any) -> Lab:  # noqa: ANN401  # any
        clock, fake = Turned(), provider or FakeProvider()
        told = msgspec.structs.replace(SETTINGS, **settings)
        access = make_access(kept, clock, told)
        login = access.login
        assert login is not None
        login.provider = Provider(
            settings=told,
            clock=clock,
            secret=login.provider.secret,
            transport=fake.transport(),
        )
        return Lab(login, fake, clock, access.token_login)

    return make


async def test_somebody_with_a_role_gets_a_session(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.add("ann", "viewer:fraud")
    sent = await lab.log_in("/page?x=1")
    caller = await lab.caller(sent)

    assert sent.location == "/page?x=1"
    assert (caller.name, caller.kind) == ("ann", "user")
    assert [str(grant) for grant in caller.grants] == ["viewer:fraud"]
    assert caller.csrf_token
    session = sent.cookies[0]
    assert session.startswith("__Host-headrace=hrs_")
    assert session.endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure")
    assert "__Host-headrace-login=;" in sent.cookies[1]


async def test_the_browser_is_sent_with_state_nonce_and_a_challenge(make_lab: MakeLab) -> None:
    lab = make_lab()
    one, two = await lab.login.begin("/"), await lab.login.begin("/")

    assert one.location.startswith(f"{ISSUER}/authorize?response_type=code&client_id={CLIENT}&")
    assert "code_challenge_method=S256" in one.location
    assert "redirect_uri=https%3A%2F%2Fmodels.example%2Fauth%2Fcallback&" in one.location
    assert one.location != two.location
    assert "HttpOnly; SameSite=Lax; Secure" in one.cookies[0]


async def test_groups_have_roles(make_lab: MakeLab) -> None:
    lab = make_lab(FakeProvider(claims={"sub": "ann", "groups": ["ml", "other", 5]}))
    caller = await lab.caller(await lab.log_in())

    assert caller.may(Role.OPERATOR)
    assert [(p.name, p.roles) for p in lab.login.store.principals.blocking()] == [("ann", ())]
    assert [entry.action for entry in lab.login.store.trail.blocking()] == ["user.add", "login"]


async def test_groups_count_at_the_login_and_own_roles_at_once(make_lab: MakeLab) -> None:
    lab = make_lab(FakeProvider(claims={"sub": "ann", "groups": "audit x"}))
    sent = await lab.log_in()
    before = await lab.caller(sent)
    lab.add("ann", "operator:spam")
    lab.clock.at += 2.0
    after = await lab.caller(sent)

    assert before.endpoints(Role.VIEWER) == {"fraud"}
    assert after.endpoints(Role.VIEWER) == {"fraud", "spam"}


async def test_what_the_token_does_not_say_the_user_info_says(make_lab: MakeLab) -> None:
    lab = make_lab(FakeProvider(more_claims={"sub": "ann", "groups": ["ml"]}))
    other = make_lab(FakeProvider(more_claims={"sub": "eve", "groups": ["ml"]}))

    assert (await lab.caller(await lab.log_in())).may(Role.OPERATOR)
    with pytest.raises(PermissionDeniedError, match="is about another subject"):
        await other.log_in()


async def test_a_name_may_be_an_address_if_it_is_verified(make_lab: MakeLab) -> None:
    claims = {"sub": "1", "email": "ann@x.example", "groups": ["ml"]}
    lab = make_lab(FakeProvider(claims={**claims, "email_verified": True}), user_claim="email")
    doubtful = make_lab(FakeProvider(claims=claims), user_claim="email")

    assert (await lab.caller(await lab.log_in())).name == "ann@x.example"
    with pytest.raises(PermissionDeniedError, match="not verified"):
        await doubtful.log_in()


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 201, 5, None])
async def test_what_cannot_be_a_name_is_refused(make_lab: MakeLab, name: object) -> None:
    claims = {"sub": "1", "nick": name, "groups": ["ml"]}
    lab = make_lab(FakeProvider(claims=claims), user_claim="nick")

    with pytest.raises(PermissionDeniedError, match="sends no nick"):
        await lab.log_in()


async def test_who_has_no_role_is_refused_and_told_how_to_get_one(make_lab: MakeLab) -> None:
    lab = make_lab(FakeProvider(claims={"sub": "eve", "groups": []}))

    with pytest.raises(PermissionDeniedError, match="headrace users add eve --role viewer"):
        await lab.log_in()
    store = lab.login.store
    assert [*store.principals.blocking(), *store.credentials.blocking(CredentialKind.SESSION)] == []
    assert [entry.action for entry in store.trail.blocking()] == ["login.failed"]


@pytest.mark.parametrize(
    ("how", "reason"), [({"disabled": True}, "is disabled"), ({"kind": "service"}, "is a service")]
)
async def test_who_is_kept_out_cannot_log_in(
    make_lab: MakeLab, how: dict[str, Any], reason: str
) -> None:
    lab = make_lab(FakeProvider(claims={"sub": "ann", "groups": ["ml"]}))
    lab.add("ann", "admin", **how)

    with pytest.raises(PermissionDeniedError, match=reason):
        await lab.log_in()


async def test_logging_out_ends_the_session(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.add("ann", "viewer")
    sent = await lab.log_in()
    out = await lab.token_login.end(await lab.caller(sent))

    assert "Max-Age=0" in out
    with pytest.raises(UnauthenticatedError, match="is revoked"):
        await lab.caller(sent)


async def test_each_login_has_a_session_of_its_own(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.add("ann", "viewer")
    one, two = await lab.log_in(), await lab.log_in()

    assert one.cookies[0] != two.cookies[0]
    assert len(lab.login.store.credentials.blocking(CredentialKind.SESSION, "ann")) == 2


# What is not to be believed.


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "other"},
        {"nonce": None},
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"exp": 900},
        {"exp": None},
        {"sub": None},
        {"iat": None},
        {"iat": 5000},
        {"nbf": 5000},
        {"azp": "other", "aud": [CLIENT, "other"]},
    ],
)
async def test_a_token_that_does_not_hold_lets_nobody_in(
    make_lab: MakeLab, changes: dict[str, Any]
) -> None:
    lab = make_lab(FakeProvider(claims={"sub": "ann", "groups": ["ml"]}, changes=changes))

    with pytest.raises(PermissionDeniedError):
        await lab.log_in()
    assert lab.login.store.credentials.blocking(CredentialKind.SESSION) == []


@pytest.mark.parametrize("how", ["none", "hmac with the public key", "another key"])
async def test_a_token_that_the_provider_did_not_sign_lets_nobody_in(
    make_lab: MakeLab, how: str
) -> None:
    provider = FakeProvider(claims={"sub": "ann", "groups": ["ml"]})
    if how == "none":
        provider.algorithm = "none"
    elif how == "another key":
        provider.signed_with = RSAKey.generate_key(2048, {"kid": "one"})
    else:
        provider.algorithm = "HS256"
        public = provider.key.as_pem(private=False)
        provider.signed_with = OctKey.import_key(public.replace(b"-----", b"_____"))
    lab = make_lab(provider)

    with pytest.raises(PermissionDeniedError, match="token is invalid"):
        await lab.log_in()


async def test_new_keys_of_the_provider_are_fetched_but_not_at_every_turn(
    make_lab: MakeLab,
) -> None:
    provider = FakeProvider(claims={"sub": "ann", "groups": ["ml"]})
    lab = make_lab(provider)
    await lab.log_in()
    provider.key = RSAKey.generate_key(2048, {"kid": "two"})
    with pytest.raises(PermissionDeniedError):
        await lab.log_in()  # they were fetched a moment ago
    lab.clock.at += 31.0
    provider.now = lab.clock.at
    await lab.log_in()

    assert [request.url.path for request in provider.asked].count("/keys") == 2


@pytest.mark.parametrize(
    "spoil", ["state", "cookie", "no cookie", "late", "other browser", "twice"]
)
async def test_a_browser_that_was_not_sent_from_here_does_not_get_in(
    make_lab: MakeLab, spoil: str
) -> None:
    lab = make_lab()
    lab.add("ann", "viewer")
    sent, other = await lab.login.begin("/"), await lab.login.begin("/")
    code, state = lab.provider.authorize(sent.location)
    cookie = sent.cookies[0].partition(";")[0].partition("=")[2]
    if spoil == "state":
        state = "x"
    elif spoil == "cookie":
        cookie = f"e30.{cookie.partition('.')[2]}"
    elif spoil == "no cookie":
        cookie = ""
    elif spoil == "late":
        lab.clock.at += 601.0
    elif spoil == "other browser":
        cookie = other.cookies[0].partition(";")[0].partition("=")[2]
    else:
        await lab.login.finish(cookie=cookie, state=state, code=code, address="")

    with pytest.raises(PermissionDeniedError):
        await lab.login.finish(cookie=cookie, state=state, code=code, address="")


async def test_a_code_of_another_login_lets_nobody_in(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.add("ann", "viewer")
    mine, stolen = await lab.login.begin("/"), await lab.login.begin("/")
    _, state = lab.provider.authorize(mine.location)
    code, _ = lab.provider.authorize(stolen.location)

    with pytest.raises(PermissionDeniedError, match="refused the login"):
        await lab.finish(mine, code=code, state=state)


@pytest.mark.parametrize(
    "page", ["//evil.example", "https://evil.example", "/\\evil", "/a\nb", "x", "", "/a b"]
)
async def test_a_login_leads_to_pages_of_this_server_only(make_lab: MakeLab, page: str) -> None:
    lab = make_lab()
    lab.add("ann", "viewer")

    assert not is_own_page(page)
    assert (await lab.log_in(page)).location == "/"


# The provider.


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"issuer": "\xff"}', b"[" * 100_000])
async def test_a_provider_that_answers_something_else_is_unavailable(
    make_lab: MakeLab, content: bytes
) -> None:
    lab = make_lab()
    lab.login.provider.transport = httpx.MockTransport(
        lambda _: httpx.Response(200, content=content)
    )

    with pytest.raises(UnavailableError, match="response is not its configuration"):
        await lab.login.begin("/")


async def test_a_provider_that_is_away_is_told(make_lab: MakeLab) -> None:
    lab = make_lab(FakeProvider(is_away=True))

    with pytest.raises(UnavailableError, match="does not answer"):
        await lab.login.begin("/")


@pytest.mark.parametrize(
    ("discovery", "kind"),
    [
        ({"issuer": "https://other.example"}, FailedPreconditionError),
        *(
            ({name: url}, FailedPreconditionError)
            for name in (
                *("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"),
            )
            for url in ("http://id.example/x", "http://127.0.0.1.example/", "ftp://id.example", "x")
        ),
        ({"jwks_uri": 5}, UnavailableError),
        ({"jwks_uri": ""}, FailedPreconditionError),
    ],
)
async def test_a_provider_that_is_another_or_not_safe_is_refused(
    make_lab: MakeLab, discovery: dict[str, Any], kind: type[HeadraceError]
) -> None:
    with pytest.raises(kind):
        await make_lab(FakeProvider(discovery=discovery)).login.begin("/")


async def test_a_secret_goes_to_the_token_endpoint_only_as_the_provider_wants_it(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("pl4nted:secret\n")
    sent = []
    for methods in (("client_secret_basic",), ("client_secret_post",)):
        lab = make_lab(FakeProvider(methods=methods), client_secret=f"file:{file}")
        lab.add("ann", "viewer")
        await lab.log_in()
        request = next(r for r in lab.provider.asked if r.url.path == "/token")
        sent.append((request.headers.get("authorization"), b"client_secret=" in request.content))

    assert sent == [("Basic aGVhZHJhY2U6cGw0bnRlZCUzQXNlY3JldA==", False), (None, True)]


# Settings.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issuer": "http://id.example"}, "begin with https://"),
        ({"redirect_url": "http://models.example/auth/callback"}, "begin with https://"),
        ({"redirect_url": "https://models.example/"}, "end with /auth/callback"),
        ({"client_secret": "pl4nted"}, "must not be literal"),
        ({"roles": ("ml",)}, "is not GROUP=ROLE"),
        ({"roles": ("ml=king",)}, "unknown role"),
    ],
)
def test_settings_that_are_not_safe_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        check_settings(msgspec.structs.replace(SETTINGS, **changes))
    assert "pl4nted" not in str(caught.value)


def test_a_secret_that_cannot_be_found_is_told_by_its_place() -> None:
    with pytest.raises(FailedPreconditionError, match="no variable HEADRACE_TEST_NOTHING"):
        secret_reader("${HEADRACE_TEST_NOTHING}")


def test_what_a_provider_says_is_told_only_if_it_is_a_word() -> None:
    assert str(failed("access_denied")).endswith("access_denied")
    assert str(failed("<script>")).endswith("an error")


def test_a_cookie_is_found_by_its_name() -> None:
    assert cookie_value("a=1; b = 2;c=3", "b") == "2"
    assert cookie_value("a=1; a=2", "a") == cookie_value("", "a") == ""


def test_a_missing_extra_is_told_with_the_way_to_get_it(
    kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "joserfc", None)
    for name in ("login", "provider"):
        monkeypatch.delitem(sys.modules, f"headrace.control.auth.{name}")

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[oidc\]'"):
        make_access(kept, Turned(), SETTINGS)
