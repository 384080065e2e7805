"""Commands that take URIs, as processes, with real servers."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from headrace.testing import models
from tests import tabular_models
from tests.contract.s3_servers import wait_for
from tests.ports import free_port
from tests.source_servers import FileServer, Hub, HubRepository, Served

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]
MODEL = models.matmul()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with FileServer().running() as cdn:
        hub = Hub(cdn)
        hub.repositories["org/digits"] = HubRepository(files={"model.onnx": MODEL})
        with hub.running():
            yield hub


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"HF_ENDPOINT": hub.url, "HEADRACE_HOME": str(tmp_path / "home")}
        return subprocess.run(
            [sys.executable, "-m", "headrace.cli", *arguments],
            env={**os.environ, **variables, **environment},
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_pushed_version_records_its_uri_and_commit(run: Run, hub: Hub) -> None:
    uri = "hf://org/digits@main/model.onnx"
    first = run("models", "push", "digits", uri, "--json")
    shown = run("models", "show", "digits:1")

    assert first.returncode == 0, first.stderr
    version = json.loads(first.stdout)
    commit = hub.repositories["org/digits"].commit
    assert version["source"] == uri
    assert version["metadata"] == {"source_revision": f"commit {commit}"}
    assert version["digest"] == f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
    assert version["filename"] == "model.onnx"
    assert re.search(rf"^source +{uri}$", shown.stdout, re.MULTILINE)
    assert re.search(rf"^source revision +commit {commit}$", shown.stdout, re.MULTILINE)


def test_unchanged_revision_is_not_downloaded_again(run: Run, hub: Hub) -> None:
    uri = "hf://org/digits/model.onnx"
    assert run("models", "push", "digits", uri).returncode == 0
    hub.requests.clear()

    again = run("models", "push", "digits", uri, "--json")

    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["version"] == "1"
    assert [path for path, _ in hub.requests] == ["/api/models/org/digits/revision/main?blobs=true"]


@pytest.mark.long
def test_new_commit_gives_a_new_version(run: Run, hub: Hub) -> None:
    uri = "hf://org/digits/model.onnx"
    assert run("models", "push", "digits", uri).returncode == 0
    hub.repositories["org/digits"] = HubRepository(
        files={"model.onnx": models.matmul(features=5)}, commit="f" * 40
    )

    again = run("models", "push", "digits", uri, "--json")

    assert json.loads(again.stdout)["version"] == "2", again.stderr


def test_pinned_content_needs_no_server_once_it_is_stored(run: Run, hub: Hub) -> None:
    pin = hashlib.sha256(MODEL).hexdigest()
    uri = f"hf://org/digits/model.onnx#sha256={pin}"
    wrong = run("models", "push", "digits", f"hf://org/digits/model.onnx#sha256={pin[::-1]}")
    right = run("models", "push", "digits", uri)
    hub.requests.clear()
    again = run("models", "push", "digits", uri, HF_ENDPOINT="https://127.0.0.1:1")

    assert wrong.returncode == 1
    assert f"has the digest sha256:{pin}, not {pin[::-1]}" in wrong.stderr
    assert (right.returncode, again.returncode) == (0, 0), right.stderr + again.stderr
    assert hub.requests == []


def test_https_file_is_stored_without_the_query_of_its_link(run: Run, server: FileServer) -> None:
    server.resources["/m/digits.onnx?X-Amz-Signature=geheim"] = Served(body=MODEL, etag='"1"')
    uri = f"{server.url}/m/digits.onnx"

    pushed = run("models", "push", "digits", f"{uri}?X-Amz-Signature=geheim", "--json")

    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["source"] == uri
    assert "geheim" not in pushed.stdout + pushed.stderr


@pytest.mark.long
def test_converted_version_is_not_taken_for_the_content_of_its_uri(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    trees = tabular_models.xgboost(tmp_path, "binary", suffix=".ubj").path
    hub.repositories["org/trees"] = HubRepository(files={"trees.ubj": trees.read_bytes()})

    converted = run("models", "push", "trees", "hf://org/trees", "--convert", "onnx", "--json")
    pushed = run("models", "push", "trees", "hf://org/trees", "--json")

    assert converted.returncode == pushed.returncode == 0, converted.stderr + pushed.stderr
    assert json.loads(converted.stdout)["runtime"] == "onnx"
    assert json.loads(pushed.stdout)["runtime"] == "xgboost"


def test_error_about_the_content_names_the_uri(run: Run, hub: Hub) -> None:
    hub.repositories["org/text"] = HubRepository(files={"a.txt": b"1", "b.txt": b"2"})

    pushed = run("models", "push", "text", "hf://org/text")

    assert pushed.returncode == 1
    assert "headrace: hf://org/text: no runtime recognises this directory" in pushed.stderr


def test_file_uri_is_stored_like_its_path(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a b.onnx").write_bytes(MODEL)

    pushed = run("models", "push", "digits", f"file://{tmp_path}/a%20b.onnx", "--json")

    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["filename"] == "a b.onnx"


@pytest.mark.parametrize(
    ("uri", "status", "message"),
    [
        ("ftp://host/m.onnx", 1, "is not a URI of s3://"),
        ("hf://org/missing", 1, "no repository 'org/missing'"),
        ("s3://key:secret@bucket/m.onnx", 1, "must not hold credentials"),
        ("missing.onnx", 2, "no file or directory 'missing.onnx'"),
    ],
)
def test_uri_that_cannot_be_fetched_has_its_status_and_reason(
    run: Run, uri: str, status: int, message: str
) -> None:
    pushed = run("models", "push", "digits", uri)

    assert pushed.returncode == status
    assert message in pushed.stderr
    assert "secret" not in pushed.stderr
    assert "Traceback" not in pushed.stderr


@pytest.fixture
def free_ports() -> list[str]:
    flags = ("--http-port", "--grpc-port", "--metrics-port", "--admin-port")
    return [part for flag in flags for part in (flag, "0")]


@pytest.fixture
def down(run: Run) -> Iterator[None]:
    yield
    run("down")


@pytest.mark.long
@pytest.mark.usefixtures("down")
def test_up_serves_a_uri_and_the_same_spec_changes_nothing(
    run: Run, hub: Hub, free_ports: list[str], tmp_path: Path
) -> None:
    started = run("up", "hf://org/digits", "--detach", *free_ports)
    answer = run("infer", "digits")
    (tmp_path / "headrace.yaml").write_text(
        "version: 1\nendpoints: [{name: digits, model: 'hf://org/digits'}]\n"
    )
    checked = run("check", "-f", "headrace.yaml")
    again = run("apply", "-f", "headrace.yaml", "--wait")
    hub.repositories["org/digits"] = HubRepository(
        files={"model.onnx": models.matmul(seed=2)}, commit="f" * 40
    )
    diff = run("diff", "-f", "headrace.yaml")
    changed = run("apply", "-f", "headrace.yaml", "--wait")
    (tmp_path / "new.onnx").write_bytes(models.matmul(seed=3))
    rollout = run("rollout", "start", "digits", "--model", f"file://{tmp_path}/new.onnx")
    refused = run("export", "kong", "-f", "headrace.yaml")

    assert started.returncode == 0, started.stderr
    assert "hf://org/digits is digits:1" in started.stderr
    assert answer.returncode == 0, answer.stderr
    assert checked.returncode == 0, checked.stderr
    assert again.returncode == 0, again.stderr
    assert "no changes" in again.stderr
    assert diff.returncode == 1, diff.stderr
    assert "digits:2" in diff.stdout
    assert changed.returncode == 0, changed.stderr
    assert "hf://org/digits is digits:2" in changed.stderr
    assert rollout.returncode == 0, rollout.stderr
    assert f"file://{tmp_path}/new.onnx is digits:3" in rollout.stderr
    assert refused.returncode == 1
    assert "headrace models push NAME URI" in refused.stderr


@pytest.mark.long
def test_serve_serves_a_uri(hub: Hub, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "serve", "hf://org/digits", "--port", str(port)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HEADRACE_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, process)
        url = f"http://127.0.0.1:{port}/v2/models/digits"
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < deadline, "the model is not ready"
            time.sleep(0.1)
        document = httpx.get(url).json()
    finally:
        process.terminate()
        process.wait(timeout=30)

    assert (document["name"], document["versions"]) == ("digits", ["1"])
