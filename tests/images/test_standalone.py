"""The image that is a whole system, and those of its parts."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.images.containers import Docker, running
from tests.ports import free_port

CHECK = "/opt/headrace/bin/python -IS /usr/local/lib/headrace/healthcheck.py"
INPUT = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 32], "data": [0.5] * 32}]}


@pytest.fixture
def volume(docker: Docker) -> Iterator[str]:
    name = docker("volume", "create")
    yield name
    docker("volume", "rm", "--force", name)


def test_a_whole_system_serves_and_comes_back_as_it_was(
    docker: Docker, images: Mapping[str, str], mount: str, volume: str
) -> None:
    port = str(free_port())
    told = {
        "HEADRACE_HTTP_PORT": port,
        "HEADRACE_HEALTH_PORT": port,
        "HEADRACE_GRPC_PORT": str(free_port()),
        "HEADRACE_METRICS_PORT": str(free_port()),
        "HEADRACE_ADMIN_PORT": str(free_port()),
        "HEADRACE_HOST": "127.0.0.1",
    }
    mounts = [mount, f"{volume}:/var/lib/headrace"]
    url = f"http://127.0.0.1:{port}/v2/models/mlp"
    for command in (("up", "/models/mlp.onnx"), ("up",)):
        with running(
            docker, images["standalone"], *command, environ=told, mounts=mounts
        ) as container:
            container.wait_for_health("healthy")

            answer = httpx.post(f"{url}/infer", json=INPUT, timeout=10)
            took_s = container.stop()

            assert answer.status_code == 200, container.logs()
            assert answer.json()["outputs"][0]["shape"] == [1, 2]
            assert took_s < 20, container.logs()
            assert container.state["ExitCode"] == 0, container.logs()


@pytest.mark.parametrize(
    ("image", "command"),
    [
        ("worker", ("stream", "up")),
        ("worker", ("batch", "run")),
        ("control", ("control",)),
        ("gateway", ("gateway",)),
        ("replica", ("serve",)),
        ("standalone", ("export", "grafana")),
    ],
)
def test_each_part_has_its_command(
    docker: Docker, images: Mapping[str, str], image: str, command: tuple[str, ...]
) -> None:
    printed = docker("run", "--rm", "--network", "none", images[image], *command, "--help")

    assert f"Usage: headrace {' '.join(command)}" in printed


def test_a_gateway_without_a_control_plane_is_alive_and_says_what_it_lacks(
    docker: Docker, images: Mapping[str, str], tmp_path: Path
) -> None:
    certificates = ("certs", "dev", "--out", "/out", "--client", "gw")
    for folder in (tmp_path.parent.parent, tmp_path.parent):
        folder.chmod(0o755)
    tmp_path.chmod(0o777)  # another user writes there
    mount = f"{tmp_path}:/out"
    docker("run", "--rm", "--network", "none", "-v", mount, images["gateway"], *certificates)
    told = {
        "HEADRACE_CONTROL": "https://127.0.0.1:1",
        "HEADRACE_TLS_CERT": "/certs/gw.pem",
        "HEADRACE_TLS_KEY": "/certs/gw-key.pem",
        "HEADRACE_CA_FILE": "/certs/ca.pem",
    }
    mounts = [f"{tmp_path}:/certs:ro"]
    with running(
        docker, images["gateway"], "gateway", environ=told, mounts=mounts, network="none"
    ) as container:
        container.wait_for_log("https://127.0.0.1:1")

        alive = container.shell(f"{CHECK} 8002 /healthz")
        ready = container.shell(f"{CHECK} 8002 /readyz || true")

        assert alive == "HTTP/1.1 200 OK"
        assert ready == "HTTP/1.1 503 Service Unavailable"
        assert container.stop() < 20
        assert container.state["ExitCode"] == 0, container.logs()
