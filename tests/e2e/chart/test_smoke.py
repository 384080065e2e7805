"""The pod of `helm test` asks what it is told to, by a program that is tried here."""

import http.server
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.e2e.chart.sample_values import Values, a_version, merged
from tests.kube import Object, needs, rendered

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

SERVED: Values = {
    "artifacts": {"url": "s3://m"},
    "spec": {
        "version": 1,
        "endpoints": [{"name": "fraud"}, {"name": "digits", "access": "public"}],
    },
}
SECURED: Values = merged(SERVED, {"spec": {"gateway": {"tls": {"certificate_file": "/a"}}}})


@dataclass
class Server:
    """Not ready at first, then what the path says; a path `.../key/ready` requires `secret`."""

    url: str
    asked: list[str] = field(default_factory=list)

    def status(self, path: str, credential: str | None) -> int:
        self.asked.append(path)
        if "/key/" in path:
            return 200 if credential == "Bearer secret" else 401
        return 503 if self.asked.count(path) == 1 or "/down/" in path else 200


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A gateway, whose certificate has another name than its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(told.status(self.path, self.headers["authorization"]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gateway:
        if request.param == "https":
            files = Authority(tmp_path / "gateway", "ca").server("server", "models.example")
            (tmp_path / "gateway" / "ca.pem").rename(tmp_path / "gateway" / "ca.crt")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files.both)
            gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
        told = Server(f"{request.param}://127.0.0.1:{gateway.server_address[1]}")
        thread = threading.Thread(target=gateway.serve_forever)
        thread.start()
        yield told
        gateway.shutdown()
        thread.join()


def the_pod(values: Values) -> Object:
    (pod,) = [one for one in rendered(values) if one["kind"] == "Pod"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    spec: Object = pod["spec"]
    return spec


def program(values: Values) -> list[str]:
    """What the pod runs: the program, and the addresses."""
    (container,) = the_pod(values)["containers"]
    assert container["command"] == ["python", "-c"]
    told: list[str] = container["args"]
    return told


def run(
    paths: list[str], server: Server, tmp_path: Path, *, key: str = "", within: int = 120
) -> subprocess.CompletedProcess[str]:
    script, *_ = program(SERVED)
    script = script.replace("/etc/headrace-tls", str(tmp_path)).replace("+ 120", f"+ {within}")
    return subprocess.run(
        [sys.executable, "-c", script, *(f"{server.url}{path}#models.example" for path in paths)],
        env={**os.environ, "KEY": key},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_it_asks_the_control_plane_the_gateways_and_every_endpoint() -> None:
    _, *plain = program(SERVED)
    _, *secured = program(merged(SECURED, {"gateway": {"tls": {"hostname": "models.example"}}}))
    _, *empty = program({})

    control = "https://headrace-control.models.svc:8080/api/v1/health"
    paths = ["/v2/health/ready", "/v2/models/fraud/ready?private", "/v2/models/digits/ready"]
    assert plain == [control, *(f"http://headrace-gateway:8000{path}" for path in paths)]
    assert secured == [
        control, *(f"https://headrace-gateway:8000{path}#models.example" for path in paths),
    ]  # fmt: skip
    assert empty == [control, "http://headrace-gateway:8000/v2/health/live"]


def test_gateways_that_require_client_certificates_are_not_asked() -> None:
    required = {"spec": {"gateway": {"tls": {"require_client_certificate": True}}}}

    _, *addresses = program(merged(SECURED, required))

    assert addresses == ["https://headrace-control.models.svc:8080/api/v1/health"]


def test_it_trusts_the_authorities_of_both_and_runs_in_a_small_image() -> None:
    pod = the_pod(merged(SECURED, {"gateway": {"tls": {"caConfigMap": "authority"}}}))

    (container,) = pod["containers"]
    assert container["image"].rpartition(":")[0].endswith("/gateway")
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        "/etc/headrace-tls/control", "/etc/headrace-tls/gateway",
    }  # fmt: skip
    assert {volume["name"] for volume in pod["volumes"]} == {"control", "gateway"}


def test_it_asks_every_version_where_the_chart_makes_them() -> None:
    versions = [a_version(), a_version(version="2")]
    values: Values = {
        "artifacts": {"url": "s3://m"},
        "workloads": {"mode": "static", "versions": versions},
    }

    _, *addresses = program(values)

    assert len(addresses) == 2
    assert all(address.endswith(":8000/v2/health/ready") for address in addresses)
    assert the_pod(values)["containers"][0]["image"] == versions[0]["pod"]["image"]


def test_it_waits_until_all_answer(server: Server, tmp_path: Path) -> None:
    paths = ["/v2/health/ready", "/v2/models/key/ready?private"]

    done = run(paths, server, tmp_path)
    with_key = run(paths[1:], server, tmp_path, key="secret")

    assert done.returncode == with_key.returncode == 0, done.stderr + with_key.stderr
    asked = [path.partition("?")[0] for path in paths]
    assert server.asked == [asked[0], *asked, asked[1]]
    assert "tests.keySecret" in done.stdout
    assert with_key.stdout.endswith("answers\n")


@pytest.mark.parametrize(
    ("path", "key", "said"),
    [
        ("down/ready", "", "status 503"),
        ("key/ready", "", "status 401"),
        ("key/ready?private", "wrong", "status 401"),
    ],
)
def test_it_fails_where_a_model_does_not_serve_or_the_key_is_wrong(
    server: Server, tmp_path: Path, path: str, key: str, said: str
) -> None:
    done = run([f"/v2/models/{path}"], server, tmp_path, key=key, within=1)

    assert done.returncode == 1
    assert said in done.stderr
