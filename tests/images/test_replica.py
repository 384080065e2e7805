"""The replica's image, as a cluster that trusts nobody runs it."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from headrace.runtimes import load_model
from tests.images.conftest import SLOW_S
from tests.images.containers import Container, Docker, running
from tests.ports import free_port

ROWS = np.random.default_rng(7).standard_normal((3, 32)).astype(np.float32)


def ports() -> dict[str, str]:
    http = str(free_port())
    return {
        "HEADRACE_HTTP_PORT": http,
        "HEADRACE_HEALTH_PORT": http,
        "HEADRACE_GRPC_PORT": str(free_port()),
        "HEADRACE_METRICS_PORT": str(free_port()),
    }


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    return ports()


@pytest.fixture(scope="module")
def served(
    docker: Docker, images: Mapping[str, str], mount: str, told: dict[str, str]
) -> Iterator[Container]:
    command = ("serve", "/models/mlp.onnx", "--name", "m")
    with running(docker, images["replica"], *command, environ=told, mounts=[mount]) as container:
        container.wait_for_health("healthy")
        yield container


@pytest.mark.parametrize("kind", ["HTTP", "GRPC"])
def test_nvidias_client_is_answered(
    served: Container, told: dict[str, str], model_folder: Path, kind: str
) -> None:
    module: Any = {"HTTP": triton_http, "GRPC": triton_grpc}[kind]
    tensor = module.InferInput("input", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS)

    with module.InferenceServerClient(f"127.0.0.1:{told[f'HEADRACE_{kind}_PORT']}") as client:
        answer = client.infer("m", [tensor]).as_numpy("prob")

    expected = load_model(model_folder / "mlp.onnx").run({"input": ROWS})["prob"]
    np.testing.assert_allclose(answer, expected, rtol=1e-5)
    assert served.state["Running"]


def test_metrics_have_a_port_of_their_own(served: Container, told: dict[str, str]) -> None:
    answer = httpx.get(f"http://127.0.0.1:{told['HEADRACE_METRICS_PORT']}/metrics")

    assert answer.status_code == 200, served.logs()
    assert 'nv_inference_request_success{model="m"' in answer.text


def test_it_is_nobody_and_can_write_nowhere_but_to_tmp(served: Container) -> None:
    assert served.shell("id -u; id -g").split() == ["65532", "65532"]
    written = served.shell(
        "for d in / /etc /opt/headrace /var/lib/headrace /models /usr/local/lib/headrace /tmp; do"
        " touch $d/x 2>/dev/null && echo $d; done; true"
    )
    assert written == "/tmp"  # noqa: S108  # inside the container
    status = served.shell("grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/1/status").split()
    assert dict(zip(status[::2], status[1::2], strict=True)) == {
        "CapEff:": "0" * 16,
        "CapBnd:": "0" * 16,
        "NoNewPrivs:": "1",
    }


def test_a_request_in_flight_is_answered_when_it_is_told_to_end(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    told = ports()
    url = f"http://127.0.0.1:{told['HEADRACE_HTTP_PORT']}/v2/models/slow/infer"
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
    answers: list[httpx.Response] = []
    command = ("serve", "/models/slow", "--allow-code")
    with running(docker, images["replica"], *command, environ=told, mounts=[mount]) as container:
        container.wait_for_health("healthy")
        caller = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=body, timeout=30))
        )
        caller.start()
        time.sleep(SLOW_S / 4)

        took_s = container.stop()
        caller.join()

        assert [answer.status_code for answer in answers] == [200], container.logs()
        assert answers[0].json()["outputs"][0]["data"] == [2.0, 4.0]
        assert container.state["ExitCode"] == 0
        assert "draining" in container.logs()
        assert took_s < SLOW_S + 5


def test_told_to_end_while_it_starts_it_ends(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    command = ("serve", "/models/mlp.onnx")
    with running(docker, images["replica"], *command, mounts=[mount], network="none") as container:
        took_s = container.stop(grace_s=20)

        assert took_s < 10, "it was killed: as process 1 it never heard the signal"
        assert container.state["ExitCode"] in {0, 143}


def test_a_model_that_cannot_be_loaded_ends_it_with_a_reason(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    command = ("serve", "/models/broken.onnx")

    done = docker.run(
        "run", "--rm", "--network", "none", "--volume", mount, images["replica"], *command
    )

    assert done.returncode == 3
    assert "cannot load model 'broken': /models/broken.onnx: is text, not ONNX" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_of_another_image_says_where_it_is(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    done = docker.run(
        "run",
        "--rm",
        "--network",
        "none",
        "--volume",
        mount,
        images["replica"],
        "up",
        "/models/mlp.onnx",
    )

    assert done.returncode == 1
    assert "use the image headrace/standalone" in done.stderr


def test_a_replica_that_does_not_answer_is_unhealthy(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    told = ports() | {"HEADRACE_HEALTH_PORT": str(free_port())}
    command = ("serve", "/models/mlp.onnx")
    options = ("--read-only", "--tmpfs", "/tmp", "--health-start-period", "1ms")  # noqa: S108  # inside
    with running(
        docker, images["replica"], *command, environ=told, mounts=[mount], options=options
    ) as container:
        container.wait_for_health("unhealthy")

        said = container.state["Health"]["Log"][-1]["Output"]
        assert said.startswith(f"port {told['HEADRACE_HEALTH_PORT']}: "), said
