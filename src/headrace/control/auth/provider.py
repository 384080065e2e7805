"""OpenID provider client: discovery, and claims about a person that the provider's keys verify.

OpenID Connect Core 1.0, section 3.1: authorization code, with PKCE (RFC 7636), state and nonce.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from headrace.control.base.settings import OidcSettings
from headrace.core import Clock, FailedPreconditionError, PermissionDeniedError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.access import is_authentic_url

_ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
_DISCOVERY: Final = "/.well-known/openid-configuration"
_TIMEOUT_S: Final = 10.0
_KEEP_S: Final = 3600.0
_REFETCH_INTERVAL_S: Final = 30.0
_LEEWAY_S: Final = 60
_MAX_BYTES: Final = 1 << 20
_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint")
Claims = dict[str, Any]
T = TypeVar("T")


class _Discovered(msgspec.Struct, frozen=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str = ""


@dataclass(slots=True, kw_only=True)
class Provider:
    """One identity provider, contacted on demand."""

    settings: OidcSettings
    clock: Clock
    secret: Callable[[], str]
    """Returns the client secret; empty for none."""
    transport: httpx.AsyncBaseTransport | None = None
    _configuration: _Discovered | None = None
    _configuration_at: float = field(default=0.0)
    _keys: KeySet | None = None
    _keys_at: float = field(default=0.0)

    async def login_url(self, *, state: str, nonce: str, verifier: str) -> str:
        """Return the provider's URL for a login.

        Raises:
            UnavailableError: The provider does not answer.
        """
        configuration = await self._discovered()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self.settings.client_id,
                "redirect_uri": self.settings.redirect_url,
                "scope": " ".join(dict.fromkeys(["openid", *self.settings.scopes])),
                "state": state,
                "nonce": nonce,
                "code_challenge": challenge.rstrip(b"=").decode(),
                "code_challenge_method": "S256",
            }
        )
        joint = "&" if urlsplit(configuration.authorization_endpoint).query else "?"
        return f"{configuration.authorization_endpoint}{joint}{query}"

    async def claims(self, *, code: str, nonce: str, verifier: str) -> Claims:
        """Return the provider's verified claims about the person who presented `code`.

        Raises:
            PermissionDeniedError: The provider rejects the code, or the claims are invalid.
            UnavailableError: The provider does not answer.
        """
        configuration = await self._discovered()
        tokens = await self._exchange(configuration, code, verifier)
        claims = await self._verified(configuration, tokens.id_token, nonce)
        groups = {self.settings.groups_claim} if self.settings.roles else set[str]()
        claim_names = {self.settings.user_claim} | groups
        if configuration.userinfo_endpoint and tokens.access_token and claim_names - claims.keys():
            headers = {"authorization": f"Bearer {tokens.access_token}"}
            more = _decoded(
                await self._get(configuration.userinfo_endpoint, headers), Claims, "its user"
            )
            if more.get("sub") != claims["sub"]:
                raise PermissionDeniedError(
                    "the identity provider's user info is about another subject"
                )
            claims = {**more, **claims}
        return claims

    async def _discovered(self) -> _Discovered:
        now = self.clock.monotonic()
        if self._configuration is not None and now - self._configuration_at < _KEEP_S:
            return self._configuration
        url = f"{self.settings.issuer.rstrip('/')}{_DISCOVERY}"
        configuration = _decoded(await self._get(url), _Discovered, "its configuration")
        if configuration.issuer != self.settings.issuer:
            message = (
                f"{url} says that its issuer is {configuration.issuer[:200]!r}, and not "
                f"{self.settings.issuer!r}; set --oidc-issuer to exactly that"
            )
            raise FailedPreconditionError(message)
        for name in _ENDPOINTS:
            url = getattr(configuration, name)
            if url or name != "userinfo_endpoint":  # which is optional
                check_url(url, f"the identity provider's {name}")
        self._configuration, self._configuration_at = configuration, now
        return configuration

    async def _exchange(self, configuration: _Discovered, code: str, verifier: str) -> _Tokens:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.settings.redirect_url,
            "code_verifier": verifier,
        }
        secret = self.secret()
        auth: httpx.BasicAuth | None = None
        if not secret:
            form["client_id"] = self.settings.client_id
        elif "client_secret_basic" in configuration.token_endpoint_auth_methods_supported:
            auth = httpx.BasicAuth(_quoted(self.settings.client_id), _quoted(secret))
        else:
            form |= {"client_id": self.settings.client_id, "client_secret": secret}
        async with self._client() as client:
            try:
                response = await client.post(
                    configuration.token_endpoint, data=form, auth=auth or httpx.USE_CLIENT_DEFAULT
                )
            except httpx.HTTPError as error:
                raise _away(error) from error
        if response.status_code != httpx.codes.OK:
            message = f"the identity provider refused the login (status {response.status_code})"
            raise PermissionDeniedError(message)
        return _decoded(response.content, _Tokens, "its tokens")

    async def _verified(self, configuration: _Discovered, token: str, nonce: str) -> Claims:
        expected = jwt.JWTClaimsRegistry(
            now=round(self.clock.now()),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": self.settings.issuer},
            aud={"essential": True, "value": self.settings.client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            claims = await self._decoded_token(configuration, token)
            expected.validate(claims)
        except (JoseError, ValueError) as error:
            message = f"the identity provider's token is invalid: {error}"
            raise PermissionDeniedError(message) from error
        party = claims.get("azp", self.settings.client_id)
        if party != self.settings.client_id:
            raise PermissionDeniedError("the identity provider's token is for another client")
        return claims

    async def _decoded_token(self, configuration: _Discovered, token: str) -> Claims:
        keys = await self._key_set(configuration)
        try:
            return jwt.decode(token, keys, algorithms=_ALGORITHMS).claims
        except (JoseError, ValueError):
            # The provider's keys may have been rotated since they were fetched.
            if self.clock.monotonic() - self._keys_at < _REFETCH_INTERVAL_S:
                raise
            self._keys = None
            keys = await self._key_set(configuration)
            return jwt.decode(token, keys, algorithms=_ALGORITHMS).claims

    async def _key_set(self, configuration: _Discovered) -> KeySet:
        now = self.clock.monotonic()
        if self._keys is None or now - self._keys_at >= _KEEP_S:
            document = _decoded(await self._get(configuration.jwks_uri), Claims, "its keys")
            try:
                self._keys = KeySet.import_key_set(document)  # type: ignore[arg-type]  # checked by it
            except (JoseError, ValueError, KeyError, TypeError) as error:
                message = "the identity provider's keys cannot be read"
                raise UnavailableError(message) from error
            self._keys_at = now
        return self._keys

    async def _get(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        async with self._client() as client:
            try:
                response = await client.get(url, headers=headers)
                response.raise_for_status()
            except httpx.HTTPError as error:
                raise _away(error) from error
        return response.content[:_MAX_BYTES]

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=_TIMEOUT_S, follow_redirects=False, transport=self.transport
        )


def check_url(url: str, description: str) -> None:
    """Reject a URL whose responses could be forged in transit.

    Raises:
        FailedPreconditionError: The URL is neither HTTPS nor on this machine.
    """
    if not is_authentic_url(url):
        raise FailedPreconditionError(
            f"{description} has to begin with https://, and is {url[:200]!r}"
        )


def _decoded(data: bytes, of_type: type[T], description: str) -> T:
    try:
        return msgspec.json.decode(data, type=of_type)
    except UNDECODABLE as error:
        message = f"the identity provider's response is not {description}"
        raise UnavailableError(message) from error


def _quoted(text: str) -> str:
    """Return `text` encoded as RFC 6749, section 2.3.1 requires."""
    return urlencode({"": text})[1:]


def _away(error: httpx.HTTPError) -> UnavailableError:
    reason = type(error).__name__
    return UnavailableError(f"the identity provider does not answer ({reason})")
