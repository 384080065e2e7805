"""The pod of `helm test` asks what it is told to, by a program that is tried here."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.chart.sample_values import Values, a_version
from tests.kube import needs, rendered

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

CERTIFICATES: Values = {"agentTls": {"certManager": {"enabled": True}}}


class Answers(http.server.BaseHTTPRequestHandler):
    """Not ready at first, then what the path says."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        is_first = self.asked.count(self.path) == 1
        self.send_response(503 if is_first else int(self.path.rpartition("/")[2]))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    kind = type("Told", (Answers,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def program(values: Values) -> list[str]:
    """What the pod runs: the program, the authorities, and the addresses."""
    (pod,) = [one for one in rendered(values) if one["kind"] == "Pod"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-c"]
    told: list[str] = container["args"]
    return told


def test_it_asks_the_gateway_and_the_control_plane() -> None:
    _, authorities, *addresses = program(CERTIFICATES)

    assert authorities == "/etc/headrace-tls/ca.crt"
    assert addresses == [
        "http://headrace-gateway:8000/v2/health/live",
        "https://headrace-control.models.svc:8080/api/v1/health",
    ]


def test_it_asks_every_version_where_the_chart_makes_them() -> None:
    versions = [a_version(), a_version(version="2")]
    values: Values = {
        "artifacts": {"url": "s3://m"},
        "workloads": {"mode": "static", "versions": versions},
    }

    _, _, *addresses = program(values)

    assert len(addresses) == 2
    assert all(address.endswith(":8000/v2/health/ready") for address in addresses)


def test_it_waits_until_all_answer_and_takes_being_asked_for_a_key_as_one(
    server: tuple[str, list[str]],
) -> None:
    url, asked = server
    script, authorities, *_ = program(CERTIFICATES)

    done = subprocess.run(
        [sys.executable, "-c", script, authorities, f"{url}/200", f"{url}/401"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert asked == ["/200", "/200", "/401", "/401"]
    assert done.stdout == f"{url}/200: answers\n{url}/401: answers\n"
