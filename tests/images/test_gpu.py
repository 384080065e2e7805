"""The replica for GPUs where there is none: what it needs of its host, and what it says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http

from headrace.runtimes import load_model
from tests.images.containers import Docker, build_images, running
from tests.images.test_replica import ROWS, ports

pytestmark = pytest.mark.long

NEEDED_BYTES = 25e9
"""CUDA's libraries lie in pip's cache, in the layer that installs them and in the image."""
LINKED = """
import subprocess, sysconfig
from pathlib import Path
folder = Path(sysconfig.get_path("purelib")) / "onnxruntime" / "capi"
library = folder / "libonnxruntime_providers_cuda.so"
lines = subprocess.run(["ldd", library], capture_output=True, text=True).stdout.splitlines()
print(*sorted({line.split()[0] for line in lines if "not found" in line}))
print(sum("/nvidia/" in line for line in lines))
"""


@pytest.fixture(scope="module")
def gpu(docker: Docker, sboms: Path) -> str:
    folder = docker("info", "--format", "{{.DockerRootDir}}")
    if Path(folder).exists() and (free := shutil.disk_usage(folder).free) < NEEDED_BYTES:
        pytest.skip(f"{folder} has {free / 1e9:.0f} GB free: {NEEDED_BYTES / 1e9:.0f} are needed")
    return build_images(docker, sboms, "replica-gpu")["replica-gpu"]


def test_without_a_gpu_the_cpu_answers_and_the_log_says_how_to_give_it_one(
    docker: Docker, gpu: str, mount: str, model_folder: Path
) -> None:
    told = ports()
    command = ("serve", "/models/mlp.onnx", "--name", "m")
    with running(docker, gpu, *command, environ=told, mounts=[mount]) as container:
        container.wait_for_health("healthy")
        tensor = triton_http.InferInput("input", list(ROWS.shape), "FP32")
        tensor.set_data_from_numpy(ROWS)
        with triton_http.InferenceServerClient(f"127.0.0.1:{told['HEADRACE_HTTP_PORT']}") as client:
            answer = client.infer("m", [tensor]).as_numpy("prob")
        said = container.logs()

    expected = load_model(model_folder / "mlp.onnx").run({"input": ROWS})["prob"]
    np.testing.assert_allclose(answer, expected, rtol=1e-5)
    assert "CUDAExecutionProvider cannot be used, CPU is: no GPU is visible" in said
    assert "`docker run --gpus all`" in said


@pytest.mark.parametrize("device", ["gpu", "cuda", "tensorrt"])
def test_a_gpu_that_is_asked_for_and_is_not_there_ends_it(
    docker: Docker, gpu: str, mount: str, device: str
) -> None:
    done = docker.run(
        *("run", "--rm", "--network", "none", "--volume", mount, gpu),
        *("serve", "/models/mlp.onnx", "--device", device),
    )

    assert done.returncode == 3
    assert f"device '{device}' was requested but is not available" in done.stderr
    assert "no GPU is visible" in done.stderr
    assert "`docker run --gpus all`" in done.stderr


def test_of_what_cuda_needs_only_the_driver_is_the_hosts(docker: Docker, gpu: str) -> None:
    printed = docker(
        *("run", "--rm", "--network", "none", "--entrypoint", "python", gpu, "-c", LINKED)
    )

    missing, found = printed.split("\n")
    assert missing in {"", "libcuda.so.1"}
    assert int(found) >= 4
