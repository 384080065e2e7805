"""An optimized model is pushed, listed and served as any model is."""

import json
import signal
import time
from pathlib import Path

import pytest

from headrace.client import Client
from tests import optimized_models
from tests.e2e.cli.conftest import Shell
from tests.e2e.replicas import free_port

pytestmark = pytest.mark.e2e


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


def test_what_is_damaged_is_refused_at_the_push(shell: Shell, tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path)
    optimized_models.changed(path, extra=1)
    refused = shell.run("models", "push", "fast", str(path))

    assert refused.returncode == 1
    assert "unknown field `extra`" in refused.stderr
