"""Spec part `upstream` of an endpoint, and the addresses that it may have.

The gateway sends the caller's method, path, headers and body to an upstream and returns its
response, so an address is access to the service that listens there. Non-admins may use only literal
addresses and listed names: an unlisted name could resolve to loopback at any later time.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta

from headrace.core.spec.part import FileOnly, SpecPart

_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")
"""Text that `inet_aton`, and so a resolver, may read as an address: `127.1`, `2130706433`,
`0x7f.1`.
"""
_SPECIAL: Final = (
    ("unspecified", ("0.0.0.0/8", "::/128")),
    ("loopback", ("127.0.0.0/8", "::1/128")),
    ("link-local", ("169.254.0.0/16", "fe80::/10")),
    (
        "cloud metadata",
        (
            *("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
            *("fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128"),
        ),
    ),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    (
        "reserved",
        (
            *("100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    ),
)
"""Special-purpose networks by kind, from the registries of IANA (RFC 6890)."""
_REFUSED: Final = tuple((kind, ip_network(text)) for kind, texts in _SPECIAL for text in texts)
_IPV6_UNICAST: Final = (IPv6Network("2000::/3"), IPv6Network("fc00::/7"))
_NAT64: Final = IPv6Network("64:ff9b::/96")
_NO_HOST: Final = "needs a host name, or an address without a zone"
_REMEDY: Final = "an admin can allow it in `security.upstream_hosts`"


def upstream_problem(url: str, allowed_hosts: Sequence[str]) -> str:
    """Return why only an admin may name this upstream, with the remedy; empty if anyone may.

    Args:
        url: As in an endpoint's `upstream.url`.
        allowed_hosts: `security.upstream_hosts`: host names, `*.SUFFIX`, addresses and networks. If
            empty, literal private and global unicast addresses are allowed.
    """
    host = _host_of(url)
    if not host:
        return f"the upstream's `url` {_NO_HOST}"
    address = _address(host)
    if any(_names(pattern, host, address) for pattern in allowed_hosts):
        return ""
    if allowed_hosts:
        return f"upstream host '{host}' is not one of `security.upstream_hosts`; {_REMEDY}"
    if address is None:
        return f"upstream host '{host}' is a name, which may resolve to any address; {_REMEDY}"
    kind = _special_kind(address)
    return f"upstream host '{host}' is a {kind} address; {_REMEDY}" if kind else ""


def check_upstream_url(url: str) -> str:
    """Return `url` if the gateway accepts it; a refused URL would block all route updates.

    Raises:
        ValueError: It has no host or no valid port.
    """
    if not _host_of(url):
        msg = f"{_NO_HOST}, or no port between 1 and 65535"
        raise ValueError(msg)
    return url


def check_upstream_host(pattern: str) -> str:
    """Return `pattern`, in lower case, if it is valid in `security.upstream_hosts`.

    Raises:
        ValueError: It is not a host name, `*.SUFFIX`, address or network.
    """
    text = pattern.lower()
    if not _is_name(text.removeprefix("*.")):
        try:
            ip_network(text)
        except ValueError as error:
            msg = "is neither a host name, *.SUFFIX, an address nor a network such as 10.0.0.0/8"
            raise ValueError(msg) from error
    return text


def _host_of(url: str) -> str:
    """Return the host of a URL as the gateway reads it, without a final dot; empty without one."""
    try:
        parts = urlsplit(url)
        if parts.username is not None or parts.port == 0:
            return ""
        host = parts.hostname or ""
    except ValueError:
        return ""
    if _address(host) is None:
        host = host.removesuffix(".")
        return host if _is_name(host) else ""
    return host


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    # A zone names a link of this host, so no list of addresses applies to it.
    return None if isinstance(address, IPv6Address) and address.scope_id else address


def _is_name(host: str) -> bool:
    return _NAME.fullmatch(host) is not None and _NUMBER.fullmatch(host) is None


def _names(pattern: str, host: str, address: IPv4Address | IPv6Address | None) -> bool:
    """Whether a list entry matches a host; an address matches only itself or its network."""
    if address is None:
        return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
    if _is_name(pattern.removeprefix("*.")):
        return False
    network = ip_network(pattern)
    return address.version == network.version and address in network


def _special_kind(address: IPv4Address | IPv6Address) -> str:
    """Return the kind of a special-purpose address; empty if it is private or global unicast."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return _special_kind(IPv4Address(int(address) & 0xFFFF_FFFF))
    for kind, network in _REFUSED:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, IPv4Address) or any(address in network for network in _IPV6_UNICAST):
        return ""
    return "reserved"


MAX_FALLBACKS: Final = 3
"""Longest chain of endpoints that answer in another's place."""
URL_PATTERN: Final = r'^(https?|grpcs?)://[!"$-.0->A-~]+(/[!"$->@-~]*)?$'


class UpstreamProtocol(StrEnum):
    """Protocol of an external server."""

    V2 = "v2"
    """The Open Inference Protocol over HTTP: Triton, KServe, MLServer, Headrace."""
    GRPC = "grpc"
    """The same over gRPC."""
    V1 = "v1"
    """TensorFlow Serving's REST API."""
    TORCHSERVE = "torchserve"
    OPENAI = "openai"
    """`/v1/chat/completions` and its siblings."""
    HTTP = "http"
    """Anything else over HTTP."""


class UpstreamTlsSpec(SpecPart, frozen=True, kw_only=True, omit_defaults=True):
    """Verification of an external server, and client certificate for it (mutual TLS)."""

    ca_file: Annotated[str, FileOnly(null=True, min_length=1, max_length=4096)] = ""
    """Certificate authorities of the server, PEM; null for the machine's."""
    certificate_file: Annotated[str, FileOnly(null=True, min_length=1, max_length=4096)] = ""
    """Client certificate, PEM."""
    key_file: Annotated[str, FileOnly(null=True, min_length=1, max_length=4096)] = ""
    """Private key of the client certificate, PEM."""
    server_name: Annotated[str, FileOnly(null=True, max_length=255, pattern=r"^[!-~]+$")] = ""
    """Name that the server's certificate must have; null for the URL's host."""

    def __post_init__(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            msg = "'certificate_file' and 'key_file' must be set together"
            raise ValueError(msg)


class UpstreamSpec(SpecPart, frozen=True, kw_only=True):
    """An external server that answers instead of a model."""

    url: Annotated[
        str,
        check_upstream_url,
        Meta(pattern=URL_PATTERN, max_length=2048),
    ]
    """http://host:port, https://… or grpc://…; its path is a prefix of the request's."""
    protocol: UpstreamProtocol = UpstreamProtocol.V2
    """v2, grpc, v1, torchserve, openai or http."""
    model: Annotated[str, Meta(max_length=256, pattern=r"^[A-Za-z0-9_./-]*$")] = ""
    """Name of the model on that server; empty for the endpoint's name."""
    health_path: Annotated[str, Meta(max_length=1024, pattern=r"^(/[!-~]*)?$")] | None = ""
    """Path of the health check; empty for the protocol's default, null for none."""
    health_interval_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 2.0
    """Interval of the health check. Unit: seconds."""
    max_requests: Annotated[int, Meta(ge=1, le=1000000)] = 1024
    """Concurrent requests; more get 503. Unit: requests."""
    api_key_file: Annotated[str, FileOnly(null=True, min_length=1, max_length=4096)] = ""
    """File with the server's own API key, sent as `Authorization: Bearer` instead of the caller's;
    null for none.
    """
    tls: UpstreamTlsSpec | None = None
    """Verification of an https or grpcs server. See UpstreamTlsSpec."""
