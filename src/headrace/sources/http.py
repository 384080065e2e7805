"""HTTPS client of model sources, and the source of a single file.

Redirects stay on https, and credentials go only to the origin that they belong to. Link-local
addresses, where clouds publish the credentials of a machine, are never contacted; loopback only if
the URI itself names it.
"""

import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from headrace.core.model_uri import ModelUri
from headrace.core.names import is_loopback_url
from headrace.sources.listing import Listing, RemoteBody, RemoteFile, Unpack

MAX_REDIRECTS: Final = 10
MAX_DOCUMENT_BYTES: Final = 16 << 20
"""Largest JSON document of a hub or a registry."""
_CONNECT_S: Final = 10.0
_READ_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 18
_TRANSIENT: Final = frozenset({408, 425, 429})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TOKEN_METADATA: Final = frozenset({"fd00:ec2::254", "100.100.100.200", "168.63.129.16"})
"""Addresses of metadata services that are not link-local: of Amazon, Alibaba and Azure."""


class SourceClient:
    """HTTP client of one source.

    Args:
        allow_loopback_http: Whether plain HTTP to this machine is allowed, as for registries in
            tests.
        plain_http_to: URL of a server that the user's environment names, which may use plain HTTP.
        transport: Replaces the network.
    """

    def __init__(
        self,
        *,
        allow_loopback_http: bool = False,
        plain_http_to: str = "",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._allow_loopback_http = allow_loopback_http
        self._plain_http_to = plain_http_to
        self._authorization: dict[str, str] = {}
        self._client = httpx.Client(
            transport=transport,
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
            headers={"user-agent": "headrace", "accept-encoding": "identity"},
            limits=httpx.Limits(max_keepalive_connections=0),  # few requests, and none left open
        )

    def authorize(self, url: str, value: str) -> None:
        """Send this `Authorization` header to the origin of `url`, and to no other."""
        self._authorization[_origin(url)] = value

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """Yield the response, after redirects, whatever its status; its body is not read yet.

        Raises:
            UnavailableError: The server does not answer.
            InvalidArgumentError: A URL must not be contacted.
            FailedPreconditionError: There are too many redirects.
        """
        first = urlsplit(url).hostname
        begins_here = is_loopback_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            may_be_loopback = begins_here or urlsplit(url).hostname == first
            self._check(url, may_be_loopback=may_be_loopback)
            sent = dict(headers or {})
            if value := self._authorization.get(_origin(url)):
                sent["authorization"] = value
            with _http_errors(url), self._client.stream("GET", url, headers=sent) as response:
                _check_peer(response, url, may_be_loopback=may_be_loopback)
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    yield response
                    return
                url = urljoin(url, response.headers["location"])
        raise FailedPreconditionError(f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects")

    def document(self, url: str, headers: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401  # JSON
        """Return the JSON document at `url`.

        Raises:
            HeadraceError: As by `get` and `check_status`, or it is not JSON.
        """
        with self.get(url, headers) as response:
            check_status(response, url)
            return json_of(read_limited(response, url), url)

    @contextmanager
    def read(self, file: RemoteFile, url: str, start: int) -> Iterator[RemoteBody]:
        """Open `url` from byte `start`; from 0 if the server ignores ranges.

        Raises:
            HeadraceError: As by `get` and `check_status`.
            FailedPreconditionError: The content has changed since the listing.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        if start and file.etag:
            headers["if-range"] = file.etag
        with self.get(url, headers) as response:
            check_status(response, url)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FailedPreconditionError(f"{shown_url(url)} is sent compressed")
            etag = strong_etag(response)
            if file.etag and etag and etag != file.etag:
                raise FailedPreconditionError(
                    f"{shown_url(url)} changed during the download; run the command again"
                )
            offset, size = 0, _content_length(response)
            if response.status_code == httpx.codes.PARTIAL_CONTENT:
                offset, size = _content_range(response, url)
                if offset != start:
                    raise UnavailableError(f"{shown_url(url)}: the server sent another range")
            yield RemoteBody(
                offset=offset,
                chunks=response.iter_raw(),
                size_bytes=size,
            )

    def _check(self, url: str, *, may_be_loopback: bool) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_plain = parts.scheme == "http" and self._allow_loopback_http and is_loopback_url(url)
        is_plain = is_plain and may_be_loopback
        if self._plain_http_to and parts.scheme == "http":
            is_plain = is_plain or _origin(url) == _origin(self._plain_http_to)
        if parts.scheme != "https" and not is_plain:
            raise InvalidArgumentError(f"{shown_url(url)}: only https is used for models")
        if not host or "@" in parts.netloc:
            raise InvalidArgumentError(f"{shown_url(url)} is not a URL of a model")
        if _is_proxied(parts.scheme, host):
            return  # the proxy resolves the name, and decides
        try:
            addresses = {
                str(entry[4][0])
                for entry in socket.getaddrinfo(host, parts.port, type=socket.SOCK_STREAM)
            }
        except (OSError, ValueError, UnicodeError) as error:
            raise UnavailableError(f"cannot resolve the name {host[:200]!r}: {error}") from None
        for address in addresses:
            _check_address(address, url, may_be_loopback=may_be_loopback)


class HttpsSource:
    """One file, or one tar archive, of a web server."""

    def __init__(self, uri: ModelUri) -> None:
        self._uri = uri
        query = f"?{uri.query}" if uri.query else ""
        self._url = f"https://{uri.host}/{uri.path}{query}"
        self._client = SourceClient()

    def resolve(self) -> Listing:
        """Return the file with its size and entity tag.

        The server is asked for one byte, since links that are signed for GET refuse HEAD.
        """
        with self._client.get(self._url, {"range": "bytes=0-0"}) as response:
            size = _content_length(response)
            if response.status_code == httpx.codes.PARTIAL_CONTENT:
                size = _content_range(response, self._url)[1]
            elif response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ArtifactCorruptError(f"{self._uri.location} is empty")
            check_status(response, self._url)
            etag = strong_etag(response)
        file = RemoteFile(
            path="",
            locator=self._url,
            size_bytes=size,
            etag=etag,
            unpack=unpack_of(self._uri.filename),
        )
        return Listing(
            name=self._uri.filename,
            files=(file,),
            revision=f"etag {etag}, {size} bytes" if etag else "",
        )

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[RemoteBody]:
        """Open the file from byte `start`; without an entity tag, from its start."""
        with self._client.read(file, file.locator, start if file.etag else 0) as body:
            yield body


def unpack_of(name: str) -> Unpack:
    """Return what becomes of a file of this name: tar archives are unpacked."""
    return Unpack.TAR if name.lower().endswith((".tar", ".tar.gz", ".tgz")) else Unpack.NO


def check_status(response: httpx.Response, url: str) -> None:
    """Raise the error of a response that is not a success.

    Raises:
        NotFoundError: Nothing has this URL.
        PermissionDeniedError: Credentials are missing, or not enough.
        UnavailableError: The server may succeed later.
        FailedPreconditionError: It refuses otherwise.
    """
    status = response.status_code
    if status in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
        return
    text = f"{shown_url(url)} answers {status} {response.reason_phrase}".rstrip()
    if status in _TRANSIENT or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        error = UnavailableError(text)
        after = response.headers.get("retry-after", "")
        error.retry_after_s = float(after) if after.isdecimal() else None
        raise error
    if status in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
        raise NotFoundError(text)
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise PermissionDeniedError(text)
    raise FailedPreconditionError(text)


def read_limited(response: httpx.Response, url: str) -> bytes:
    """Return the body of a small document.

    Raises:
        ArtifactCorruptError: It is larger than `MAX_DOCUMENT_BYTES`.
    """
    parts, size = [], 0
    for part in response.iter_bytes(_CHUNK_BYTES):
        size += len(part)
        if size > MAX_DOCUMENT_BYTES:
            message = f"{shown_url(url)} has more than {MAX_DOCUMENT_BYTES} bytes"
            raise ArtifactCorruptError(message)
        parts.append(part)
    return b"".join(parts)


def json_of(data: bytes, url: str) -> Any:  # noqa: ANN401  # JSON
    """Return a decoded JSON object.

    Raises:
        ArtifactCorruptError: The data is not one.
    """
    import msgspec  # noqa: PLC0415  # only hubs and registries

    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ArtifactCorruptError(f"{shown_url(url)} is not a JSON object") from None


def shown_url(url: str) -> str:
    """Return a URL for messages, without its query, which may grant access."""
    return url.partition("?")[0].partition("#")[0][:300]


def strong_etag(response: httpx.Response) -> str:
    """Return the strong entity tag of a response; empty without one."""
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') and etag.isprintable() and len(etag) <= 256 else ""  # noqa: PLR2004  # a sane tag


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


def _content_length(response: httpx.Response) -> int | None:
    length = response.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _content_range(response: httpx.Response, url: str) -> tuple[int, int | None]:
    """Return the first byte of a partial response, and the total size."""
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None:
        raise UnavailableError(f"{shown_url(url)}: the server sends no valid Content-Range")
    return int(match[1]), None if match[3] == "*" else int(match[3])


def _check_address(address: str, url: str, *, may_be_loopback: bool) -> None:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    is_internal = ip.is_link_local or ip.is_unspecified or ip.is_multicast
    if is_internal or str(ip) in _TOKEN_METADATA:
        raise InvalidArgumentError(f"{shown_url(url)}: models are not fetched from {ip}")
    if ip.is_loopback and not may_be_loopback:
        message = f"{shown_url(url)}: another host redirects to this machine, which is refused"
        raise InvalidArgumentError(message)


def _check_peer(response: httpx.Response, url: str, *, may_be_loopback: bool) -> None:
    """Check the address that was contacted: a name may have resolved differently since."""
    parts = urlsplit(url)
    stream = response.extensions.get("network_stream")
    if stream is None or _is_proxied(parts.scheme, parts.hostname or ""):
        return
    address = stream.get_extra_info("server_addr")
    if address:
        _check_address(str(address[0]), url, may_be_loopback=may_be_loopback)


def _is_proxied(scheme: str, host: str) -> bool:
    proxies = getproxies()
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host)


@contextmanager
def _http_errors(url: str) -> Iterator[None]:
    try:
        yield
    except HeadraceError:
        raise
    except (httpx.HTTPError, httpx.StreamError) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"{shown_url(url)}: {reason[:300]}") from None
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidArgumentError(f"{shown_url(url)} is not a URL: {error}") from None
