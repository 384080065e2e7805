"""Hugging Face folders are served by one command."""

import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from headrace.client import Client
from headrace.testing.models import mlp
from tests import hub_folders
from tests.e2e.cli.conftest import PORTS, MakeShell, Shell
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def shell(make_shell: MakeShell) -> Shell:
    """With a folder as the hub has them: two formats, and files that serving does not need."""
    shell = make_shell()
    folder = hub_folders.write_text(shell.folder / "mood", onnx_file="onnx/model.onnx")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}.")
    (folder / "onnx" / "model_quantized.onnx").write_bytes(mlp())
    return shell


def test_a_folder_is_up_and_answers_texts(shell: Shell) -> None:
    up = shell.run("up", "mood", "--detach", "--json", *PORTS)
    try:
        assert up.returncode == 0, up.stderr
        url = f"{json.loads(up.stdout)['http_url']}/v1/models/mood:predict"
        answer = httpx.post(url, json={"instances": ["Anna lives", "b"]}).json()["predictions"]
        shown = json.loads(shell.run("models", "show", "mood", "--json").stdout)
    finally:
        shell.run("down")

    scores = hub_folders.table(3)[[2, 10, 3]].mean(axis=0)  # [CLS] b [SEP]
    probabilities = np.exp(scores) / np.exp(scores).sum()
    assert [row["label"] in {"bad", "ok", "good"} for row in answer] == [True, True]
    assert answer[1]["label"] == ("bad", "ok", "good")[int(scores.argmax())]
    assert answer[1]["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert [file["path"] for file in shown["files"]] == [
        "config.json",
        "onnx/model.onnx",
        "tokenizer.json",
    ]
    assert shown["source"] == str(shell.folder / "mood")


def test_a_folder_is_served_alone(shell: Shell) -> None:
    port = free_port()
    running = shell.start("serve", "mood", "--port", str(port), "--metrics-port", "0")
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 30
            while not client.ready() and time.monotonic() < until:
                time.sleep(0.05)
            text = np.array([b"Anna Smith"], np.object_)
            answer = client.infer("mood", {"text": text}).outputs
    finally:
        running.terminate()
        running.communicate(timeout=30)

    assert answer["label"].tolist()[0] in {b"bad", b"ok", b"good"}


def test_a_pickle_alone_needs_a_permission(shell: Shell, tmp_path: Path) -> None:
    hub_folders.write_json(tmp_path, "config.json", {"architectures": ["BertModel"]})
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}.")

    pushed = shell.run("models", "push", "vectors", tmp_path)

    assert pushed.returncode == 1
    assert "pytorch_model.bin" in pushed.stderr
    assert "--allow-code" in pushed.stderr
