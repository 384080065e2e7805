"""Pulsar keeps every broker's contract; in a process of its own, as its client spoils others.

Once pulsar-client 3.13 is loaded, exceptions of other modules of pybind11 lose their classes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.testing import models
from tests.brokers.java import skip_without


@pytest.mark.e2e
@pytest.mark.jvm
@pytest.mark.parametrize(
    "which", ["a_member or nothing or order", pytest.param("test_", marks=pytest.mark.long)]
)
def test_pulsar_keeps_the_contract_of_brokers(which: str) -> None:
    """A few show that it goes."""
    skip_without("pulsar")
    cases = Path(__file__).with_name("pulsar_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which]
    command.append(str(cases))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603  # ours
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


_MODELS = """
import sys
from pathlib import Path
import numpy as np
from headrace.core import HeadraceError
from headrace.runtimes import LoadOptions, get_runtime
if sys.argv[3] == "before":
    import pulsar
model = get_runtime(sys.argv[1]).load(Path(sys.argv[2]), LoadOptions())
import pulsar
print(model.signature.inputs[0].shape)
try:
    model.run({"input": np.zeros((2, 3, 4), np.float32)})
except HeadraceError as error:
    print(error.code)
"""


@pytest.mark.parametrize(
    ("runtime", "imported", "code"),
    [("onnx", "after", "INVALID_ARGUMENT"), ("openvino", "before", "INTERNAL")],
)
def test_models_load_and_fail_alike_beside_the_client(
    runtime: str, imported: str, code: str, tmp_path: Path
) -> None:
    pytest.importorskip(runtime if runtime == "openvino" else "onnxruntime")
    file = tmp_path / "model.onnx"
    file.write_bytes(models.mlp(features=4))
    command = [sys.executable, "-c", _MODELS, runtime, str(file), imported]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603  # ours
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:2] == ["(-1, 4)", code]
