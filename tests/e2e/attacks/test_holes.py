"""Single holes of the gateway, the management API and the home, as they were once open."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from headrace.core import Datatype, HeadraceError, Inspected, ModelSignature, TensorSpec
from headrace.registry import Registry
from headrace.testing import models
from tests.e2e.attacks.guarded import PROTOCOLS, guarded
from tests.e2e.attacks.tenants import ONE_USER, PLANTED, SEC, Tenants
from tests.e2e.control.system import System
from tests.e2e.ordinary_user import OrdinaryUser

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HEADRACE: Final = Path(sys.executable).parent / "headrace"


# What goes on to somebody else's server.


class Echo(BaseHTTPRequestHandler):
    """Answers with the headers that it got."""

    def do_GET(self) -> None:
        content = json.dumps(list(self.headers.items())).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815  # as the library calls it

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@ONE_USER
@pytest.mark.parametrize("access", [None, "public", ["key"]], ids=str)
def test_an_api_key_never_travels_to_an_upstream(house: Tenants, echo: str, access: Any) -> None:
    entry = {"upstream": {"url": echo, "protocol": "http"}, "access": access}
    put = house.call("admin", "PUT", "/api/v1/endpoints/sec?wait_s=30", entry)
    assert put.status == 200, put
    key = house.admin("POST", "/api/v1/keys", {"name": "echo", "scopes": ["infer:*"]})["key"]
    url = f"{house.system.where().http_url}/endpoints/{SEC}/a"
    foreign = {"authorization": "Bearer of-the-upstream"}
    answers = [
        httpx.get(url, headers={"x-api-key": key}),
        httpx.get(url, headers={"authorization": f"Bearer {key}"}),
        httpx.get(url, headers={"authorization": f"bearer  {key}"}),
        httpx.get(url, headers={"x-api-key": key, **foreign}),
        httpx.get(url, headers=[("x-api-key", "first"), ("x-api-key", key)]),
        httpx.get(url, headers={"x-api-key": house.tokens["admin"]}),
    ]

    assert answers[0].status_code == 200, answers[0].text
    for answer in answers:
        assert key not in answer.text
        assert house.tokens["admin"] not in answer.text
        if answer.status_code == 200:
            assert not {name.lower() for name, _ in answer.json()} & {"x-api-key"}


# Tokens.


@pytest.mark.parametrize("critical", [["exp"], ["b64"], ["own"], [], "own"], ids=str)
def test_a_token_with_critical_headers_that_nobody_knows_is_refused(critical: object) -> None:
    with guarded() as site:
        header = {"crit": critical, "own": 1, "b64": True}
        token = site.issuer.token(header=header)
        statuses = [
            site.ask(protocol, [("authorization", f"Bearer {token}")]).status
            for protocol in PROTOCOLS
        ]

    assert statuses == [401] * 3


# Bodies.


@ONE_USER
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/models/sec/versions/1/signatures"),
        ("PUT", "/api/v1/models/sec/versions/1/reference"),
        ("DELETE", "/api/v1/models/sec/versions/99"),
        ("POST", "/api/v1/models/sec/versions"),
        ("POST", "/api/v1/models/"),
        ("POST", "/api/v1/models"),
        ("PUT", "/api/v1/endpoints/sec"),
        ("POST", "/api/v1/apply"),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_has_a_bound_on_every_route_but_the_upload(
    house: Tenants, method: str, path: str, *, is_chunked: bool
) -> None:
    assert house.system.process is not None
    process = psutil.Process(house.system.process.pid)
    before = process.memory_info().rss
    part, parts = b" " * (1 << 20), 96
    netloc = urlsplit(house.system.where().admin_url).netloc
    connection = http.client.HTTPConnection(netloc, timeout=30)
    headers = {
        "authorization": f"Bearer {house.tokens['operator:sec']}",
        "content-type": "application/json",
    }
    if not is_chunked:
        headers["content-length"] = str(len(part) * parts)
    sent, status, most = 0, 0, before
    with contextlib.closing(connection):
        with contextlib.suppress(OSError):
            connection.putrequest(method, path)
            for name, value in headers.items():
                connection.putheader(name, value)
            if is_chunked:
                connection.putheader("transfer-encoding", "chunked")
            connection.endheaders()
            for _ in range(parts):
                connection.send(b"100000\r\n" + part + b"\r\n" if is_chunked else part)
                sent += len(part)
                most = max(most, process.memory_info().rss)
        with contextlib.suppress(OSError, http.client.HTTPException):
            status = connection.getresponse().status

    assert status in {0, 400, 401, 403, 404, 405, 413}, status
    assert sent < len(part) * parts, "all of it was read"
    assert most < before + (40 << 20)


# The gateway's certificate.


@ONE_USER
@pytest.mark.parametrize(
    "content",
    ["", "no certificate", f"-----BEGIN CERTIFICATE-----\n{PLANTED}\n-----END CERTIFICATE-----\n"],
    ids=["empty", "text", "broken"],
)
def test_a_file_that_is_no_certificate_is_refused_when_it_is_applied(
    house: Tenants, content: str
) -> None:
    folder = house.system.home.parent
    for name in ("tls.pem", "tls.key"):
        (folder / name).write_text(content)
        house.system.user.own(folder / name)
        (folder / name).chmod(0o600)
    document = house.admin("GET", "/api/v1/spec")["spec"]
    tls = {"certificate_file": str(folder / "tls.pem"), "key_file": str(folder / "tls.key")}

    for verb in ("apply", "diff"):
        answer = house.call(
            "admin", "POST", f"/api/v1/{verb}", {**document, "gateway": {"tls": tls}}
        )
        assert answer.status in {400, 422}, (verb, answer)
        assert PLANTED not in answer.text
    assert house.admin("GET", "/api/v1/spec")["spec"] == document


# The home.


@pytest.mark.parametrize("mode", [0o777, 0o711])
def test_a_home_that_others_can_read_is_closed_at_the_start(
    ordinary_user: OrdinaryUser, mode: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        home.chmod(mode)
        system = System(home, user=ordinary_user)
        try:
            system.start(spec={"version": 1})
            with contextlib.suppress(AssertionError):
                system.wait_for(lambda _: True, 20)
            is_running = system.process is not None and system.process.poll() is None

            assert not is_running or home.stat().st_mode & 0o777 == 0o700
            assert is_running or "chmod" in system.log_text()
        finally:
            system.close()


# Links.


_SWAP: Final = """
import os, sys
path, target, away = sys.argv[1:]
if os.path.isdir(path):
    while True:
        os.rename(path, away)
        os.symlink(target, path)
        os.unlink(path)
        os.rename(away, path)
