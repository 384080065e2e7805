"""The desired state outlives a control plane, in Postgres and from the file of an older version."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.state import home_url, open_store
from headrace.core import EndpointName, ReplicaSettings
from headrace.streaming.brokers.log.broker import LogBroker
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
    system.home.parent.chmod(0o755)  # replicas of root run as another user
    model = str(shutil.copy(mlp, system.home.parent))
    settings = ReplicaSettings(model_name="m", model_version="1", path=model)
    name = EndpointName("m")
    revision = make_revision(endpoint=name, model=model, settings=settings)
    arms = (DesiredArm(revision=revision, weight=100, replicas=1),)
    old = DesiredState(
        generation=7,
        spec={"version": 1, "endpoints": [{"name": "m", "model": model}]},
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


def test_a_stored_spec_that_apply_refuses_today_goes_on_and_an_event_names_the_mistakes(
    system: System, mlp: Path, tmp_path: Path
) -> None:
    with closing(LogBroker(tmp_path / "log")) as broker:
        broker.create_topic("in", partitions=2)
    streams = [
        {
            "name": name,
            "model": str(mlp),
            "source": {"broker": f"log://{tmp_path}/log", "topics": ["in"], "group": group},
            "sink": {"topic": f"out-{name}"},
        }
        for name, group in (("a", "shared"), ("b", "other"))
    ]
    job = {
        "name": "score",
        "model": str(mlp),
        "input": str(tmp_path / "in.parquet"),
        "output": f"{tmp_path}/out/{{run_id}}",
        "schedule": {"cron": "0,30 3 * * *"},
    }
    endpoint = {"name": "m", "model": str(mlp)}
    spec = {"version": 1, "endpoints": [endpoint], "streams": streams, "jobs": [job]}
    system.start(spec=spec)
    system.wait_ready()
    assert system.end_control() == 0
    _store_as_an_older_version_did(system.home)

    system.start()
    status = system.wait_ready()

    assert {stream["name"]: stream["state"] for stream in status["streams"]} == {
        "a": "running",
        "b": "running",
    }
    assert system.infer("m")[0] == 200
    events = system.get("/api/v1/events")["events"]
    told = [event["message"] for event in events if event["reason"] == "Disagrees"]
    assert len(told) == 2
    assert any("jobs[0].output" in text and "use {run_id}" in text for text in told)
    assert any("streams[1].source.group" in text and "another group" in text for text in told)

    code, problem = system.post("/api/v1/apply", system.get("/api/v1/spec")["spec"])
    assert code == 400
    assert "streams[1].source.group" in json.dumps(problem)
    code, _ = system.manage("PUT", "/api/v1/endpoints/m", {**endpoint, "replicas": 2})
    assert code == 200
    code, _ = system.manage("DELETE", "/api/v1/endpoints/m")
    assert code == 200


def _store_as_an_older_version_did(home: Path) -> None:
    """Give both streams one group, and both runs of a day one folder."""
    with closing(open_store(home_url(home))) as store:
        desired = store.load.blocking()
        spec = json.loads(json.dumps(desired.spec))
        spec["streams"][1]["source"]["group"] = "shared"
        spec["jobs"][0]["output"] = spec["jobs"][0]["output"].replace("{run_id}", "{date}")
        streams = tuple(
            msgspec.structs.replace(
                stream, settings=msgspec.structs.replace(stream.settings, group="shared")
            )
            for stream in desired.streams
        )
        changed = msgspec.structs.replace(
            desired, spec=spec, streams=streams, generation=desired.generation + 1
        )
        store.save.blocking(changed, timestamp=1.0, reason="applied", actor="")
