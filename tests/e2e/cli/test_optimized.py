"""An optimized model is pushed, listed and served as any model is."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.client import Client
from headrace.optimize.artifact import write_artifact
from headrace.optimize.candidate import Candidate
from headrace.runtimes import load_model
from headrace.runtimes.optimized.processor import this_processor
from headrace.runtimes.optimized.runtime import prove
from tests import openvino_models, optimized_models
from tests.e2e.cli.conftest import Shell
from tests.ports import free_port

pytestmark = pytest.mark.e2e


@pytest.mark.long
def test_a_directory_is_pushed_and_served(shell: Shell, tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path)
    pushed = shell.run("models", "push", "fast", str(path), "--json")
    assert json.loads(pushed.stdout)["runtime"] == "optimized"
    keys = shell.folder / "keys"
    for command in (
        ("keygen", "--out", str(keys)),
        ("sign", "fast:1", "--key", str(keys / "model-signing.pem"), "--content", str(path)),
        ("verify", "fast:1", "--trusted", str(keys / "model-signing.pub.pem")),
    ):
        assert shell.run("models", *command).returncode == 0, command

    for what, name in ((str(path), "optimized"), ("fast:1", "fast")):
        port = free_port()
        running = shell.start("serve", what, "--port", str(port), "--metrics-port", "0")
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                until = time.monotonic() + 30
                while not client.ready() and time.monotonic() < until:
                    time.sleep(0.05)
                answer = client.infer(name, {"input": [[0.5] * 32]})
        finally:
            running.send_signal(signal.SIGTERM)
            _, err = running.communicate(timeout=30)
        assert answer.outputs["prob"].shape == (1, 2)
        assert "onnx-0, verified on" in err


@pytest.mark.long
def test_eight_bits_that_saturate_without_vnni_are_found_out(shell: Shell, tmp_path: Path) -> None:
    here = this_processor()
    if not {"avx512_vnni", "avx_vnni"} & set(here.features):
        pytest.skip("this processor has no VNNI to be verified with")
    source = openvino_models.eight_bits(tmp_path / "source")
    model = load_model(source)
    inputs = {"x": np.linspace(0.5, 1, 4 * 64, dtype=np.float32).reshape(4, 64)}
    made = write_artifact(
        tmp_path / "made",
        [(Candidate(name="openvino-int8", title="", runtime="openvino", path=source), None)],
        processor=here,
        check=[(inputs, model.run(inputs))],
    )
    optimized_models.changed(made, processor={"name": "Elsewhere", "features": ["avx512_vnni"]})
    prove(made)

    shell.environment["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # as if it had no more
    refused = shell.run("serve", str(made), "--port", "0", "--metrics-port", "0")

    assert refused.returncode == 3
    assert "4 of 4 answers differ, by up to" in refused.stderr


@pytest.mark.long
def test_what_is_damaged_is_refused_at_the_push(shell: Shell, tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path)
    optimized_models.changed(path, extra=1)
    refused = shell.run("models", "push", "fast", str(path))

    assert refused.returncode == 1
    assert "an unknown field or value" in refused.stderr
