"""The chart that `make push` pushes to a registry installs the images that were pushed."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from scripts.images import pushed
from tests.e2e.debian import NoToolError, find_tool
from tests.kube import ROOT, helm, needs
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

DIGEST: Final = f"sha256:{'d' * 64}"
READY_WITHIN_S: Final = 30.0


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Host and port of a container registry."""
    try:
        server = find_tool("docker-registry")
    except NoToolError as error:
        pytest.skip(str(error))
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}}))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([server, "serve", config], stdout=log, stderr=log)
    try:
        until = time.monotonic() + READY_WITHIN_S
        while not _answers(address):
            assert process.poll() is None, (tmp_path / "registry.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(READY_WITHIN_S)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=5):  # loopback
            return True
    except urllib.error.URLError:
        return False


def test_pushed_chart_installs_pushed_images(registry: str, tmp_path: Path) -> None:
    prefix, dist = f"{registry}/ml", tmp_path / "dist"
    environ = {
        **os.environ,
        "PYTHON": sys.executable,
        "PREFIX": prefix,
        "TAG": "9.8",
        "DIST": str(dist),
    }
    command = [str(ROOT / "scripts" / "images.sh"), "--push", "chart"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = tmp_path / "control.json"
    built.write_text(json.dumps({"containerimage.digest": DIGEST}))
    pushed.main([str(dist), prefix, "9.8", f"control={built}"])
    digests = json.loads((dist / "images.json").read_text())["digests"]

    status, objects, complaints = helm(
        "template",
        "headrace",
        f"oci://{prefix}/charts/headrace@{digests['charts/headrace']}",
        "--plain-http",
        *("--set", "agentTls.certManager.enabled=true"),
        *("--values", dist / "image-values.yaml"),
    )

    assert status == 0, complaints
    assert f'image: "{prefix}/control@{DIGEST}"' in objects
    assert 'app.kubernetes.io/version: "9.8"' in objects