os.link(path, away)
while True:
    os.symlink(target, away + "-link")
    os.rename(away + "-link", path)
    os.link(away, away + "-file")
    os.rename(away + "-file", path)
"""


@contextlib.contextmanager
def swapped(path: Path, target: Path) -> Iterator[None]:
    """`path` is by turns itself, nothing, and a link to `target`, as fast as that goes."""
    away = path.parent.parent / f"{path.name}-away"
    process = subprocess.Popen([sys.executable, "-c", _SWAP, str(path), str(target), str(away)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["the file", "a directory on the way"])
def test_no_link_that_comes_in_between_is_followed_into_the_registry(
    tmp_path: Path, kind: str
) -> None:
    """In this process, where thousands of attempts take seconds."""
    inside, outside = b"a model of mine", b"a secret that lies outside"
    secret = tmp_path / "outside" / "m.onnx"
    secret.parent.mkdir()
    secret.write_bytes(outside)
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "sub" / "m.onnx").write_bytes(inside)
    registry = Registry(tmp_path / "home", accept)
    if kind == "the file":
        path, target = model / "sub" / "m.onnx", secret
    else:
        path, target = model / "sub", secret.parent
    with swapped(path, target):
        for _ in range(1500):
            with contextlib.suppress(HeadraceError, OSError):  # a refusal is as good
                registry.push("m", model)
    contents = [p.read_bytes() for p in (tmp_path / "home").rglob("*") if p.is_file()]

    assert contents, "nothing was stored at all"
    assert not [content for content in contents if outside in content]


def accept(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
    """A runtime that takes every file."""
    del path, runtime, allow_code
    tensor = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2))
    signature = ModelSignature(inputs=(tensor,), outputs=(tensor,), batched=True)
    return Inspected("onnx", signature, runs_code=False)


@pytest.fixture
def rooted() -> Iterator[tuple[Tenants, Path]]:
    """`headrace up --model-root`, and an operator of `sec`."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        (folder / "models").mkdir(mode=0o755)
        home = folder / "home"
        (folder / "spec.yaml").write_text('{"version": 1}')
        ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0")
        environment = {**os.environ, "HEADRACE_HOME": str(home)}
        root = ("--model-root", str(folder / "models"))
        arguments = ("up", "-d", str(folder / "spec.yaml"), *ports, *root)
        done = subprocess.run(
            [HEADRACE, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        system = System(home)
        try:
            house = Tenants(system, {"admin": system.token()})
            house.token("operator:sec", "operator:sec")
            yield house, folder
        finally:
            subprocess.run([HEADRACE, "down"], env=environment, check=False, capture_output=True)
            system.close()


def test_a_model_root_opens_what_lies_below_it_and_nothing_else(
    rooted: tuple[Tenants, Path],
) -> None:
    house, folder = rooted
    root = folder / "models"
    (root / "m.onnx").write_bytes(models.mlp(seed=70))
    (folder / "outside.onnx").write_bytes(models.mlp(seed=71))
    (root / "link.onnx").symlink_to(folder / "outside.onnx")
    (root / "up").symlink_to(folder)
    (root / "token").symlink_to(house.system.home / "admin-token")
    (root / "own.onnx").symlink_to(root / "m.onnx")

    def put(path: object, **fields: object) -> int:
        entry = {"model": str(path), **fields}
        answer = house.call("operator:sec", "PUT", "/api/v1/endpoints/sec", entry)
        assert house.tokens["admin"] not in answer.text
        return answer.status

    assert put(root / "m.onnx") in {200, 201}
    for path in (
        folder / "outside.onnx",
        root / "link.onnx",
        root / "up" / "outside.onnx",
        root / ".." / "outside.onnx",
        root / "token",
        f"{root}-other/m.onnx",
        folder / "home" / "admin-token",
        root / "missing.onnx",
    ):
        assert put(path) in {400, 403, 404, 422}, path
        assert put(path, runtime="onnx") in {400, 403, 404, 422}, path


def test_no_link_that_comes_in_between_leads_out_of_a_model_root(
    rooted: tuple[Tenants, Path],
) -> None:
    house, folder = rooted
    inside, outside = models.mlp(seed=72), models.mlp(seed=73)
    (folder / "outside.onnx").write_bytes(outside)
    path = folder / "models" / "m.onnx"
    deadline = time.monotonic() + 5
    path.write_bytes(inside)
    with swapped(path, folder / "outside.onnx"):
        while time.monotonic() < deadline:
            house.call("operator:sec", "PUT", "/api/v1/endpoints/sec", {"model": str(path)})
    artifacts = (folder / "home" / "artifacts").rglob("*")

    assert not [p for p in artifacts if p.is_file() and p.read_bytes() == outside]
