"""An OpenID provider over `httpx`, in this process, that does what a test says wrong."""

import base64
import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

ISSUER = "https://id.example"
CLIENT = "headrace"


@functools.cache
def _some_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "one"})


@dataclass
class FakeProvider:
    """Answers as an OpenID provider; `changes` replace claims, None takes one away."""

    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "ann"})
    more_claims: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    now: float = 1000.0
    key: RSAKey = field(default_factory=_some_key)
    signed_with: RSAKey | OctKey | None = None
    algorithm: str = "RS256"
    methods: tuple[str, ...] = ("client_secret_basic",)
    is_away: bool = False
    discovery: dict[str, Any] = field(default_factory=dict)
    asked: list[httpx.Request] = field(default_factory=list)
    challenges: dict[str, dict[str, str]] = field(default_factory=dict)

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def authorize(self, url: str) -> tuple[str, str]:
        """The code and the state with which a browser comes back that was sent to `url`."""
        query = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        code = f"code-{len(self.challenges)}"
        self.challenges[code] = query
        return code, query["state"]

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self.is_away:
            raise httpx.ConnectError("nobody there")
        match request.url.path:
            case "/.well-known/openid-configuration":
                return httpx.Response(200, json=self._configuration())
            case "/keys":
                return httpx.Response(200, json={"keys": [self.key.as_dict(private=False)]})
            case "/token":
                return self._token(parse_qs(request.content.decode()))
            case _:
                return httpx.Response(200, json={"sub": self.claims["sub"], **self.more_claims})

    def _configuration(self) -> dict[str, Any]:
        return {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
            "userinfo_endpoint": f"{ISSUER}/userinfo",
            "token_endpoint_auth_methods_supported": list(self.methods),
            **self.discovery,
        }

    def _token(self, form: dict[str, list[str]]) -> httpx.Response:
        query = self.challenges.pop(form["code"][0], None)
        if query is None or form["redirect_uri"][0] != query["redirect_uri"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        digest = hashlib.sha256(form["code_verifier"][0].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != query["code_challenge"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        claims = {
            "iss": ISSUER,
            "aud": CLIENT,
            "iat": int(self.now),
            "exp": int(self.now) + 300,
            "nonce": query["nonce"],
            **self.claims,
            **self.changes,
        }
        told = {name: value for name, value in claims.items() if value is not None}
        return httpx.Response(200, json={"id_token": self._signed(told), "access_token": "at"})

    def _signed(self, claims: dict[str, Any]) -> str:
        if self.algorithm == "none":
            parts = (json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims))
            return ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts) + "."
        key = self.signed_with or self.key
        header = {"alg": self.algorithm, "kid": str(self.key.kid)}
        return jwt.encode(header, claims, key, algorithms=[self.algorithm])
