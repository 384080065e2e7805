"""Identity providers and API keys for tests: what is signed, and what the gateway is told."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from headrace.core import SystemClock
from headrace.core.spec.access import AccessSettings, JwtSpec, TierSpec
from headrace.gateway import ApiKey, GatewayPolicy

ISSUER: Final = "https://id.example"
AUDIENCE: Final = "gateway"
PROVIDER: Final = JwtSpec(name="corp", issuer=ISSUER, audiences=(AUDIENCE,), jwks_file="x")
ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
_FAMILIES: Final[dict[str, Any]] = {
    "RS256": RSAAlgorithm,
    "PS256": RSAAlgorithm,
    "ES256": ECAlgorithm,
    "EdDSA": OKPAlgorithm,
}


def api_key(id_: str, rest: str = "s") -> str:
    """A key that looks like one of ours."""
    return f"hr_{id_:0>12}_{rest:_<43}"


def known(
    key: str,
    *scopes: str,
    name: str = "robot",
    tier: str = "",
    expires_at: float | None = None,
) -> ApiKey:
    return ApiKey(
        id=key.split("_")[1],
        name=name,
        digest=hashlib.sha256(key.encode()).hexdigest(),
        scopes=scopes or ("infer:*",),
        tier=tier,
        expires_at=expires_at,
    )


@dataclass
class Issuer:
    """One key pair per algorithm."""

    keys: Mapping[str, Any] = field(
        default_factory=lambda: {
            "RS256": rsa.generate_private_key(65537, 2048),
            "PS256": rsa.generate_private_key(65537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
    )

    @property
    def key_set(self) -> str:
        """Its public keys, RFC 7517."""
        keys = []
        for algorithm, key in self.keys.items():
            jwk = json.loads(_FAMILIES[algorithm].to_jwk(key.public_key()))
            keys.append({**jwk, "kid": algorithm, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": keys})

    def token(
        self,
        *,
        algorithm: str = "RS256",
        header: Mapping[str, object] | None = None,
        without: str = "",
        **claims: object,
    ) -> str:
        now = int(SystemClock().now())
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "alice",
            "scope": "openid infer:*",
            "exp": now + 600,
            **claims,
        }
        payload.pop(without, None)
        headers = {"kid": algorithm, **(header or {})}
        return jwt.encode(payload, self.keys[algorithm], algorithm=algorithm, headers=headers)

    def signed(self, claims: Mapping[str, object]) -> str:
        """A token of any claims, also of types that no library signs."""
        head = {"alg": "RS256", "kid": "RS256"}
        signed = unsigned(claims, head, "").removesuffix(".")
        signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(signed.encode(), self.keys["RS256"])
        return f"{signed}.{base64url(signature)}"

    def policy(self, *keys: ApiKey, **changes: object) -> GatewayPolicy:
        """What a gateway is told that takes its tokens and these keys."""
        access: dict[str, Any] = {"jwt": (PROVIDER,), "tiers": (TierSpec(name="gold"),)}
        access.update(changes)
        return GatewayPolicy(
            access=AccessSettings(**access), keys=keys, key_sets={PROVIDER.name: self.key_set}
        )


def unsigned(payload: Mapping[str, object], header: Mapping[str, object], signature: str) -> str:
    """A token whose signature is whatever it is."""
    parts = [base64url(json.dumps(part).encode()) for part in (header, payload)]
    return ".".join([*parts, signature])


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
