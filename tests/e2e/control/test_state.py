"""The desired state outlives a control plane, in Postgres and from the file of an older version."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.control.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.core import EndpointName, ReplicaSettings
from tests.contract.postgres import PASSWORD, NoPostgresError, PostgresServer, running_postgres
from tests.e2e.control.system import System

pytestmark = pytest.mark.e2e


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    try:
        with running_postgres() as server:
            yield server
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.mark.long
def test_a_system_whose_state_is_in_postgres_outlives_its_control_plane_and_its_server(
    system: System, postgres: PostgresServer, mlp: Path
) -> None:
    url = postgres.tcp_url(PASSWORD)
    system.start({"name": "m", "model": str(mlp)}, state_url=url)
    before = system.wait_ready()
    system.kill_control()
    system.start(state_url=url)
    after = system.wait_ready()

    assert after["generation"] == before["generation"] == 1
    assert system.infer("m")[0] == 200

    postgres.stop()
    code, problem = system.post("/api/v1/apply", {"version": 1, "endpoints": []})
    assert code >= 400
    assert f"postgresql://headrace@127.0.0.1:{postgres.port}/postgres" in json.dumps(problem)
    assert system.infer("m")[0] == 200

    postgres.start()
    code, applied = system.post("/api/v1/apply", {"version": 1, "endpoints": []})
    assert (code, applied["generation"]) == (200, 2)
    assert PASSWORD not in system.log_text() + json.dumps(problem)
    assert not list(system.home.glob("state*"))


@pytest.mark.long
def test_a_home_of_an_older_version_goes_on_where_it_was(system: System, mlp: Path) -> None:
    settings = ReplicaSettings(model_name="m", model_version="1", path=str(mlp))
    name = EndpointName("m")
    revision = make_revision(endpoint=name, model=str(mlp), settings=settings)
    arms = (DesiredArm(revision=revision, weight=100, replicas=1),)
    old = DesiredState(
        generation=7,
        spec={"version": 1, "endpoints": [{"name": "m", "model": str(mlp)}]},
        endpoints=(DesiredEndpoint(name=name, timeout_s=None, arms=arms),),
    )
    system.home.mkdir(mode=0o700)
    file = system.home / "state.json"
    file.write_bytes(msgspec.json.encode({"format": 1, "state": old}))

    system.start()
    status = system.wait_ready()

    assert status["generation"] == 7
    assert system.infer("m")[0] == 200
    assert sorted(path.name for path in system.home.glob("state.json*")) == ["state.json.imported"]
    assert (system.home / "state.db").stat().st_mode & 0o777 == 0o600
