"""A job's model that does what it should not: it is stopped, and its output is whole."""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from headrace.control.local.sandbox import FIRST_UID, UIDS, KernelProbe, SandboxPurpose
from headrace.testing import models
from tests.e2e.control.system import System
from tests.e2e.jobs.commands import Command, digests, rows_of
from tests.e2e.jobs.test_endpoint import endpoints
from tests.e2e.jobs.test_scheduled import begin, over, run_of, wait_for
from tests.processes import command_line

__all__ = ["endpoints"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

IS_ROOT = os.geteuid() == 0
ABLE = KernelProbe().result()
needs_namespaces = pytest.mark.skipif(
    bool(ABLE.namespaces), reason=f"no namespaces: {ABLE.namespaces}"
)
needs_root = pytest.mark.skipif(not IS_ROOT or bool(ABLE.user), reason="needs root")
_SPY = """
import os, pathlib, socket

import numpy as np

ASKED = {asked!r}


def said(expression):
    try:
        return repr(eval(expression, {{"os": os, "socket": socket, "pathlib": pathlib}}))
    except OSError as error:
        return str(error)


class Spy:
    inputs = {{"x": ("FP32", [-1, 2])}}
    outputs = {{"y": ("BYTES", [-1])}}
    batched = True

    def infer(self, inputs):
        found = {{name: said(expression) for name, expression in ASKED.items()}}
        rows = [repr(found).encode()] * len(inputs["x"])
        return {{"y": np.array(rows, dtype=np.object_)}}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pl.DataFrame({"id": [1, 2], "a": [0.0, 1.0], "b": [2.0, 3.0]}).with_columns(
        pl.col("a", "b").cast(pl.Float32)
    ).write_parquet(tmp_path / "in.parquet")
    return tmp_path


def spec(data: Path, model: Path, **changes: Any) -> dict[str, Any]:
    job = {
        "name": "j",
        "model": str(model),
        "input": str(data / "in.parquet"),
        "output": str(data / "out" / "{run_id}"),
        "columns": {"x": ["a", "b"]},
        "keys": ["id"],
        "workers": 1,
        "allow_code": True,
        "retries": 0,
        **changes,
    }
    return {"version": 1, "endpoints": [], "jobs": [job]}


def spy(data: Path, **asked: str) -> Path:
    folder = data / "spy"
    folder.mkdir()
    (folder / "model.py").write_text(_SPY.format(asked=asked))
    return folder


def ended(system: System) -> tuple[str, Any]:
    id_ = begin(system)
    return id_, wait_for(lambda: over(run_of(system, id_)))


def answers(folder: Path) -> Any:
    return eval(rows_of(folder)["y"][0])  # noqa: S307  # what the test's own model said


@needs_namespaces
def test_a_run_sees_its_model_its_input_and_its_output_and_reaches_nobody(
    system: System, data: Path
) -> None:
    home = system.home
    with socket.create_server(("127.0.0.1", 0)) as server:
        model = spy(
            data,
            home=f"sorted(os.listdir({str(home)!r}))",
            run=f"sorted(os.listdir({str(home / 'run')!r}))",
            state=f"open({str(home / 'state.db')!r}, 'rb').read(9)",
            call=f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)",
            model=f"open({str(data / 'spy' / 'model.py')!r}, 'a')",
            input=f"open({str(data / 'in.parquet')!r}, 'r+')",
            user="os.getuid()",
            group="os.getgroups()",
            rights="[l for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNew'))]",
            environment="sorted(os.environ)",
            temporary="os.environ['TMPDIR']",
            adjusted="open('/proc/self/oom_score_adj').read()",
        )
        system.start(spec=spec(data, model))
        system.wait_ready()
        id_, run = ended(system)

    assert (run["state"], run["rows"], run["errors"]) == ("succeeded", 2, 0), run
    found = answers(data / "out" / id_)
    assert found["home"] == "['run']"
    assert found["run"] == "['jobs']"
    assert "No such file or directory" in found["state"]
    assert "Network is unreachable" in found["call"]
    assert "CapEff:\\t0000000000000000" in found["rights"]
    assert "NoNewPrivs:\\t1" in found["rights"]
    assert found["temporary"].strip("'") == str(home / "run" / "jobs" / id_)
    assert found["adjusted"] == "'500\\n'"
    if IS_ROOT and not ABLE.user:
        assert "Permission denied" in found["model"]
        assert "Permission denied" in found["input"]
        assert FIRST_UID + SandboxPurpose.JOB <= int(found["user"]) < FIRST_UID + UIDS
        assert found["group"] == "[]"
        owners = {path.stat().st_uid for path in (data / "out" / id_).rglob("*")}
        assert owners == {0}, "what it wrote is ours again"
    assert not (home / "run" / "jobs" / id_).exists()
    assert not list((home / "run" / "replicas").glob("job~*"))


@pytest.mark.long
@needs_namespaces
def test_how_a_run_is_kept_apart_is_shown_while_it_runs(system: System, data: Path) -> None:
    slow = data / "slow"
    slow.mkdir()
    (slow / "model.py").write_text(models.python_double(delay_s=2.0))
    system.start(spec=spec(data, slow, chunk_rows=1))
    system.wait_ready()
    id_ = begin(system)

    shown = wait_for(lambda: run_of(system, id_)["isolation"])
    (listed,) = system.get("/api/v1/jobs")["jobs"]
    after = wait_for(lambda: over(run_of(system, id_)))

    assert (shown["files"], shown["network"], shown["problems"]) == (True, "namespace", [])
    assert listed["running"][0]["isolation"] == shown
    assert (after["state"], after["isolation"]) == ("succeeded", None)


def processes_of(id_: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(id_ in word for word in process.info["cmdline"] or [])
    ]


@pytest.mark.long
def test_a_confined_run_dies_with_its_watcher_and_goes_on_as_another_process(
    system: System, data: Path
) -> None:
    slow = data / "slow"
    slow.mkdir()
    (slow / "model.py").write_text(models.python_double(delay_s=4.0))
    system.start(spec=spec(data, slow, chunk_rows=1))
    system.wait_ready()
    id_ = begin(system)
    wait_for(lambda: run_of(system, id_)["isolation"])
    (watcher,) = [p for p in processes_of(id_) if any("job_watch" in w for w in command_line(p))]
    others = [p for p in processes_of(id_) if p.pid != watcher.pid]
    watcher.kill()

    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in others))
    run = wait_for(lambda: over(run_of(system, id_)))

    assert others
    assert (run["state"], run["tries"], run["interruptions"]) == ("succeeded", 1, 1), run
    assert rows_of(data / "out" / id_)["id"].to_list() == [1, 2]


@pytest.mark.long
@needs_root
def test_a_run_whose_user_may_not_read_the_input_is_refused(system: System, data: Path) -> None:
    (data / "in.parquet").chmod(0o600)
    model = spy(data, user="os.getuid()", state=f"os.listdir({str(system.home)!r})")
    system.start(spec=spec(data, model))
    system.wait_ready()
    _, run = ended(system)

    assert run["state"] == "failed", run
    assert f"other users cannot read {data / 'in.parquet'}: let others read" in run["message"]
    assert "or run headrace as another user than root" in run["message"]


@needs_root
def test_a_folder_with_files_of_others_is_refused_and_they_stay_theirs(
    tmp_path: Path, data: Path
) -> None:
    model, folder = tmp_path / "m.onnx", data / "taken"
    model.write_bytes(models.matmul(features=2))
    folder.mkdir()
    for name, uid in (("ours", 0), ("theirs", 1234)):
        (folder / name).write_text("here before")
        os.chown(folder / name, uid, uid)
    job: list[str | Path] = ["-m", model, "-i", data / "in.parquet", "-o", folder]
    job += ["--map", "x=a,b", "--run-id", "night"]
    status, _, err = Command([*job, f"--confined={SandboxPurpose.JOB}"], tmp_path / "home").run()

    assert status == 1
    assert "is not empty, and not a job's output (ours, theirs)" in err
    assert [(folder / name).stat().st_uid for name in ("ours", "theirs")] == [0, 1234]
    assert folder.stat().st_uid == 0


@pytest.mark.long
def test_a_run_gets_the_variables_that_its_input_names_and_no_other_secret(
    system: System, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(data))
    monkeypatch.setenv("KAFKA_PASSWORD", "hush")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    model = spy(data, environment="sorted(os.environ)")
    document = spec(data, model, input="${DATA}/in.parquet")
    other = {**document["jobs"][0], "name": "k", "input": "s3://${KAFKA_PASSWORD}/x"}
    document["jobs"].append(other)
    system.start(spec=document)
    system.wait_ready()
    id_, run = ended(system)

    assert run["state"] == "succeeded", run
    names = eval(answers(data / "out" / id_)["environment"])  # noqa: S307  # as above
    assert {"DATA", "HTTPS_PROXY", "PATH"} <= set(names)
    assert "KAFKA_PASSWORD" not in names


_EATER = """
import time

import numpy as np


class Eater:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}
    batched = True

    def infer(self, inputs):
        eaten = [np.ones(1 << 22) for _ in range(64)]  # 2 GiB in parts of 32 MiB
        time.sleep(5)
        return {"y": inputs["x"] + np.float32(len(eaten))}
