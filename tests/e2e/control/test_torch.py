"""PyTorch's files answer through Envoy, from confined replicas, as their modules do in process."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.client import Client
from headrace.control.sandboxed.run import SandboxedInspector
from headrace.core import UnsupportedModelError
from tests.e2e.control.system import System
from tests.torch_models import (
    PERCEPTRONS,
    ROWS,
    SILERO,
    answered,
    no_warnings,
    script,
    silero,
    torch,
    trained,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.torch]

MAX_CONCURRENT = 32
"""Rows that one request may have unless the endpoint says else."""
TOLERANCE = 1e-6
"""Of a probability: the kernels are the same, but may sum in another order for other rows."""

CONFIG = """
platform: "pytorch_libtorch"
max_batch_size: 8
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 5 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
"""What Triton was told of the module that was moved here from there."""


def test_each_kind_of_file_answers_as_in_process(system: System, tmp_path: Path) -> None:
    saved = {name: PERCEPTRONS[name](tmp_path) for name in ("traced", "exported")}
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "model.jit").write_bytes(silero().read_bytes())
    (folder / "signature.json").write_text(SILERO)
    paths: dict[str, Any] = {name: one.path for name, one in saved.items()} | {"speech": folder}
    version = tmp_path / "repository" / "moved" / "4"
    version.mkdir(parents=True)
    moved = script(version / "model.pt", trained())
    (version.parent / "config.pbtxt").write_text(CONFIG)
    paths["repository"] = tmp_path / "repository"
    system.start(
        *({"name": name, "model": str(path), "allow_code": True} for name, path in paths.items())
    )
    status = system.wait_ready(300)
    noise = np.random.default_rng(2).normal(size=(1, 4000)).astype(np.float32) / 10
    with no_warnings(), torch.inference_mode():
        own = torch.jit.load(str(silero())).eval()
        heard = own.audio_forward(torch.from_numpy(noise), 16000).numpy()

    assert status["ready"]
    with Client(system.where().http_url) as client:
        for name, one in saved.items():
            answer = client.infer(name, {"x": ROWS[:MAX_CONCURRENT]}).outputs["output"]
            want = answered(one.module, ROWS[:MAX_CONCURRENT])
            assert np.abs(answer - want).max() <= TOLERANCE, name
        answer = client.infer("speech", {"audio": noise}).outputs["speech"]
        assert np.abs(answer - heard).max() <= TOLERANCE
        assert answer.shape == (1, 8)
        answer = client.infer("moved", {"INPUT__0": ROWS[:8]}).outputs["OUTPUT__0"]
        assert np.abs(answer - answered(moved.module, ROWS[:8])).max() <= TOLERANCE
        assert client.metadata("traced").platform == "pytorch_libtorch"


def rewritten(path: Path, code: str) -> Path:
    """A TorchScript file whose module has this code."""
    hostile = path.with_name("hostile.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            # PyTorch puts a class that it compiles again into a file of another name.
            name = entry.filename
            if "code/__torch__/tests/torch_models" in name and name.endswith(".py"):
                before, _, after = data.decode().partition("  def forward(")
                body = after.partition(":\n")[0]
                data = f"{before}  def forward({body}:\n{code}".encode()
            new.writestr(entry.filename, data)
    return hostile


LOOP = """\
    y = x
    _0 = True
    while _0:
      y = torch.mul(y, y)
      _0 = bool(torch.ge(torch.rand([1]), 0.))
    return y
"""
HOSTILE = {
    "nested without end": ("    return " + "(" * 300_000 + "x" + ")" * 300_000, "was ended by SIG"),
    "a loop without end": (
        LOOP,
        "did not load within 20 s",
    ),
    "ran out of memory": (
        "    return torch.zeros([1000000000000, 1000])\n",
        "does not run on generated inputs",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_code_that_ends_its_process_ends_no_other(tmp_path: Path, what: str) -> None:
    code, reason = HOSTILE[what]
    path = rewritten(PERCEPTRONS["scripted"](tmp_path).path, code)
    inspect = SandboxedInspector.of_home(tmp_path / "home")
    inspect.timeout_s = 20.0

    try:
        with pytest.raises(UnsupportedModelError, match=reason):
            inspect(path, allow_code=True)
    finally:
        inspect.close()
