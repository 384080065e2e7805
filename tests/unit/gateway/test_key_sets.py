import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from headrace.gateway.callers import usable_key_set

RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505  # it is to be refused
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def _as_set(*keys: object) -> str:
    return json.dumps({"keys": keys})


def _kept(*keys: object) -> list[dict[str, Any]]:
    text = usable_key_set(_as_set(*keys))
    found: list[dict[str, Any]] = json.loads(text)["keys"] if text else []
    return found


def _ec() -> dict[str, Any]:
    return ECAlgorithm.to_jwk(EC.public_key(), as_dict=True)


PUBLIC: list[dict[str, Any]] = [
    RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True),
    _ec(),
    OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True),
]


def test_public_keys_stay_as_they_are() -> None:
    given = [{**key, "kid": str(i), "use": "sig"} for i, key in enumerate(PUBLIC)]

    kept = _kept(*given)

    assert [key["kid"] for key in kept] == ["0", "1", "2"]
    for key in kept:
        assert jwt.PyJWK(key).key is not None


def test_of_a_private_key_only_the_public_part_is_told() -> None:
    whole = RSAAlgorithm.to_jwk(RSA, as_dict=True)
    assert "d" in whole

    (kept,) = _kept(whole)

    assert set(kept) <= {"kty", "n", "e", "key_ops"}


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": base64.b64encode(b"s" * 32).decode(), "alg": "HS256"},
        {**PUBLIC[0], "use": "enc"},
        RSAAlgorithm.to_jwk(WEAK.public_key(), as_dict=True),
        {"kty": "RSA", "n": "!!!", "e": "AQAB"},
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        {"kty": "RSA"},
        {**_ec(), "x": _ec()["y"]},
        {**_ec(), "crv": "P-384"},
        {**_ec(), "crv": "secp256k1"},
        {**_ec(), "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": ["RSA"]},
        "RSA",
        None,
    ],
)
def test_what_verifies_nothing_is_left_out(key: object) -> None:
    assert _kept(key, PUBLIC[1]) == _kept(PUBLIC[1])
    assert usable_key_set(_as_set(key)) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"keys":{}}', '{"keys":7}', "[" * 99999])
def test_what_is_no_key_set_has_no_keys(text: str) -> None:
    assert usable_key_set(text) == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kty", "n", "e", "crv", "x", "y", "use", "z"]), inner)
    ),
)


@given(st.lists(_JSON, max_size=4))
def test_no_key_set_breaks_anything(keys: list[object]) -> None:
    usable_key_set(_as_set(*keys))
