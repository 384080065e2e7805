"""Control planes of two hosts, here two homes, with their models in one store."""

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.postgres import PASSWORD, NoPostgresError, PostgresServer, running_postgres
from tests.contract.s3_servers import NoServerError, S3Server, make_bucket, running_moto
from tests.e2e.control.system import System

pytestmark = pytest.mark.e2e


@pytest.fixture
def other() -> Iterator[System]:
    """A second host: another home."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "elsewhere")
        try:
            yield system
        finally:
            system.close()


@pytest.fixture
def state_url() -> Iterator[str]:
    try:
        with running_postgres() as server:
            yield _url(server)
    except NoPostgresError as error:
        pytest.skip(str(error))


def _url(server: PostgresServer) -> str:
    return server.tcp_url(PASSWORD)


@pytest.fixture
def moto() -> Iterator[S3Server]:
    try:
        with running_moto() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def artifacts(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(moto, name)
    for variable, value in moto.environment().items():
        # Those for the store alone: no process of a model may inherit them.
        monkeypatch.setenv(f"HEADRACE_ARTIFACTS_{variable}", value)
    return f"s3://{name}/prod"


@pytest.fixture
def models(mlp: Path, other_mlp: Path) -> tuple[Path, Path]:
    return mlp, other_mlp


def upload(system: System, name: str, path: Path) -> tuple[int, Any]:
    answer = httpx.post(
        f"{system.where().admin_url}/api/v1/models/{name}",
        params={"filename": path.name},
        content=path.read_bytes(),
        headers={
            "authorization": f"Bearer {system.token()}",
            "content-type": "application/octet-stream",
        },
        timeout=30,
    )
    return answer.status_code, answer.json()


def test_what_one_control_plane_took_another_serves(
    system: System, other: System, state_url: str, artifacts: str, models: tuple[Path, Path]
) -> None:
    mlp, other_mlp = models
    system.start({"name": "m", "model": str(mlp)}, state_url=state_url, artifacts=artifacts)
    system.wait_ready()
    code, pushed = upload(system, "m", other_mlp)
    assert (code, pushed["reference"]) == (201, "m:2")
    new = {"version": 1, "endpoints": [{"name": "m", "model": "m:2"}]}
    assert system.post("/api/v1/apply", new)[0] == 200
    system.close()

    other.start(state_url=state_url, artifacts=artifacts)
    status = other.wait_ready()

    assert status["endpoints"][0]["revisions"][0]["model"] == "m:2"
    assert other.infer("m")[0] == 200
    digest = hashlib.sha256(other_mlp.read_bytes()).hexdigest()
    assert (other.home / "artifacts" / "sha256" / digest / "mlp.onnx").is_file()
    versions = other.get("/api/v1/models/m")["models"]
    assert [version["reference"] for version in versions] == ["m:1", "m:2"]
    code, again = upload(other, "m", mlp)
    assert (code, again["reference"]) == (201, "m:1")
    secrets = [os.environ[f"HEADRACE_ARTIFACTS_{name}"] for name in ("AWS_SECRET_ACCESS_KEY",)]
    told = (
        other.log_text() + json.dumps(status) + other.home.joinpath("run/control.json").read_text()
    )
    assert not [secret for secret in secrets if secret in told]


def test_replicas_do_not_inherit_the_stores_credentials(
    system: System, artifacts: str, mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp)}, artifacts=artifacts)
    system.wait_ready()

    environments = []
    for process in system.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            environments.append(Path(f"/proc/{process.pid}/environ").read_bytes())

    assert environments
    assert not [one for one in environments if b"HEADRACE_ARTIFACTS_" in one]
