"""Tokens that must open nothing, whoever made them, over every protocol."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from headrace.core import SystemClock
from tests.e2e.attacks.guarded import KEY, NARROW, PROTOCOLS, Guarded, guarded
from tests.e2e.gateway.issuing import ALGORITHMS, AUDIENCE, ISSUER, Issuer, base64url, unsigned

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STRANGER: Final = rsa.generate_private_key(65537, 2048)
WRONG_KEY: Final = "Unknown, expired or revoked API key"


@pytest.fixture(scope="module")
def site() -> Iterator[Guarded]:
    with guarded() as site:
        yield site


def now() -> int:
    return int(SystemClock().now())


def claims(**changes: object) -> dict[str, object]:
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "scope": "infer:*", "exp": now() + 600}
    return {**good, **changes}


def hmac_signed(secret: bytes, **header: object) -> str:
    head = {"alg": "HS256", "typ": "JWT", **header}
    signed = ".".join(base64url(json.dumps(part).encode()) for part in (head, claims()))
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64url(signature)}"


def public_pem(issuer: Issuer) -> bytes:
    return bytes(
        issuer.keys["RS256"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def modulus(issuer: Issuer) -> bytes:
    number = issuer.keys["RS256"].public_key().public_numbers().n
    return bytes(number.to_bytes(256, "big"))


def tampered(issuer: Issuer, **changes: object) -> str:
    head, _, signature = issuer.token(scope="none").split(".")
    return ".".join([head, base64url(json.dumps(claims(**changes)).encode()), signature])


def by_stranger(**header: object) -> str:
    given: dict[str, Any] = {"kid": "RS256", **header}
    return jwt.encode(claims(), STRANGER, algorithm="RS256", headers=given)


def cut(token: str) -> str:
    head, payload, _ = token.split(".")
    return f"{head}.{payload}."


FORGED: Final[dict[str, Callable[[Issuer], str]]] = {
    "no algorithm": lambda _: unsigned(claims(), {"alg": "none"}, ""),
    "no algorithm, spelled oddly": lambda _: unsigned(claims(), {"alg": "nOnE"}, "AAAA"),
    "no algorithm at all": lambda _: unsigned(claims(), {"typ": "JWT"}, "AAAA"),
    "no algorithm, a known key": lambda _: unsigned(claims(), {"alg": "none", "kid": "RS256"}, ""),
    "the public key as a secret": lambda i: hmac_signed(public_pem(i)),
    "the public key as a secret, named": lambda i: hmac_signed(public_pem(i), kid="RS256"),
    "the modulus as a secret": lambda i: hmac_signed(modulus(i), kid="RS256"),
    "the key set as a secret": lambda i: hmac_signed(i.key_set.encode()),
    "an empty secret": lambda _: hmac_signed(b""),
    "expired": lambda i: i.token(exp=now() - 60),
    "expired for ever": lambda i: i.token(exp=-1),
    "not yet valid": lambda i: i.token(nbf=now() + 600),
    "without an end": lambda i: i.token(without="exp"),
    "an end in words": lambda i: i.token(exp="tomorrow"),
    "another audience": lambda i: i.token(aud="elsewhere"),
    "other audiences": lambda i: i.token(aud=["elsewhere", "and-there"]),
    "no audience": lambda i: i.token(without="aud"),
    "another issuer": lambda i: i.token(iss="https://id.example.evil"),
    "an issuer like ours": lambda i: i.token(iss=f"{ISSUER}/"),
    "no issuer": lambda i: i.token(without="iss"),
    "tampered claims": tampered,
    "tampered subject": lambda i: tampered(i, sub="admin"),
    "no signature": lambda i: cut(i.token()),
    "half a signature": lambda i: i.token()[:-100],
    "a signature of zeros": lambda _: unsigned(
        claims(), {"alg": "ES256", "kid": "ES256"}, base64url(bytes(64))
    ),
    "a critical extension": lambda i: i.token(header={"crit": ["b64"], "b64": True}),
    "an unknown critical extension": lambda i: i.token(header={"crit": ["x-y"], "x-y": 1}),
    "nothing critical": lambda i: i.token(header={"crit": []}),
    "a critical name": lambda i: i.token(header={"crit": "exp"}),
    "another algorithm's key": lambda i: i.token(header={"kid": "ES256"}),
    "an unknown key": lambda i: i.token(header={"kid": "nobody"}),
    "a key that is a path": lambda i: i.token(header={"kid": "../../../../dev/null"}),
    "a stranger's key": lambda _: by_stranger(),
    "a stranger's key inside": lambda _: by_stranger(
        jwk=json.loads(RSAAlgorithm.to_jwk(STRANGER.public_key()))
    ),
    "a stranger's key by address": lambda _: by_stranger(jku="http://127.0.0.1:1/keys"),
    "a stranger's certificate": lambda _: by_stranger(
        x5c=[base64.b64encode(public_pem(Issuer())).decode()], x5u="http://127.0.0.1:1/c"
    ),
    "two dots": lambda _: "..",
    "no token": lambda _: "token",
    "five parts": lambda i: f"{i.token()}.a.b",
    "more than one": lambda i: f"{i.token()},{i.token()}",
    "a bad one before a good one": lambda i: f"{by_stranger()},{i.token()}",
    "a good one before a bad one": lambda i: f"{i.token()} {by_stranger()}",
    "something behind it": lambda i: f"{i.token()}~evil",
    "an equals sign behind it": lambda i: f"{i.token()}=",
    "no caller": lambda i: i.token(without="sub"),
    "an empty caller": lambda i: i.token(sub=""),
    "a caller that is a list": lambda i: _reencoded(i, sub=["root"]),
    "a caller that is an object": lambda i: _reencoded(i, sub={"name": "root"}),
    "a caller that is true": lambda i: _reencoded(i, sub=True),
    "a caller that is no whole number": lambda i: _reencoded(i, sub=0.5),
    "a caller that is a number": lambda i: _reencoded(i, sub=42),
    "nested without end": lambda i: _reencoded(i, deep=json.loads("[" * 200 + "]" * 200)),
}


def _reencoded(issuer: Issuer, **changes: object) -> str:
    """A token of ours whose claims are of types that no library makes."""
    given = claims(**changes)
    return issuer.signed(given)


@pytest.mark.parametrize(
    "protocol", ["HTTP/1.1", pytest.param("HTTP/2", marks=pytest.mark.long), "gRPC"]
)
@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_a_forged_token_is_refused(
    site: Guarded, protocol: str, make: Callable[[Issuer], str]
) -> None:
    before = site.count()

    answer = site.ask(protocol, [("authorization", f"Bearer {make(site.issuer)}")])

    assert answer.status == 401, answer.text
    assert site.count() == before


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_one_is_taken(site: Guarded, protocol: str, algorithm: str) -> None:
    token = site.issuer.token(algorithm=algorithm, nbf=now() - 1, aud=["x", AUDIENCE])

    assert site.ask(protocol, [("authorization", f"Bearer {token}")]).status == 200
    assert site.received()["x-headrace-caller"] == "corp/alice"


@pytest.mark.long
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_token_ends_also_where_it_was_taken_before(site: Guarded, protocol: str) -> None:
    """What verifies tokens remembers them, and is generous then."""
    skew_s = 5
    token = site.issuer.token(exp=now() - skew_s + 2, sub=protocol)
    headers = [("authorization", f"Bearer {token}")]
    assert site.ask(protocol, headers).status == 200

    until = now() + 3
    while (answer := site.ask(protocol, headers)).status == 200:
        assert now() <= until

    assert answer.status == 401
    assert "expired" in answer.text


CREDENTIALS: Final[dict[str, list[tuple[str, str]]]] = {
    "nothing": [],
    "an empty key": [("x-api-key", "")],
    "an unknown id": [("x-api-key", KEY.replace("good", "none"))],
    "another secret": [("x-api-key", f"{KEY[:-1]}x")],
    "a key that goes on": [("x-api-key", f"{KEY}x")],
    "a shorter key": [("x-api-key", KEY[:-1])],
    "a key in another case": [("x-api-key", KEY.upper())],
    "a digest instead of its key": [("x-api-key", hashlib.sha256(KEY.encode()).hexdigest())],
    "a pattern": [("x-api-key", f"hr_%w+{KEY[7:]}")],
    "bytes beyond ASCII": [("x-api-key", f"{KEY[:-2]}\xff\xfe")],
    "two keys": [("x-api-key", NARROW), ("x-api-key", KEY)],
    "a key and nothing": [("x-api-key", KEY), ("x-api-key", "")],
    "the same key twice": [("x-api-key", KEY), ("x-api-key", KEY)],
    "keys in one line": [("x-api-key", f"{NARROW}, {KEY}")],
    "a key beside a token": [("x-api-key", KEY), ("authorization", "Bearer x.y.z")],
    "two bearers": [("authorization", f"Bearer {NARROW}"), ("authorization", f"Bearer {KEY}")],
    "another scheme": [("authorization", f"Basic {KEY}")],
    "no scheme": [("authorization", KEY)],
    "a scheme in front": [("authorization", f"Basic x Bearer {KEY}")],
    "a key by another name": [("api-key", KEY), ("x-key", KEY), ("cookie", f"x-api-key={KEY}")],
    "a verified issuer": [("x-headrace-issuer", ISSUER), ("authorization", "Bearer a.b.c")],
    "an identity": [("x-headrace-caller", "robot"), ("x-headrace-credential", "key:robot")],
    "a certificate by header": [("x-forwarded-client-cert", "By=x;Hash=y;URI=spiffe://a")],
}


@pytest.mark.parametrize(
    "protocol", ["HTTP/1.1", pytest.param("HTTP/2", marks=pytest.mark.long), "gRPC"]
)
@pytest.mark.parametrize("headers", CREDENTIALS.values(), ids=CREDENTIALS)
def test_what_is_no_credential_opens_nothing(
    site: Guarded, protocol: str, headers: list[tuple[str, str]]
) -> None:
    if protocol == "gRPC" and any(not value.isascii() for _, value in headers):
        pytest.skip("gRPC's own client sends ASCII only")
    before = site.count()

    answer = site.ask(protocol, headers)

    assert answer.status == 401, answer.text
    assert site.count() == before


def test_a_forged_claim_is_not_read_behind_a_forged_issuer(site: Guarded) -> None:
    """The header by which Envoy says that it verified a token comes from nobody else."""
    token = tampered(site.issuer, sub="admin")
    headers = [("authorization", f"Bearer {token}"), ("x-headrace-issuer", ISSUER)]

    assert site.http1(headers).status == 401
    assert site.http1([(name.title(), value) for name, value in headers]).status == 401
    assert site.http2(headers).status == 401


@pytest.mark.parametrize("path", ["?access_token={}", "?authorization=Bearer%20{}"])
def test_a_token_in_the_path_counts_for_nothing(site: Guarded, path: str) -> None:
    found = site.http1([], path=f"/v2/models/m/infer{path.format(site.issuer.token())}")

    assert found.status == 401


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("infer:m", 200),
        ("openid infer:m:1 infer:*", 200),
        (["openid", "infer:m"], 200),
        ("infer:m2", 403),
        ("infer:M", 403),
        ("infer:", 403),
        ("infer:m:1", 403),
        ("infer:m:-", 403),
        ("xinfer:m", 403),
        ("infer:m,infer:*", 403),
        (["openid infer:*"], 403),
        ([["infer:*"]], 403),
        ({"infer:*": True}, 403),
        ({"scope": "infer:*"}, 403),
        (7, 403),
        (None, 403),
        (["a\ninfer:*"], 403),
    ],
    ids=str,
)
def test_only_whole_words_are_scopes(site: Guarded, scope: object, status: int) -> None:
    headers = [("authorization", f"Bearer {_reencoded(site.issuer, scope=scope)}")]

    assert [site.ask(protocol, headers).status for protocol in PROTOCOLS] == [status] * 3


@pytest.mark.parametrize(
    ("subject", "caller"),
    [
        ("alice smith", "corp/alice%20smith"),
        ("a%20b", "corp/a%2520b"),
        ("eve\r\nx-headrace-tier: gold", "corp/eve%0D%0Ax-headrace-tier:%20gold"),
        ("jos\u00e9", "corp/jos%C3%A9"),
        ("\U0001f600", "corp/%F0%9F%98%80"),
        ("nul\u0000", "corp/nul%00"),
    ],
)
def test_a_caller_is_named_in_printable_characters(
    site: Guarded, subject: object, caller: str
) -> None:
    headers = [("authorization", f"Bearer {_reencoded(site.issuer, sub=subject)}")]

    for protocol in PROTOCOLS:
        assert site.ask(protocol, headers).status == 200
        assert site.received()["x-headrace-caller"] == caller
        assert "x-headrace-tier" not in site.received()


def test_long_names_stay_short_and_apart(site: Guarded) -> None:
    callers = []
    for last in "ab":
        token = site.issuer.token(sub="x" * 5000 + last)
        assert site.http1([("authorization", f"Bearer {token}")]).status == 200
        callers.append(site.received()["x-headrace-caller"])

    assert callers[0] != callers[1]
    assert all(len(caller) == 128 for caller in callers)


SPOOFED: Final = (
    "x-headrace-caller",
    "x-headrace-credential",
    "x-headrace-tier",
    "x-headrace-issuer",
    "x-headrace-priority",
)


@pytest.mark.parametrize("name", SPOOFED)
def test_nobody_says_himself_who_he_is(site: Guarded, name: str) -> None:
    spoofed = [(name, "root"), (name.title(), "root"), (name.upper(), "root"), (name, "root")]
    for protocol in PROTOCOLS:
        given = [(n.lower(), v) for n, v in spoofed] if protocol != "HTTP/1.1" else spoofed
        assert site.ask(protocol, [*given, ("x-api-key", KEY)]).status == 200
        assert "root" not in site.received().values()
        assert site.received()["x-headrace-caller"] == "robot"


@pytest.mark.parametrize("name", SPOOFED)
def test_an_underscore_is_no_dash(site: Guarded, name: str) -> None:
    """To some servers they are one header, to a replica they are two."""
    header = (name.replace("-", "_"), "root")

    for protocol in PROTOCOLS:
        assert site.ask(protocol, [header, ("x-api-key", KEY)]).status == 200
        assert site.received().get(name, "") != "root"
        assert site.received()["x-headrace-caller"] == "robot"


def test_nobody_has_his_name_taken_away(site: Guarded) -> None:
    """`connection` names headers that end here: that must not reach the one who is told."""
    listed = "x-headrace-caller, x-headrace-credential"

    site.http1([("connection", listed), ("x-api-key", KEY)])

    assert site.received()["x-headrace-caller"] == "robot"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_shown_stays_at_the_gateway(site: Guarded, protocol: str) -> None:
    token = site.issuer.token()

    for headers in ([("x-api-key", KEY)], [("authorization", f"Bearer {token}")]):
        assert site.ask(protocol, headers).status == 200
        assert not {"x-api-key", "authorization", "x-headrace-issuer"} & set(site.received())


def test_refusals_tell_no_secret(site: Guarded) -> None:
    shown = [("x-api-key", f"{KEY[:-1]}x")]

    answer = site.http1(shown)

    assert WRONG_KEY in answer.text
    assert KEY[:-1] not in answer.text
    assert hashlib.sha256(KEY.encode()).hexdigest() not in answer.text
