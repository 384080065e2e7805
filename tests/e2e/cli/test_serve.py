"""`headrace serve`: one replica alone."""

import signal
import time

import httpx
import pytest

from headrace.client import Client
from tests.e2e.cli.conftest import Shell
from tests.ports import free_port

pytestmark = pytest.mark.e2e


@pytest.mark.long
def test_a_replica_alone_answers_and_drains(shell: Shell) -> None:
    port, metrics, grpc = free_port(), free_port(), free_port()
    flags = ("--port", str(port), "--metrics-port", str(metrics), "--grpc-port", str(grpc))
    running = shell.start("serve", "mlp.onnx", *flags, "--log-format", "json")
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 30
            while not client.ready() and time.monotonic() < until:
                time.sleep(0.05)
            answer = client.infer("mlp", {"input": [[0.5] * 32]})
        with Client(f"grpc://127.0.0.1:{grpc}") as client:
            assert client.ready("mlp")
        text = httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
    finally:
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=30)

    assert answer.outputs["prob"].shape == (1, 2)
    assert "nv_inference_request_success" in text
    assert running.returncode == 0
    assert all(line.startswith("{") for line in err.splitlines())


def test_a_stored_version_is_served_by_its_reference(shell: Shell) -> None:
    assert shell.run("models", "push", "fraud", "mlp.onnx").returncode == 0
    port = free_port()
    running = shell.start(
        "serve", "fraud:1", "--port", str(port), "--metrics-port", "0", "--max-batch-size", "4"
    )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 30
            while not client.ready() and time.monotonic() < until:
                time.sleep(0.05)
            assert client.config("fraud")["max_batch_size"] == 4
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)

    assert running.returncode == 0


@pytest.mark.long
def test_what_cannot_be_served_says_why(shell: Shell) -> None:
    missing = shell.run("serve", "nobody", "--port", "0", "--metrics-port", "0")
    damaged = shell.run("serve", "bad.onnx", "--port", "0", "--metrics-port", "0")
    loud = shell.run("serve", "mlp.onnx", "--log-level", "loud")

    assert missing.returncode == 1
    assert "no file or directory 'nobody'" in missing.stderr
    assert damaged.returncode == 3
    assert "cannot load model" in damaged.stderr
    assert loud.returncode == 2
