"""An endpoint's online store opens nothing of the control plane's, and its secrets stay secret.

Each attempt is one of an operator who may change one endpoint only, and one of an admin who names
such a store by mistake.
"""

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.features import apply_definitions
from headrace.testing import models
from tests.e2e.control.system import System
from tests.e2e.control.test_features_in_requests import DEFINITIONS, INPUTS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECRET = "pl4nted-kafka-pw"  # noqa: S105  # that is the point
LITERAL = "hunter2hunter2"


@pytest.fixture
def running(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[System, dict[str, Any]]]:
    """A system that serves an endpoint without features, and the document of it."""
    monkeypatch.setenv("KAFKA_PW", SECRET)
    file = tmp_path / "features.yaml"
    file.write_text(json.dumps(DEFINITIONS))
    apply_definitions(file, system.home)
    (tmp_path / "matmul.onnx").write_bytes(models.matmul())
    entry = {"name": "sec", "model": str(tmp_path / "matmul.onnx")}
    system.start(entry)
    system.wait_ready()
    yield system, entry
    assert SECRET not in everything_of(system)


def everything_of(system: System) -> str:
    """What the management API and all logs show."""
    paths = ("status", "spec", "events", "endpoints", "endpoints/sec", "endpoints/sec/history")
    answers = [json.dumps(system.get(f"/api/v1/{path}")) for path in (*paths, "trail")]
    logs = [path.read_text() for path in (system.home / "logs").glob("*.log")]
    return "\n".join((*answers, *logs, system.log_text()))


def with_store(entry: dict[str, Any], store: str) -> dict[str, Any]:
    return {**entry, "features": {"service": "people", "inputs": INPUTS, "online_store": store}}


def apply(system: System, entry: dict[str, Any], url: str) -> tuple[int, Any]:
    """Serve `entry` with a store at `url` that an admin named."""
    document = {
        "version": 1,
        "online_stores": [{"name": "main", "url": url}],
        "endpoints": [with_store(entry, "main")],
    }
    return system.post("/api/v1/apply", document)


def operator(system: System) -> str:
    """The token of somebody who operates the endpoint `sec` only."""
    body = {"owner": "ann", "roles": ["operator:sec"]}
    status, answer = system.post("/api/v1/tokens", body)
    assert status in {200, 201}, answer
    return str(answer["token"])


URLS = [
    "sqlite:///{home}/x.db",
    "sqlite:///{home}/run/r2/x.db",
    "sqlite:///{home}/run/envoy/x.db",
    "sqlite:///{home}/logs/x.db",
    "sqlite:///{home}/payloads/x.db",
    "sqlite:////nonexist/${{PATH}}/x.db",
    "sqlite:////proc/${{KAFKA_PW}}/x.db",
    "feast:///{home}/run",
    "${{KAFKA_PW}}",
]


def test_an_operator_names_no_url(running: tuple[System, dict[str, Any]]) -> None:
    system, entry = running
    token = operator(system)
    path = f"{system.where().admin_url}/api/v1/endpoints/sec"
    for template in URLS:
        body = with_store(entry, template.format(home=system.home))
        status, answer = system.call("PUT", path, body, token=token)

        assert status == 400, answer
        assert "should be the name of an online store, not its URL" in json.dumps(answer)


@pytest.mark.parametrize("place", ["", "run/r2", "run/envoy", "logs", "payloads", "sockets"])
def test_a_store_among_files_of_headrace_is_refused_and_nothing_is_opened(
    running: tuple[System, dict[str, Any]], place: str
) -> None:
    system, entry = running
    folder = system.home / place
    if place == "sockets":
        address = system.status()["endpoints"][0]["revisions"][0]["replicas"][0].get("address", "")
        folder = Path(address.removeprefix("unix:")).parent if address else system.home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    before = {path: mode(path) for path in (system.home, folder)}
    status, answer = apply(system, entry, f"sqlite:///{folder}/x.db")
    assert status == 200, answer
    found = system.wait_for(lambda status: "holds files of Headrace" in json.dumps(status))

    assert {path: mode(path) for path in before} == before
    assert not (folder / "x.db").exists()
    assert "move the online store into" in json.dumps(found)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_directory_is_told_and_not_made(
    running: tuple[System, dict[str, Any]], tmp_path: Path
) -> None:
    system, entry = running
    status, answer = apply(system, entry, f"sqlite:///{tmp_path}/no/such/x.db")
    assert status == 200, answer
    system.wait_for(lambda status: "does not exist; create it" in json.dumps(status))

    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////nonexist/${PATH}/x.db", "must not contain `${NAME}`"),
        ("sqlite:////proc/${KAFKA_PW}/x.db", "must not contain `${NAME}`"),
        (f"redis://ann:{LITERAL}@h/0", "contains a password in plain text; use `${NAME}`"),
        (f"hopsworks://h/s?api_key={LITERAL}", "contains the secret 'api_key' in plain text"),
    ],
)
def test_what_a_url_must_not_hold_is_refused(
    running: tuple[System, dict[str, Any]], url: str, said: str
) -> None:
    system, entry = running
    status, answer = apply(system, {**entry, "network": True}, url)

    assert status == 400, answer
    assert said in answer["detail"]
    assert SECRET not in json.dumps(answer)
    assert LITERAL not in json.dumps(answer)
    assert os.environ["PATH"] not in json.dumps(answer)
    assert LITERAL not in everything_of(system)


def test_a_variable_that_is_all_of_a_url_is_told_by_its_name(
    running: tuple[System, dict[str, Any]],
) -> None:
    system, entry = running
    status, answer = apply(system, {**entry, "network": True}, "${KAFKA_PW}")
    assert status == 200, answer
    found = system.wait_for(lambda status: "${KAFKA_PW}" in json.dumps(status))

    assert SECRET not in json.dumps(found)


@pytest.mark.long
def test_the_home_stays_private_where_its_own_store_is_read(
    running: tuple[System, dict[str, Any]],
) -> None:
    system, entry = running
    status, answer = apply(system, entry, f"sqlite:///{system.home}/features/online/online.db")
    assert status == 200, answer
    system.wait_ready()

    assert mode(system.home) == 0o700


def test_a_literal_password_of_a_stored_state_stays_in_use_and_is_not_shown(
    running: tuple[System, dict[str, Any]],
) -> None:
    system, entry = running
    plain, literal = "redis://cache.invalid/0", f"redis://ann:{LITERAL}@cache.invalid/0"
    document = {"version": 1, "online_stores": [{"name": "main", "url": plain}]}
    status, answer = system.post("/api/v1/apply", {**document, "endpoints": [entry]})
    assert status == 200, answer
    system.end_control()
    with contextlib.closing(sqlite3.connect(system.home / "state.db")) as database, database:
        changed = database.execute("UPDATE state SET spec = replace(spec, ?, ?)", (plain, literal))
        assert changed.rowcount == 1
    system.start()
    system.wait_ready()

    shown = system.get("/api/v1/spec")["spec"]
    assert shown["online_stores"][0]["url"] == "redis://ann:***@cache.invalid/0"
    path = "/api/v1/endpoints/sec"
    assert system.manage("PUT", path, {**entry, "timeout_s": 7.0})[0] == 200
    status, answer = system.post("/api/v1/apply", shown)
    assert (status, "contains a password in plain text" in answer["detail"]) == (400, True)
    diff = system.post("/api/v1/diff", {**document, "endpoints": []})
    assert LITERAL not in json.dumps(diff) + everything_of(system)
    state = b"".join(path.read_bytes() for path in system.home.glob("state.db*"))
    assert LITERAL.encode() in state
