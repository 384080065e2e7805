"""Which public keys of an identity provider are worth telling Envoy?

Envoy refuses a whole configuration for one provider without a usable key, and with it a key that
somebody revokes just then; and it takes symmetric keys, by which whoever reads them makes tokens.
"""

# ruff: noqa: PLC0415  # cryptography takes longer to load than a gateway without providers to start

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

_CURVES: Final = {"P-256": 32, "P-384": 48, "P-521": 66}
_PUBLIC: Final = frozenset({"kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y"})
_LEAST_RSA_BITS: Final = 2048
_MOST_KEYS: Final = 256


def usable_key_set(text: str) -> str:
    """The keys of a JWK set (RFC 7517) that verify signatures, and only what is public of them.

    Empty if there is none: such a provider's tokens are refused, and nobody else's.
    """
    try:
        found = json.loads(text)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    keys = found[:_MOST_KEYS] if isinstance(found, list) else []
    usable = [
        {name: value for name, value in key.items() if name in _PUBLIC}
        for key in keys
        if isinstance(key, dict) and _verifies(key)
    ]
    return json.dumps({"keys": usable}) if usable else ""


def _verifies(key: Mapping[str, Any]) -> bool:
    if key.get("use", "sig") != "sig":
        return False
    try:
        match key.get("kty"):
            case "RSA":
                return _number(key["n"]).bit_length() >= _LEAST_RSA_BITS and _number(key["e"]) > 1
            case "EC":
                return _is_on_curve(key)
            case "OKP":
                return key["crv"] == "Ed25519" and _is_ed25519(_bytes(key["x"]))
            case _:
                return False
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _is_on_curve(key: Mapping[str, Any]) -> bool:
    """Raise ValueError if its point lies elsewhere."""
    from cryptography.hazmat.primitives.asymmetric import ec

    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    x, y = _bytes(key["x"]), _bytes(key["y"])
    if {len(x), len(y)} != {_CURVES[key["crv"]]}:
        return False
    ec.EllipticCurvePublicKey.from_encoded_point(curves[key["crv"]], b"\x04" + x + y)
    return True


def _is_ed25519(raw: bytes) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    ed25519.Ed25519PublicKey.from_public_bytes(raw)
    return True


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text))


def _bytes(text: str) -> bytes:
    """What base64url without padding says; ValueError for anything else."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
