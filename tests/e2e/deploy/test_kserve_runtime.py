"""The command of the exported ClusterServingRuntime serves what KServe mounts."""

import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from headrace.deploy import kserve_runtime
from headrace.testing import models
from tests.ports import free_port
from tests.unit.deploy.specs import bodies

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
_READY_WITHIN_S = 120.0


def test_a_mounted_model_is_served_under_the_name_of_its_inference_service(tmp_path: Path) -> None:
    (runtime,) = bodies(kserve_runtime("", "registry.example/ml"))
    (container,) = runtime["spec"]["containers"]
    (tmp_path / "model.onnx").write_bytes(models.mlp())
    http_port, metrics_port = free_port(), free_port()
    here = {
        "/mnt/models": str(tmp_path),
        "--name={{.Name}}": "--name=digits",
        "--http-port=8000": f"--http-port={http_port}",
        "--metrics-port=8002": f"--metrics-port={metrics_port}",
        "--home=/tmp/headrace": f"--home={tmp_path / 'home'}",
    }
    arguments = [here.pop(argument, argument) for argument in container["args"]]
    assert here == {}
    assert container["command"] == ["tini", "--", "headrace", "serve"]
    ready = container["readinessProbe"]["httpGet"]["path"]

    server = subprocess.Popen([sys.executable, "-m", "headrace.cli", "serve", *arguments])
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{http_port}") as http:
            deadline = time.monotonic() + _READY_WITHIN_S
            while not _is_ok(http, ready):
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert _is_ok(http, "/v2/models/digits/ready")
            assert _is_ok(http, "/v1/models/digits")
            assert _is_ok(http, runtime["spec"]["annotations"]["prometheus.kserve.io/path"])
    finally:
        server.terminate()
        server.wait()


def _is_ok(http: httpx2.Client, path: str) -> bool:
    try:
        return http.get(path).status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False