"""


@pytest.mark.long
def test_a_run_that_takes_more_memory_than_it_may_is_ended_and_that_is_told(
    system: System, data: Path
) -> None:
    eater = data / "eater"
    eater.mkdir()
    (eater / "model.py").write_text(_EATER)
    system.start(spec=spec(data, eater, memory="64MiB", memory_limit="1GiB"))
    system.wait_ready()
    _, run = ended(system)

    assert (run["state"], run["tries"]) == ("failed", 1), run
    assert "took more than 1GiB of memory (`memory_limit`)" in run["message"]
    events = {e["reason"]: e for e in system.get("/api/v1/events")["events"] if e["kind"] == "job"}
    assert set(events) == {"JobTooLarge", "JobFailed"}
    assert events["JobTooLarge"]["data"]["memory_limit"] == "1GiB"
    assert "1GiB" in events["JobFailed"]["message"]


@pytest.mark.long
def test_a_run_of_an_endpoint_reads_the_online_store_as_its_replicas_do(
    endpoints: System, tmp_path: Path
) -> None:
    rows = pl.DataFrame(
        {
            "customer_id": range(30),
            "amount": np.linspace(0, 900, 30, dtype=np.float32),
            "hour": np.arange(30, dtype=np.float32),
        }
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    document = endpoints.get("/api/v1/spec")["spec"]
    job = {
        "name": "j",
        "model": "fraud",
        "input": str(tmp_path / "rows.parquet"),
        "output": str(tmp_path / "out" / "{run_id}"),
        "keys": ["id=customer_id"],
    }
    code, said = endpoints.post("/api/v1/apply", {**document, "jobs": [job]})
    assert code == 200, said
    id_, run = ended(endpoints)
    by_hand = Command(
        ["-m", "fraud", "-i", tmp_path / "rows.parquet", "-o", tmp_path / "by-hand",
         "--keys", "id=customer_id"],
        endpoints.home,
    ).summary()  # fmt: skip

    assert (run["state"], run["rows"], run["errors"]) == ("succeeded", 30, 0), run
    assert by_hand["rows"] == 30
    found = rows_of(tmp_path / "out" / id_)
    assert found["stats__status"].value_counts().height == 2
    assert digests(tmp_path / "out" / id_) == digests(tmp_path / "by-hand")
