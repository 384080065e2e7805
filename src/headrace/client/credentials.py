"""Target of a client: the server of a URL, and the credentials for it."""

import ipaddress
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import httpx

from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError, error_kind

_TLS: Final = {"http": False, "https": True, "grpc": False, "grpcs": True}
_FORMS: Final = "http://HOST:PORT, https://…, grpc://HOST:PORT, grpcs://… or unix:/PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Parts of a server's address.

    HTTP paths are appended to `base_url`; `uds` is the Unix socket, if any. `authority` is
    `host:port`, as gRPC needs it.
    """

    protocol: Literal["http", "grpc"]
    tls: bool
    authority: str
    base_url: str
    uds: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that the connection cannot be intercepted."""
        host = urlsplit(f"//{self.authority}").hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def parse_target(url: str) -> ServerAddress:
    """Return the server address in `url`; without a scheme it is HTTP.

    Raises:
        InvalidArgumentError: It is not such a URL; the message lists the valid forms.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise _refused(url, "a socket's path starts with '/'")
        return ServerAddress(
            protocol="http", tls=False, authority="localhost", base_url="http://localhost", uds=path
        )
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url, str(error)) from None
    if parts.scheme not in _TLS:
        raise _refused(url, f"the scheme '{parts.scheme}' is unknown")
    if not host:
        raise _refused(url, "the host is missing")
    if "@" in parts.netloc:
        # Otherwise they would appear in logs and error messages.
        raise _refused("…", "credentials belong in `headers`, not in the URL")
    return _tcp(url, parts.scheme, host, port, parts.path.rstrip("/"))


def _tcp(url: str, scheme: str, host: str, port: int | None, path: str) -> ServerAddress:
    tls = _TLS[scheme]
    bracketed = f"[{host}]" if ":" in host else host
    if scheme.startswith("grpc"):
        if port is None or path:
            raise _refused(url, "gRPC needs a port and takes no path")
        return ServerAddress(protocol="grpc", tls=tls, authority=f"{bracketed}:{port}", base_url="")
    authority = bracketed if port is None else f"{bracketed}:{port}"
    return ServerAddress(
        protocol="http", tls=tls, authority=authority, base_url=f"{scheme}://{authority}{path}"
    )


def _refused(url: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"'{url}' is not a server address: {reason}; use {_FORMS}")


KEY_HEADER: Final = "x-api-key"
_KEY_VARIABLE: Final = "HEADRACE_API_KEY"
_KEY_INTERVAL_S: Final = 1.0
_REFUSALS: Final = frozenset({401, 403})
_SECRET: Final = frozenset({KEY_HEADER, "authorization", "proxy-authorization", "cookie"})
"""Authentication headers; anyone who reads them can impersonate the caller."""
_VISIBLE: Final = re.compile(r"[!-~]{1,16384}")
FilePath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """TLS settings of a connection."""

    ca_file: Path | None = None
    """CA certificates (PEM) that verify the server; None for the system's."""
    certificate_file: Path | None = None
    """Client certificate (PEM)."""
    key_file: Path | None = None
    """Private key of the client certificate (PEM)."""
    server_name: str = ""
    """Name that the server's certificate must contain; empty for the URL's host."""


@dataclass(slots=True)
class KeyFile:
    """File with an API key, which is read again after a refusal, at most once per second.

    Raises:
        FailedPreconditionError: The file cannot be read at first.
        InvalidArgumentError: It holds no key at first.
    """

    path: Path
    clock: Callable[[], float] = time.monotonic
    key: str = field(init=False, repr=False)
    _next_at: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.key = self._read()

    def read_again(self) -> None:
        """Take the key that the file holds now; keep the last one if there is none."""
        now = self.clock()
        if now >= self._next_at:
            self._next_at = now + _KEY_INTERVAL_S
            with suppress(HeadraceError):
                self.key = self._read()

    def _read(self) -> str:
        try:
            key = self.path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"cannot read the API key in {self.path}: {error_kind(error)}"
            raise FailedPreconditionError(msg) from None
        return _checked(f"the file {self.path}", key)


