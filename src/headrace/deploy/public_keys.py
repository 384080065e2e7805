"""Which public keys are in a key set (RFC 7517)? Those that can verify a token."""

import base64
import binascii
import json
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from headrace.core import InvalidArgumentError

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


def public_keys(text: str) -> list[PublicKey]:
    """The RSA and EC keys in a key set, in its order; others are passed over.

    Raises:
        InvalidArgumentError: It is no key set, or a key in it is broken.
    """
    try:
        entries = json.loads(text)["keys"]
        return [key for entry in entries if (key := _key(entry)) is not None]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise InvalidArgumentError(f"this is no set of public keys (RFC 7517): {error}") from error


def _key(entry: dict[str, Any]) -> PublicKey | None:
    if entry.get("use", "sig") != "sig":
        return None
    match entry.get("kty"):
        case "RSA":
            return rsa.RSAPublicNumbers(_number(entry["e"]), _number(entry["n"])).public_key()
        case "EC" if entry.get("crv") in _CURVES:
            curve = _CURVES[entry["crv"]]
            point = ec.EllipticCurvePublicNumbers(_number(entry["x"]), _number(entry["y"]), curve)
            return point.public_key()
        case _:
            return None


def _number(text: str) -> int:
    padded = text + "=" * (-len(text) % 4)
    return int.from_bytes(base64.urlsafe_b64decode(padded), "big")
