"""`headrace models fetch` as an init container runs it: a process, a store, a directory."""

import json
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.testing import models
from tests.contract.s3_servers import SECRET, NoServerError, S3Server, make_bucket, running_moto
from tests.ports import free_port

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    try:
        with running_moto() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def artifacts(moto: S3Server) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(moto, name)
    return f"s3://{name}/prod"


@pytest.fixture
def run(moto: S3Server, tmp_path: Path) -> Run:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace.cli", *arguments],
            env={**os.environ, **moto.environment(), **environment},
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_a_pushed_version_is_fetched_by_name_and_by_digest(
    run: Run, artifacts: str, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(models.matmul())
    pushed = run("models", "push", "digits", str(model), "--artifacts", artifacts, "--json")
    assert pushed.returncode == 0, pushed.stderr
    digest = json.loads(pushed.stdout)["digest"]

    first = run(
        "models", "fetch", digest, "--output", "out", "--json", HEADRACE_ARTIFACTS=artifacts
    )
    again = run(
        "models", "fetch", "digits:1", "--artifacts", artifacts, "--output", "out", "--json"
    )

    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    told = json.loads(first.stdout)
    assert told == {
        "reference": digest,
        "digest": digest,
        "path": str(tmp_path / "out" / "m.onnx"),
        "size_bytes": model.stat().st_size,
        "is_new": True,
    }
    assert json.loads(again.stdout) == told | {"reference": "digits:1", "is_new": False}
    found = Path(told["path"])
    assert found.read_bytes() == model.read_bytes()
    assert stat.S_IMODE(found.stat().st_mode) == 0o444


def test_each_failure_has_its_status_and_none_tells_the_secret(
    run: Run, artifacts: str, tmp_path: Path
) -> None:
    del tmp_path
    missing = run("models", "fetch", "digits:1", "--artifacts", artifacts)
    unnamed = run("models", "fetch", "digits:1")
    wrong = run("models", "fetch", "digits:1", "--artifacts", f"s3://k:{SECRET}@models/x")
    away = run(
        "models",
        "fetch",
        "digits:1",
        *("--artifacts", artifacts, "--timeout-s", "4"),
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
    )

    assert (missing.returncode, unnamed.returncode) == (1, 2)
    assert (wrong.returncode, away.returncode) == (2, 3)
    assert "there are: none" in missing.stderr
    assert artifacts in away.stderr
    for done in (missing, unnamed, wrong, away):
        assert SECRET not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_another_home_lists_shows_signs_and_removes(
    run: Run, artifacts: str, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(models.matmul())
    store = ("--artifacts", artifacts)
    assert run("models", "push", "digits", str(model), *store, "--home", "one").returncode == 0
    assert run("models", "keygen", "--out", "keys").returncode == 0
    two = ("--home", "two")

    signed = run("models", "sign", "digits:1", "--key", "keys/model-signing.pem", *store, *two)
    assert signed.returncode == 0, signed.stderr
    # A home that is a copy needs to be told its store once.
    trusted = ("--trusted", "keys/model-signing.pub.pem")
    verified = run("models", "verify", "digits:1", *trusted, "--home", "one")
    assert verified.returncode == 0, verified.stderr
    shown = run("models", "show", "digits:1", "--json", *two)
    assert len(json.loads(shown.stdout)["signatures"]) == 1
    assert run("models", "rm", "digits:1", *two).returncode == 0
    assert json.loads(run("models", "list", "--json", "--home", "one").stdout) == []
    cleaned = run("models", "gc", "--json", *two)
    assert json.loads(cleaned.stdout)["freed_bytes"] == model.stat().st_size  # here, not there
