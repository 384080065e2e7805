"""How is a REST server asked before a deadline? Kept connections of the standard library's client.

A body that comes in drops, or never ends, ends at the deadline too.
"""

import http.client
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.core import DeadlineExceededError, FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    import socket

MAX_ANSWER_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 16
_MAX_IDLE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said."""

    status: int
    body: bytes


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A question on its way."""

    connection: http.client.HTTPConnection
    is_kept: bool
    body: bytes


class RestConnections:
    """Connections to one server, made when they are needed. Safe to use from several threads.

    Args:
        tls: None speaks plain HTTP.
    """

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, headers: dict[str, str]
    ) -> None:
        self.name = f"{host}:{port}"
        self._host = host
        self._port = port
        self._tls = tls
        self._headers = headers
        self._idle: list[http.client.HTTPConnection] = []

    def post(self, questions: Sequence[tuple[str, bytes]], *, deadline: float) -> list[Answer]:
        """The answer to each path and body; all are asked before the first answer is read.

        Raises:
            DeadlineExceededError: One did not come in time.
            UnavailableError: The server cannot be reached, or broke off.
            FailedPreconditionError: Its certificate is not trusted, or an answer is too large.
        """
        asked: list[_Asked] = []
        answers: list[Answer] = []
        try:
            for path, body in questions:
                asked.append(self._ask(path, body, deadline))
            for i, (path, _) in enumerate(questions):
                answers.append(self._answer(asked[i], path, deadline))
        except ssl.SSLCertVerificationError as error:
            message = (
                f"the certificate of {self.name} is not trusted: {error.verify_message}; name its "
                "authority with ?ca_file=PATH"
            )
            raise FailedPreconditionError(message) from error
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{self.name} did not answer before the deadline"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"cannot read features of {self.name}: {reason}") from error
        finally:
            # Of those that were not read to the end, the next caller would get the answers.
            for one in asked[len(answers) :]:
                one.connection.close()
        return answers

    def close(self) -> None:
        """Close what is kept; twice is once."""
        while self._idle:
            self._idle.pop().close()

    def _ask(self, path: str, body: bytes, deadline: float) -> _Asked:
        try:
            kept = self._idle.pop()
        except IndexError:
            return self._send(self._new(), path, body, deadline, is_kept=False)
        try:
            return self._send(kept, path, body, deadline, is_kept=True)
        except (ConnectionError, http.client.HTTPException):
            kept.close()  # by the server, while nothing was asked
            return self._send(self._new(), path, body, deadline, is_kept=False)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        deadline: float,
        *,
        is_kept: bool,
    ) -> _Asked:
        try:
            _bound(connection, deadline)
            connection.request("POST", path, body, self._headers)
        except BaseException:
            connection.close()
            raise
        return _Asked(connection=connection, is_kept=is_kept, body=body)

    def _answer(self, asked: _Asked, path: str, deadline: float) -> Answer:
        try:
            response = _response(asked.connection, deadline)
        except ConnectionError:
            if not asked.is_kept:
                raise
            asked.connection.close()
            again = self._send(self._new(), path, asked.body, deadline, is_kept=False)
            asked.connection = again.connection
            response = _response(asked.connection, deadline)
        parts: list[bytes] = []
        size = 0
        while part := _part(response, asked.connection, deadline):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                message = f"{self.name} answers with more than {MAX_ANSWER_BYTES} bytes"
                raise FailedPreconditionError(message)
        response.close()  # read to its end, so that the connection can be asked again
        if response.will_close or len(self._idle) >= _MAX_IDLE:
            asked.connection.close()
        else:
            self._idle.append(asked.connection)
        return Answer(status=response.status, body=b"".join(parts))

    def _new(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls)


def _bound(connection: http.client.HTTPConnection, deadline: float) -> None:
    """Let whatever the connection does next end at the deadline."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    connection.timeout = remaining_s
    opened: socket.socket | None = connection.sock
    if opened is not None:
        opened.settimeout(remaining_s)


def _response(connection: http.client.HTTPConnection, deadline: float) -> http.client.HTTPResponse:
    _bound(connection, deadline)
    return connection.getresponse()


def _part(
    response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float
) -> bytes:
    """What has come of the answer; nothing at its end."""
    _bound(connection, deadline)
    part = response.read1(_READ_BYTES)
    if not part and response.length:
        raise ConnectionError(f"it broke off {response.length} bytes before the end of its answer")
    return part