@dataclass(frozen=True, slots=True)
class Credentials(httpx.Auth):
    """Authentication headers. They are added just before sending and never displayed."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    key_file: KeyFile | None = None
    """Source of the API key in `headers`; None for a fixed one."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Yield `request` with the headers, and again if the refused key was replaced."""
        request.headers.update(self.headers)
        response = yield request
        if self.key_file is not None and response.status_code in _REFUSALS:
            self.key_file.read_again()
            self.headers[KEY_HEADER] = self.key_file.key
            if request.headers[KEY_HEADER] != self.key_file.key:
                request.headers.update(self.headers)
                yield request


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Options of one client's connections: the headers of every request, and TLS settings."""

    headers: Mapping[str, str] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials)
    trust: Trust = field(default_factory=Trust)


def connection_options(
    target: ServerAddress,
    *,
    headers: Mapping[str, str] | None = None,
    api_key: str | KeyFile | None = None,
    token: str | None = None,
    trust: Trust,
    allow_insecure: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> ConnectionOptions:
    """Return the headers and TLS settings of a client of `target`.

    Raises:
        InvalidArgumentError: Credentials would be sent unencrypted or are invalid, or TLS settings
            are given for a target without TLS.
    """
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    secret = {name: value for name, value in lowered.items() if name in _SECRET}
    if api_key is None and token is None and not secret:
        api_key = environ.get(_KEY_VARIABLE)
    key_file = api_key if isinstance(api_key, KeyFile) else None
    api_key = api_key.key if isinstance(api_key, KeyFile) else api_key
    if api_key:
        secret[KEY_HEADER] = _checked("api_key", api_key)
    if token:
        secret["authorization"] = f"Bearer {_checked('token', token)}"
    if secret and not (target.tls or target.is_loopback or allow_insecure):
        names = " and ".join(f"'{name}'" for name in sorted(secret))
        scheme = f"{target.protocol}s"
        raise InvalidArgumentError(
            f"{names} would travel unencrypted to {target.authority}, for anybody on the way to "
            f"read: use {scheme}://, or say allow_insecure=True"
        )
    if trust != Trust() and not target.tls:
        raise InvalidArgumentError(
            f"ca_file, client_certificate and server_name are for TLS: use {target.protocol}s://"
        )
    others = {name: value for name, value in lowered.items() if name not in _SECRET}
    return ConnectionOptions(headers=others, credentials=Credentials(secret, key_file), trust=trust)


def trust_of(
    ca_file: FilePath | None,
    client_certificate: tuple[FilePath, FilePath] | None,
    server_name: str,
) -> Trust:
    """Return the TLS settings in a client's arguments."""
    certificate, key = client_certificate or (None, None)
    return Trust(
        ca_file=None if ca_file is None else Path(ca_file),
        certificate_file=None if certificate is None else Path(certificate),
        key_file=None if key is None else Path(key),
        server_name=server_name,
    )


def tls_context(trust: Trust) -> ssl.SSLContext | bool:
    """Return the context with which httpx verifies servers; True for its default.

    Raises:
        InvalidArgumentError: A file cannot be read, or has invalid content.
    """
    if trust.ca_file is None and trust.certificate_file is None:
        return True
    if trust.ca_file is None:
        context = httpx.create_ssl_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # A named certificate is trusted, even if another authority signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cafile=trust.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise _unreadable("ca_file", trust.ca_file, error) from None
    if trust.certificate_file is not None:
        try:
            context.load_cert_chain(trust.certificate_file, trust.key_file, password=_refuse)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise _unreadable("client_certificate", trust.certificate_file, error) from None
    return context


def read_pem(name: str, path: Path | None) -> bytes | None:
    """Return a file's bytes, as gRPC takes them; None for no file.

    Raises:
        InvalidArgumentError: It cannot be read.
    """
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        assert path is not None
        raise _unreadable(name, path, error) from None


def _checked(name: str, secret: str) -> str:
    """Return `secret` if it is valid in a header; the error does not repeat it."""
    if _VISIBLE.fullmatch(secret) is None:
        raise InvalidArgumentError(f"{name} holds spaces, line ends or other characters it cannot")
    return secret


def _refuse() -> str:
    raise ValueError("the key is encrypted with a passphrase, which is not supported")


def _unreadable(name: str, path: Path, error: Exception) -> InvalidArgumentError:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    if reason == "KEY_VALUES_MISMATCH":
        reason = "the key does not match the certificate"
    return InvalidArgumentError(f"{name} '{path}' cannot be used: {reason}")
