"""Servers of models on loopback, with the faults of real ones: files over HTTPS, and a hub."""

import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from tests.certificates import Authority

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"  # noqa: S105  # of a server that lives for a test


@dataclass
class Served:
    """One resource and how its server behaves; the defaults are those of a good server."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next responses end, each without a word."""
    declared: int | None = None
    """Content-Length instead of the size."""
    pause_s: float = 0.0
    """Pause before each 100 bytes."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Write nothing: clients that refuse the certificate leave in the handshake."""


class FileServer:
    """HTTP server of `resources` by path, which may be changed while it runs."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.resources: dict[str, Served] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"files": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._is_tls = certificate is not None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._is_tls else 'http'}://127.0.0.1:{self.port}"

    def ranges(self) -> list[str]:
        """The `Range` of each request so far; empty for none."""
        return [headers.get("range", "") for _, headers in self.requests]

    def served(self, path: str, headers: Mapping[str, str]) -> Served | None:
        """The resource of a request; `headers` in lower case."""
        del headers
        return self.resources.get(path)

    @contextmanager
    def running(self) -> Iterator["FileServer"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    files: FileServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.files.requests.append((self.path, headers))
        served = self.files.served(self.path, headers) or Served(status=404)
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self._answer(served, headers)

    do_HEAD = do_GET  # noqa: N815  # http.server's names

    def _answer(self, served: Served, headers: Mapping[str, str]) -> None:
        status, more, body = _part_of(served, headers)
        self.send_response(status)
        if "transfer-encoding" not in more:
            more["content-length"] = str(len(body) if served.declared is None else served.declared)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_cut = bool(served.cut_after) and len(body) > 1  # not of a look-up of one byte
        if is_cut:
            body = body[: served.cut_after.pop(0)]
        step = 100 if served.pause_s else max(len(body), 1)
        for i in range(0, len(body), step):
            time.sleep(served.pause_s)
            self.wfile.write(body[i : i + step])
        self.close_connection = is_cut or served.declared is not None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
        """Write nothing."""


def _part_of(served: Served, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body that answer a request for a range, or for all."""
    more = {**served.headers, **({"etag": served.etag} if served.etag else {})}
    body = served.body
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
    is_same = headers.get("if-range", served.etag) == served.etag
    if match is None or served.status != 200 or not served.ranges or not is_same:
        return served.status, more, body
    start = int(match[1])
    if start >= len(body):
        return 416, {**more, "content-range": f"bytes */{len(body)}"}, b""
    part = body[start : int(match[2]) + 1 if match[2] else None]
    content_range = f"bytes {start}-{start + len(part) - 1}/{len(body)}"
    return 206, {**more, "content-range": content_range}, part


@dataclass
class HubRepository:
    """A repository of the stand-in for a hub."""

    files: dict[str, bytes]
    commit: str = COMMIT
    token: str = ""
    """Without it the repository does not exist."""
    is_gated: bool = False
    large: tuple[str, ...] = (".bin", ".safetensors", ".onnx")
    """Suffixes of the files that another host sends."""
    branches: tuple[str, ...] = ("main", "v1")


class Hub(FileServer):
    """Stand-in for a Hugging Face hub: the parts of its API that its own client reads.

    `cdn` sends large files, as on the real hub; it must not get the caller's token.
    """

    _SIBLINGS: ClassVar = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
    _TREE: ClassVar = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?")
    _FILE: ClassVar = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

    def __init__(self, cdn: FileServer) -> None:
        super().__init__()
        self.repositories: dict[str, HubRepository] = {}
        self._cdn = cdn

    def served(self, path: str, headers: Mapping[str, str]) -> Served | None:
        parts = urlsplit(path)
        for pattern, answer in (
            (self._TREE, self._tree),
            (self._SIBLINGS, self._siblings),
            (self._FILE, self._file),
        ):
            match = pattern.fullmatch(parts.path)
            if match is None:
                continue
            repository = self.repositories.get(match[1])
            token = headers.get("authorization", "")
            if repository is None or (repository.token and token != f"Bearer {repository.token}"):
                return _refused(401, "RepoNotFound")
            if repository.is_gated and not token:
                return _refused(401, "GatedRepo")
            revision = unquote(match[2] or "main")
            if revision not in {repository.commit, *repository.branches}:
                return _refused(404, "RevisionNotFound")
            return answer(match[1], repository, unquote(match[3]) if match.lastindex == 3 else "")
        return None

    def _siblings(self, name: str, repository: HubRepository, _path: str) -> Served:
        siblings = [
            {"rfilename": path, **_sizes(repository, path, body)}
            for path, body in repository.files.items()
        ]
        document = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings}
        return _json(document)

    def _tree(self, _name: str, repository: HubRepository, _path: str) -> Served:
        return _json(
            [
                {"type": "file", "path": path, "oid": _git(body), "size": len(body)}
                | ({"lfs": _lfs(body)} if path.endswith(repository.large) else {})
                for path, body in repository.files.items()
            ]
        )

    def _file(self, name: str, repository: HubRepository, path: str) -> Served:
        if path not in repository.files:
            return _refused(404, "EntryNotFound")
        body = repository.files[path]
        headers = {"x-repo-commit": repository.commit}
        if not path.endswith(repository.large):
            return Served(body=body, etag=f'"{_git(body)}"', headers=headers)
        location = f"/{name}/{_git(body)}/{path.rpartition('/')[2]}"
        if location not in self._cdn.resources:
            self._cdn.resources[location] = Served(body=body, etag=f'"{_git(body)[:32]}"')
        headers |= {
            "location": f"{self._cdn.url}{location}",
            "x-linked-etag": f'"{hashlib.sha256(body).hexdigest()}"',
            "x-linked-size": str(len(body)),
        }
        return Served(status=302, headers=headers)


def _json(document: object) -> Served:
    body = json.dumps(document).encode()
    return Served(body=body, headers={"content-type": "application/json"})


def _refused(status: int, code: str) -> Served:
    headers = {"x-error-code": code, "x-error-message": f"a test refuses: {code}"}
    return Served(status=status, headers=headers)


def _sizes(repository: HubRepository, path: str, body: bytes) -> dict[str, Any]:
    sizes: dict[str, Any] = {"size": len(body), "blobId": _git(body)}
    return sizes | ({"lfs": _lfs(body)} if path.endswith(repository.large) else {})


def _lfs(body: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(body).hexdigest()
    return {"sha256": sha256, "oid": sha256, "size": len(body), "pointerSize": 134}


def _git(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # noqa: S324  # git's own


@contextmanager
def https_server(folder: Path) -> Iterator[tuple[FileServer, Path]]:
    """Yield a running HTTPS server and the file of its authority."""
    authority = Authority(folder)
    with FileServer(authority.server("server").both).running() as server:
        yield server, authority.ca
