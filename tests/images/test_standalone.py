"""The image that is a whole system, and those of its parts."""

from collections.abc import Iterator, Mapping

import httpx
import pytest

from tests.e2e.replicas import free_port
from tests.images.containers import Docker, running

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
        ("control", ("models", "list")),
        ("replica", ("serve",)),
        ("standalone", ("export", "grafana")),
    ],
)
def test_each_part_has_its_command(
    docker: Docker, images: Mapping[str, str], image: str, command: tuple[str, ...]
) -> None:
    printed = docker("run", "--rm", "--network", "none", images[image], *command, "--help")

    assert f"Usage: headrace {' '.join(command)}" in printed
