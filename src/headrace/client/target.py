"""Which server a URL means."""

import ipaddress
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from headrace.core import InvalidArgumentError

_TLS: Final = {"http": False, "https": True, "grpc": False, "grpcs": True}
_FORMS: Final = "http://HOST:PORT, https://…, grpc://HOST:PORT, grpcs://… or unix:/PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server's address, taken apart.

    `base_url` is what HTTP paths are appended to; `uds` the Unix socket it is reached by, if any.
    `authority` is `host:port`, as gRPC wants it.
    """

    protocol: Literal["http", "grpc"]
    tls: bool
    authority: str
    base_url: str
    uds: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, where nobody listens on the way."""
        host = urlsplit(f"//{self.authority}").hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def parse_target(url: str) -> Target:
    """The server that `url` means; without a scheme it is HTTP.

    Raises:
        InvalidArgumentError: It is no such URL; the message lists the forms that are.
    """
    if url.startswith("unix:"):
        return _unix(url)
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url, str(error)) from None
    if parts.scheme not in _TLS:
        raise _refused(url, f"the scheme '{parts.scheme}' is unknown")
    if not host:
        raise _refused(url, "there is no host")
    if "@" in parts.netloc:
        # Otherwise they would end in logs and error texts.
        raise _refused("…", "credentials belong in `headers`, not in the URL")
    return _tcp(url, parts.scheme, host, port, parts.path.rstrip("/"))


def _tcp(url: str, scheme: str, host: str, port: int | None, path: str) -> Target:
    tls = _TLS[scheme]
    bracketed = f"[{host}]" if ":" in host else host
    if scheme.startswith("grpc"):
        if port is None or path:
            raise _refused(url, "gRPC needs a port and takes no path")
        return Target(protocol="grpc", tls=tls, authority=f"{bracketed}:{port}", base_url="")
    authority = bracketed if port is None else f"{bracketed}:{port}"
    return Target(
        protocol="http", tls=tls, authority=authority, base_url=f"{scheme}://{authority}{path}"
    )


def _unix(url: str) -> Target:
    path = url.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/"):
        raise _refused(url, "a socket's path starts with '/'")
    return Target(
        protocol="http", tls=False, authority="localhost", base_url="http://localhost", uds=path
    )


def _refused(url: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"'{url}' is no server address: {why}; use {_FORMS}")
