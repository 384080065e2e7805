"""Talks to a running control plane over its management API."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from headrace.core import Code, DeadlineExceededError, HeadraceError, UnavailableError
from headrace.protocol import error_from_grpc, error_from_http

Document = dict[str, Any]

TIMEOUT_S: Final = 30.0


class Management:
    """The management API at `url`; every call opens a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    def get(self, path: str, **query: object) -> Document:
        """What is at `path`."""
        return self._call("GET", path, query)

    def post(
        self, path: str, document: object = None, *, timeout_s: float = TIMEOUT_S, **query: object
    ) -> Document:
        """The answer to `document`."""
        return self._call("POST", path, query, document, timeout_s)

    def lines(self, path: str, **query: object) -> Iterator[str]:
        """Lines of text as they come; without end if the server follows something."""
        # Without a timeout: a log that is followed may be silent for days.
        with self._opened("GET", path, query, None, None) as response:
            for line in response:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def _call(
        self,
        method: str,
        path: str,
        query: Document,
        document: object = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Document:
        with self._opened(method, path, query, document, timeout_s) as response:
            body = response.read()
        try:
            answer = json.loads(body or b"{}")
        except ValueError as error:
            raise self._lost(error) from error
        return answer if isinstance(answer, dict) else {"items": answer}

    @contextmanager
    def _opened(
        self, method: str, path: str, query: Document, document: object, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        given = {key: value for key, value in query.items() if value not in (None, "")}
        full = f"{path}?{urlencode(given)}" if given else path
        body = None if document is None else json.dumps(document).encode()
        headers = {"connection": "close", "content-type": "application/json"}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, full, body, headers)
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                raise error_from_problem(response.status, response.read())
            yield response
        except TimeoutError as error:
            raise self._late(timeout_s) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            connection.close()

    def _late(self, timeout_s: float | None) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the control plane at {self.url} did not answer within {timeout_s:g} s"
        )

    def _lost(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"the control plane at {self.url} does not answer ({error}); "
            "`headrace up` starts it again",
            retry_after_s=None,
        )


def error_from_problem(status: int, body: bytes) -> HeadraceError:
    """The error that a problem document (RFC 9457) tells, with every mistake on its own line."""
    try:
        problem = json.loads(body)
        code = Code(problem["code"])
    except (ValueError, KeyError, TypeError):
        return error_from_http(status, body)
    message = str(problem.get("detail") or problem.get("title") or code)
    mistakes = [
        f"  {mistake.get('place') or 'spec'}: {mistake.get('message', '')}"
        for mistake in problem.get("errors") or ()
    ]
    if mistakes and "\n" not in message:
        message = "\n".join([message, *mistakes])
    return error_from_grpc(code, message)
