"""A stand-in for a schema registry: the HTTP API that Confluent documents, kept in memory.

No registry can be installed from PyPI: Confluent's is a Java service, Karapace is not published
there and keeps its schemas in Kafka. This answers with the paths, status codes and error codes of
https://docs.confluent.io/platform/current/schema-registry/develop/api.html. It checks neither
schemas nor compatibility: `refuses` says what it does not take.
"""

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

Reply = tuple[int, bytes]


@dataclass(kw_only=True)
class Registry:
    """Schemas by id, and the ids of each subject's versions.

    `descriptors`: what is answered for `format=serialized`, by text; a registry that has none
    answers the text, or with 422 if it `knows_no_format`. `instead`: answers in place of
    everything. `authorization`: what has to be sent.
    """

    schemas: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    descriptors: dict[str, bytes] = field(default_factory=dict)
    knows_no_format: bool = False
    refuses: Callable[[dict[str, Any]], bool] = lambda _: False
    instead: Callable[[], Reply | None] = lambda: None
    authorization: str = ""
    asked: list[str] = field(default_factory=list)

    def add(self, subject: str, schema: object, **more: object) -> int:
        """The id of a schema that is registered from now on."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        body = {"schema": text, **more}
        status, answer = self.reply("POST", f"/subjects/{subject}/versions", "", body, "")
        assert status == 200, answer
        number: int = json.loads(answer)["id"]
        return number

    def answer(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The status and body for a request."""
        parts = urlsplit(url)
        self.asked.append(f"{method} {parts.path}")
        instead = self.instead()
        if instead is not None:
            return instead
        if self.authorization and headers.get("authorization") != self.authorization:
            return _problem(401, 40101, "Unauthorized")
        wanted = parse_qs(parts.query).get("format", [""])[0]
        if wanted and self.knows_no_format:
            return _problem(422, 422, f"format: {wanted}")
        question = json.loads(body) if body else {}
        return self.reply(method, parts.path, wanted, question, headers.get("content-type", ""))

    def reply(
        self, method: str, path: str, wanted: str, question: dict[str, Any], content_type: str
    ) -> Reply:
        if method == "POST" and content_type not in ("", "application/vnd.schemaregistry.v1+json"):
            return _problem(415, 415, "Unsupported media type")
        match (method, *(unquote(part) for part in path.strip("/").split("/"))):
            case ("GET", "schemas", "ids", number):
                return self._by_id(int(number), wanted)
            case ("GET", "subjects", subject, "versions", version):
                return self._version(subject, version, wanted)
            case ("POST", "subjects", subject, "versions"):
                return self._register(subject, question)
            case ("POST", "subjects", subject):
                return self._find(subject, question)
        return 404, b"<html>Not found</html>"

    def transport(self) -> httpx.MockTransport:
        """The same without a network."""

        def handle(request: httpx.Request) -> httpx.Response:
            status, body = self.answer(
                request.method, str(request.url), request.headers, request.content
            )
            return httpx.Response(status, content=body)

        return httpx.MockTransport(handle)

    def _display(self, number: int, wanted: str) -> dict[str, Any]:
        shown = dict(self.schemas[number - 1])
        descriptor = self.descriptors.get(shown["schema"])
        if wanted == "serialized" and descriptor is not None:
            shown["schema"] = base64.b64encode(descriptor).decode()
        return shown

    def _by_id(self, number: int, wanted: str) -> Reply:
        if not 0 < number <= len(self.schemas):
            return _problem(404, 40403, f"Schema {number} not found")
        return _json(self._display(number, wanted))

    def _version(self, subject: str, version: str, wanted: str) -> Reply:
        numbers = self.subjects.get(subject)
        if not numbers:
            return _problem(404, 40401, f"Subject '{subject}' not found.")
        place = len(numbers) if version == "latest" else int(version)
        if not 0 < place <= len(numbers):
            return _problem(404, 40402, f"Version {version} not found.")
        number = numbers[place - 1]
        return _json(
            {"subject": subject, "version": place, "id": number} | self._display(number, wanted)
        )

    def _register(self, subject: str, question: dict[str, Any]) -> Reply:
        if self.refuses(question):
            return _problem(409, 409, "Schema being registered is incompatible")
        known = {key: value for key, value in question.items() if value not in ([], "AVRO")}
        if known not in self.schemas:
            self.schemas.append(known)
        number = self.schemas.index(known) + 1
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return _json({"id": number})

    def _find(self, subject: str, question: dict[str, Any]) -> Reply:
        if subject not in self.subjects:
            return _problem(404, 40401, f"Subject '{subject}' not found.")
        known = {key: value for key, value in question.items() if value not in ([], "AVRO")}
        for version, number in enumerate(self.subjects[subject], start=1):
            if self.schemas[number - 1] == known:
                return _json({"subject": subject, "version": version, "id": number} | known)
        return _problem(404, 40403, "Schema not found")


@contextmanager
def served(registry: Registry, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The registry over real HTTP on loopback; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            size = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = registry.answer(self.command, self.path, headers, self.rfile.read(size))
            self.send_response(status)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _json(answer: object) -> Reply:
    return 200, json.dumps(answer).encode()


def _problem(status: int, code: int, message: str) -> Reply:
    return status, json.dumps({"error_code": code, "message": message}).encode()
