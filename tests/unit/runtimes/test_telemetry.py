"""Nobody is told what is loaded here, and a process that is forked has one thread."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
from headrace.runtimes.onnx import runtime as onnx
print(len(os.listdir("/proc/self/task")), os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["", "0"])
def test_onnx_runtime_reports_to_nobody_unless_somebody_wants_it(chosen: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ORT_")}
    environment = kept | {"OPENBLAS_NUM_THREADS": "1"}
    if chosen:
        environment["ORT_DISABLE_TELEMETRY"] = chosen
    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )

    threads, value = done.stdout.split()
    assert value == (chosen or "1")
    assert chosen or threads == "1"


OPENVINO = """
import os
from headrace.runtimes.openvino import import_openvino
import_openvino().Core()
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.slow
def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install 'headrace[openvino]'")
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-c", OPENVINO],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "1"  # its telemetry sends from a thread
    assert list(tmp_path.rglob("*")) == []  # and keeps a number for this user
