"""Replicas with PyTorch and TensorFlow, each on models that it wrote itself."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from headrace.core import Array
from tests.images.containers import Docker, build_images, running
from tests.images.test_replica import ports

TORCH: Final = "torch>=2.8"
DEBIANS: Final = {"trixie": "3.13", "bookworm": "3.11"}
"""By the name of a base, its Python."""
ROWS: Final[Array] = np.random.default_rng(11).standard_normal((3, 4)).astype(np.float32)

TORCH_MODELS: Final = """
import json, sys, torch
rows = torch.tensor(json.loads(sys.argv[1]))
torch.manual_seed(5)
module = torch.nn.Sequential(
    torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.Softmax(1)
).eval()
torch.jit.save(torch.jit.trace(module, rows), "/out/scripted.pt")
by_row = ({0: torch.export.Dim("rows", max=256)},)
torch.export.save(torch.export.export(module, (rows,), dynamic_shapes=by_row), "/out/exported.pt2")
print(json.dumps(module(rows).tolist()))
"""
TENSORFLOW_MODELS: Final = """
import json, sys
import numpy as np
import tensorflow as tf
rows = np.array(json.loads(sys.argv[1]), np.float32)
tf.keras.utils.set_random_seed(5)
model = tf.keras.Sequential([
    tf.keras.layers.Input((4,), name="x"),
    tf.keras.layers.Dense(8, activation="relu"),
    tf.keras.layers.BatchNormalization(),
    tf.keras.layers.Dense(3, activation="softmax"),
])
model.export("/out/saved", verbose=False)
converter = tf.lite.TFLiteConverter.from_saved_model("/out/saved")
open("/out/small.tflite", "wb").write(converter.convert())
print(json.dumps(np.asarray(model(rows)).tolist()))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """An image, models in a folder of this machine, and what they answer to `ROWS`."""

    image: str
    folder: Path
    expected: Array


@pytest.fixture(scope="module")
def torch(docker: Docker, sboms: Path, tmp_path_factory: pytest.TempPathFactory) -> Framework:
    versions = {suite: version_that_pip_takes(TORCH, python) for suite, python in DEBIANS.items()}
    suite = next((one for one, version in versions.items() if "+cpu" in version), None)
    if suite is None:
        pytest.skip(
            f"pip would take torch {versions}, with 3 GB of CUDA's libraries: name an index of "
            "builds for the CPU in pip's settings (PIP_EXTRA_INDEX_URL)"
        )
    built = build_images(docker, sboms, "replica-torch", SUITE=suite, UNLOCKED=TORCH)
    tried = docker.run(
        "run", "--rm", "--entrypoint", "python", built["replica-torch"], "-c", "import torch"
    )
    if "GLIBC_" in tried.stderr:
        lacks = tried.stderr.strip().splitlines()[-1]
        pytest.skip(f"pip's build of PyTorch for this Python is for a newer Debian: {lacks}")
    return framework(docker, built["replica-torch"], TORCH_MODELS, tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def tensorflow(docker: Docker, sboms: Path, tmp_path_factory: pytest.TempPathFactory) -> Framework:
    built = build_images(docker, sboms, "replica-tensorflow")
    folder = tmp_path_factory.mktemp("tensorflow")
    return framework(docker, built["replica-tensorflow"], TENSORFLOW_MODELS, folder)


def version_that_pip_takes(requirement: str, python: str) -> str:
    """What pip would install for this Python, by its own settings; empty if it finds nothing."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"),
            *("--ignore-installed", "--only-binary=:all:", "--python-version", python),
            *("--target", "/nonexistent", "--report", "-", requirement),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        return ""
    return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def framework(docker: Docker, image: str, script: str, folder: Path) -> Framework:
    """Let the image's own framework write models, as a user of it would."""
    for above in (folder.parent, folder.parent.parent):
        above.chmod(0o755)
    folder.chmod(0o777)  # another user writes there
    printed = docker(
        *("run", "--rm", "--network", "none", "--volume", f"{folder}:/out"),
        *("--entrypoint", "python", image, "-c", script, json.dumps(ROWS.tolist())),
        within_s=180,
    )
    expected = np.array(json.loads(printed.splitlines()[-1]), np.float32)
    return Framework(image=image, folder=folder, expected=expected)


def check_served(docker: Docker, made: Framework, file: str, *options: str) -> None:
    """Run the image as a strict cluster would, and ask it by NVIDIA's clients."""
    told = ports()
    command = ("serve", f"/models/{file}", "--name", "m", *options)
    mounts = [f"{made.folder}:/models:ro"]
    with running(docker, made.image, *command, environ=told, mounts=mounts) as container:
        container.wait_for_health("healthy")
        for module, kind in ((triton_http, "HTTP"), (triton_grpc, "GRPC")):
            answer = ask(module, f"127.0.0.1:{told[f'HEADRACE_{kind}_PORT']}")
            np.testing.assert_allclose(answer, made.expected, rtol=1e-5, err_msg=container.logs())
        container.stop()
        assert container.state["ExitCode"] == 0, container.logs()


def ask(module: ModuleType, address: str) -> Array:
    """The only output of model `m` for `ROWS`."""
    with module.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata("m")
        if module is triton_grpc:
            taken, given = metadata.inputs[0].name, metadata.outputs[0].name
        else:
            taken, given = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
        tensor = module.InferInput(taken, list(ROWS.shape), "FP32")
        tensor.set_data_from_numpy(ROWS)
        answer: Array = client.infer("m", [tensor]).as_numpy(given)
        return answer


@pytest.mark.parametrize("file", ["scripted.pt", "exported.pt2"])
def test_what_pytorch_saves_is_served(docker: Docker, torch: Framework, file: str) -> None:
    check_served(docker, torch, file, "--allow-code")


def test_a_program_of_pytorchs_is_not_run_unasked(docker: Docker, torch: Framework) -> None:
    mount = f"{torch.folder}:/models:ro"

    done = docker.run(
        *("run", "--rm", "--network", "none", "--volume", mount, torch.image),
        *("serve", "/models/scripted.pt"),
    )

    assert done.returncode == 1
    assert "--allow-code" in done.stderr


@pytest.mark.parametrize("file", ["saved", "small.tflite"])
def test_what_tensorflow_saves_is_served(docker: Docker, tensorflow: Framework, file: str) -> None:
    check_served(docker, tensorflow, file)
