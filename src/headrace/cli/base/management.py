"""Client of a control plane's management API."""

import http.client
import json
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from headrace.core import (
    Code,
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    UnauthenticatedError,
    UnavailableError,
)

Document = dict[str, Any]
Sent = Callable[[int], None]
"""Called with the number of bytes sent so far."""
TIMEOUT_S: Final = 30.0
UPLOAD_TIMEOUT_S: Final = 600.0
"""Timeout for the control plane's check of an uploaded model."""
SILENCE_S: Final = 60.0
"""Seconds without an event or heartbeat after which an event stream counts as broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """Event with its id, its kind, and its data as text."""

    id: str
    kind: str
    data: str


def read_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Yield the events in `lines`; comments, such as heartbeats, are skipped.

    An incomplete event is dropped: only an empty line ends an event.
    """
    last_id, kind, data = "", "", list[str]()
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            if data:
                yield ServerEvent(id=last_id, kind=kind or "message", data="\n".join(data))
            kind, data = "", []
            continue
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                last_id = value
            case "event":
                kind = value
            case "data":
                data.append(value)
            case _:
                pass  # a comment, or a field of a later version


class Management:
    """Client of the management API at `url`; each call opens a new connection.

    Args:
        token: Credentials; empty for a server without authentication.
        ca_file: CA of its certificate; empty for the system's CA certificates.
        is_remote: Whether the control plane runs on another host, or is not managed here.
        pinned: File of its exact certificate, whatever names that contains; empty
            checks names and authorities.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        ca_file: str = "",
        pinned: str = "",
        is_remote: bool = False,
    ) -> None:
        self._pinned = pinned
        self.url = url
        self.is_remote = is_remote
        self._token = token.encode("ascii", "replace").decode()
        self._ca_file = ca_file
        parts = urlsplit(url)
        self._is_secure = parts.scheme == "https"
        self.host, self._port = parts.hostname or "127.0.0.1", parts.port
        self._prefix = parts.path.rstrip("/")

    def get(self, path: str, **query: object) -> Document:
        """Return the document at `path`."""
        return self._call("GET", path, query)

    def post(
        self, path: str, document: object = None, *, timeout_s: float = TIMEOUT_S, **query: object
    ) -> Document:
        """Send a POST request with `document`; return the response."""
        return self._call("POST", path, query, document, timeout_s=timeout_s)

    def put(
        self, path: str, document: object, *, generation: int | None = None, **query: object
    ) -> Document:
        """Send a PUT request with `document` to `path`; return the response.

        Args:
            generation: The one that was read; the server refuses if there is another by now.
        """
        match = {} if generation is None else {"if-match": f'"{generation}"'}
        return self._call("PUT", path, query, document, headers=match)

    def patch(
        self, path: str, document: object, *, timeout_s: float = TIMEOUT_S, **query: object
    ) -> Document:
        """Send a PATCH request with `document`; return the response."""
        return self._call("PATCH", path, query, document, timeout_s=timeout_s)

    def delete(self, path: str, **query: object) -> Document:
        """Send a DELETE request to `path`; return the response."""
        return self._call("DELETE", path, query)

    def upload(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        length_bytes: int,
        sent: Sent | None = None,
        **query: object,
    ) -> Document:
        """Send a body as it is read, `length_bytes` in all; return the response.

        Args:
            sent: Called as the body goes out.
        """

        def counted() -> Iterator[bytes]:
            done = 0
            for chunk in chunks:
                yield chunk
                done += len(chunk)
                if sent is not None:
                    sent(done)

        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(length_bytes),
        }
        return self._call(
            "POST", path, query, counted(), headers=headers, timeout_s=UPLOAD_TIMEOUT_S
        )

    def lines(self, path: str, **query: object) -> Iterator[str]:
        """Yield lines of text as they arrive; endless if the server follows a source."""
        # Without a timeout: a followed log may have no lines for days.
        with self._opened("GET", path, query, headers={}, timeout_s=None) as response:
            for line in response:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def events(self, path: str, *, last_id: str = "", **query: object) -> Iterator[ServerEvent]:
        """Yield server-sent events until the server ends the stream.

        Args:
            last_id: Continue after this event.
        """
        headers = {"accept": "text/event-stream"}
        if last_id:
            headers["last-event-id"] = last_id
        with self._opened("GET", path, query, headers=headers, timeout_s=SILENCE_S) as response:
            yield from read_events(line.decode("utf-8", "replace") for line in response)

    def _call(
        self,
        method: str,
        path: str,
        query: Document,
        document: object = None,
        *,
        timeout_s: float = TIMEOUT_S,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Document:
        body: object = document
        if document is not None and not isinstance(document, Iterator):
            body = json.dumps(document).encode()
        headers = {"content-type": "application/json", **headers}
        with self._opened(
            method, path, query, headers=headers, timeout_s=timeout_s, body=body
        ) as response:
            data = response.read()
            try:
                answer = json.loads(data or b"{}")
            except ValueError as error:
                raise self._connection_error(error) from error
        return answer if isinstance(answer, dict) else {"items": answer}

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        query: Document,
        *,
        headers: Mapping[str, str],
        timeout_s: float | None,
        body: Any = None,  # noqa: ANN401  # bytes, or an iterator of them
    ) -> Iterator[http.client.HTTPResponse]:
        parameters = {key: value for key, value in query.items() if value not in (None, "")}
        full = f"{self._prefix}{path}"
        full = f"{full}?{urlencode(parameters, doseq=True)}" if parameters else full
        authorization = {"authorization": f"Bearer {self._token}"} if self._token else {}
        if self._is_secure:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host,
                self._port,
                timeout=timeout_s,
                context=_tls_context(self._ca_file, self._pinned),
            )
        else:
            connection = http.client.HTTPConnection(self.host, self._port, timeout=timeout_s)
        try:
            try:
                all_headers = {"connection": "close", **headers, **authorization}
                connection.request(method, full, body, all_headers)
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses a large body responds before it has received it, and closes.
                if connection.sock is None:
                    raise
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                error = error_from_problem(response.status, response.read())
                raise (
                    self._authentication_hint(error)
                    if error.code is Code.UNAUTHENTICATED
                    else error
                )
            if response.status >= http.client.MULTIPLE_CHOICES:
                location = response.headers.get("location", "another address")
                msg = f"the control plane at {self.url} redirects to {location}; use that URL"
                raise UnavailableError(msg, retry_after_s=None)
            yield response
        except TimeoutError as error:
            msg = f"the control plane at {self.url} did not answer within {timeout_s:g} s"
            raise DeadlineExceededError(msg) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._connection_error(error) from error
        finally:
            connection.close()

    def _authentication_hint(self, error: HeadraceError) -> UnauthenticatedError:
        """Return the error with the remedy for a missing or invalid token."""
        reason = str(error).partition(";")[0]
        if self.is_remote:
            way = (
                "pass a token with --token-file FILE or HEADRACE_TOKEN, or store it with `headrace "
                "context add NAME URL --token-file FILE`; an admin creates tokens with `headrace "
                "tokens create`"
            )
        else:
            way = (
                "commands read the home's token from its file admin-token, which "
                "only the owner can "
                "read, unless HEADRACE_TOKEN or --token is set; to replace it, "
                "delete that file and "
                "restart the system"
            )
        return UnauthenticatedError(f"the control plane at {self.url} refuses: {reason}; {way}")

    def _connection_error(self, error: Exception) -> UnavailableError:
        if isinstance(error, ssl.SSLCertVerificationError):
            way_out = "pass its CA certificates with --ca-file"
        elif self.is_remote:
            way_out = "check the address and whether it is reachable from this machine"
        else:
            way_out = "`headrace up` restarts it"
        return UnavailableError(
            f"the control plane at {self.url} does not answer ({error}); {way_out}",
            retry_after_s=None,
        )


def _tls_context(ca_file: str, pinned: str) -> ssl.SSLContext:
    """Return the TLS context that verifies the control plane's certificate.

    Raises:
        FailedPreconditionError: The file of authorities cannot be used.
    """
    named = pinned or ca_file
    if not named:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = not pinned
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=named)
    except OSError as error:  # also for invalid certificates
        msg = f"cannot use {named} to check the control plane's certificate: {error}"
        raise FailedPreconditionError(msg) from error
    return context


def error_from_problem(status: int, body: bytes) -> HeadraceError:
    """Return the error of a problem document (RFC 9457), with each mistake on its own line."""
    from headrace.protocol import error_from_grpc, error_from_http  # noqa: PLC0415  # only here

    try:
        problem = json.loads(body)
        code = Code(problem["code"])
    except (ValueError, KeyError, TypeError):
        return error_from_http(status, body)
    message = str(problem.get("detail") or problem.get("title") or code)
    mistakes = [
        f"  {mistake.get('place') or 'spec'}: {mistake.get('message', '')}"
        for mistake in problem.get("errors") or ()
        if mistake.get("message", "") not in message
    ]
    if mistakes and "\n" not in message:
        message = "\n".join([message, *mistakes])
    return error_from_grpc(code, message)
