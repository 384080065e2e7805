"""A real copy of a pool: models that misbehave while others answer, memory, an orderly end."""

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from headrace.testing import models
from tests.e2e.serving.pools import PoolCopy, entry, python_model, running_pool
from tests.e2e.serving.raw import BODY
from tests.ports import free_port
from tests.processes import command_line

pytestmark = pytest.mark.e2e

LARGE = 64 << 20


def wait_until(is_so: Callable[[], bool], what: str, *, within_s: float = 15.0) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@contextmanager
def asking(copy: PoolCopy, name: str) -> Iterator[list[int]]:
    """Another caller of the model `name`, without a pause; the statuses it got."""
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        transport = httpx.HTTPTransport(uds=copy.socket)
        with httpx.Client(transport=transport, base_url="http://pool", timeout=10) as client:
            while not stop.is_set():
                answer = client.post(f"/v2/models/{name}/infer", content=BODY)
                statuses.append(answer.status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def processes_below(copy: PoolCopy) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(copy.process.pid).children(recursive=True)
    return found


def test_models_that_crash_stall_or_fail_hurt_nobody_else(tmp_path: Path, mlp: Path) -> None:
    bad = {
        "exits": "import os; os._exit(3)",
        "crashes": "import ctypes; ctypes.string_at(0)",
        "stalls": "import time; time.sleep(1000)",
        "raises": "raise ValueError('no weights')",
        "quits": "raise SystemExit(1)",
    }
    files = {name: python_model(tmp_path, name, first=code) for name, code in bad.items()}
    with running_pool(tmp_path, load_timeout_s=2) as copy:
        copy.declare(entry("m", mlp), *(entry(name, file) for name, file in files.items()))
        assert copy.client.post("/v2/models/m/infer", content=BODY).status_code == 200
        with asking(copy, "m") as statuses:
            answers = {name: copy.infer(name) for name in bad}
            wait_until(lambda: copy.model("stalls").phase == "failed", "the trial is ended")
        reasons = {name: copy.model(name).reason for name in bad}

    assert {answer.status_code for answer in answers.values()} == {503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers.values())
    assert set(statuses) == {200}
    assert len(statuses) > 100
    assert "exit status 3" in reasons["exits"]
    assert "SIGSEGV" in reasons["crashes"]
    assert reasons["stalls"] == "it did not load within 2 s"
    assert "ValueError" in reasons["raises"]
    assert "SystemExit" in reasons["quits"]
    assert copy.process.returncode == 0


@pytest.mark.long
def test_models_that_evict_each_other_all_answer(tmp_path: Path, mlp: Path) -> None:
    names = [f"m{i}" for i in range(30)]
    chosen = random.Random(7).choices(names, k=1000)  # noqa: S311  # the same each time
    with running_pool(tmp_path, max_loaded=5) as copy:
        copy.declare(*(entry(name, mlp) for name in names))
        url = "/v2/models/{}/infer"
        with ThreadPoolExecutor(8) as callers:
            answers = list(
                callers.map(lambda name: copy.client.post(url.format(name), content=BODY), chosen)
            )
        loads = sum(model.loads for model in copy.report().models)

    failed = [(n, a.text) for n, a in zip(chosen, answers, strict=True) if a.status_code != 200]
    assert failed == []
    assert loads > 300  # nearly every request has to make room
    assert "freeing failed" not in copy.log_text()


@pytest.mark.long
def test_onnx_models_and_python_models_are_hosted_together(tmp_path: Path, mlp: Path) -> None:
    lookup = tmp_path / "lookup.onnx"
    lookup.write_bytes(models.lookup())
    twice, thrice = python_model(tmp_path, "twice"), python_model(tmp_path, "thrice", by=3)
    hosted = {"m": mlp, "lookup": lookup, "twice": twice, "thrice": thrice}
    with running_pool(tmp_path, max_loaded=2) as copy:
        copy.declare(*(entry(name, path) for name, path in hosted.items()))
        for _ in range(2):
            assert copy.client.post("/v2/models/m/infer", content=BODY).status_code == 200
            assert copy.infer("twice").json()["outputs"][0]["data"] == [2, 4]
            assert copy.infer("thrice").json()["outputs"][0]["data"] == [3, 6]
            assert copy.client.get("/v2/models/lookup").json()["inputs"]
        report = copy.report()

    assert sum(model.phase == "loaded" for model in report.models) == 2
    assert sum(model.unloads for model in report.models) >= 4
    assert "Traceback" not in copy.log_text()


@pytest.mark.long
def test_memory_comes_back_when_a_model_is_unloaded(tmp_path: Path) -> None:
    load = f"self.weights = np.ones({LARGE}, np.uint8)"
    files = {name: python_model(tmp_path, name, load=load) for name in ("a", "b", "c")}
    with running_pool(tmp_path, memory_bytes=LARGE * 3 // 2) as copy:
        copy.declare(*(entry(name, file) for name, file in files.items()))
        before = copy.rss_bytes()
        sizes = []
        for name in ("a", "b", "c", "a"):
            assert copy.infer(name).status_code == 200
            sizes.append(copy.rss_bytes())
            assert copy.model(name).size_bytes == pytest.approx(LARGE, rel=0.1)

    assert all(size - before < LARGE * 3 // 2 for size in sizes)


@pytest.mark.long
def test_what_tries_models_may_die_and_is_started_again(tmp_path: Path) -> None:
    one, other = python_model(tmp_path, "one"), python_model(tmp_path, "other")
    with running_pool(tmp_path) as copy:
        copy.declare(entry("one", one), entry("other", other))
        assert copy.infer("one").status_code == 200
        (nursery,) = processes_below(copy)
        nursery.kill()
        assert copy.infer("other").status_code == 200
        assert [process.pid for process in processes_below(copy)] != [nursery.pid]


@pytest.mark.long
def test_nothing_outlives_a_pool_that_is_killed_while_a_model_stalls(tmp_path: Path) -> None:
    child = "import subprocess, time; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"
    file = python_model(tmp_path, "stalls", first=child)
    with running_pool(tmp_path, load_timeout_s=300) as copy:
        copy.declare(entry("stalls", file))
        with pytest.raises(httpx.ReadTimeout):
            copy.infer("stalls", timeout=1.0)
        wait_until(
            lambda: any("sleep" in command_line(process) for process in processes_below(copy)),
            "the model started what it starts",
        )
        below = processes_below(copy)
        copy.process.kill()
        gone, alive = psutil.wait_procs(below, timeout=10)

    assert len(gone) == 4  # the nursery, the keeper, the trial, and what it started
    assert alive == []


@pytest.mark.long
def test_a_pool_told_to_stop_answers_those_who_wait_for_a_load(tmp_path: Path) -> None:
    slow = python_model(tmp_path, "slow", first="import time; time.sleep(0.5)\n")
    with running_pool(tmp_path) as copy:
        copy.declare(entry("slow", slow))
        answers: list[int] = []
        caller = threading.Thread(target=lambda: answers.append(copy.infer("slow").status_code))
        caller.start()
        transport = httpx.HTTPTransport(uds=copy.socket)
        with httpx.Client(transport=transport, base_url="http://pool") as other:
            wait_until(
                lambda: '"waiting":1' in other.get("/internal/models").text, "a request waits"
            )
        copy.process.terminate()
        caller.join()
        assert copy.process.wait(20) == 0

    assert answers == [200]


@pytest.mark.long
def test_a_pool_listens_on_tcp_and_for_metrics_too(tmp_path: Path, mlp: Path) -> None:
    port, metrics_port = free_port(), free_port()
    with running_pool(tmp_path, port=port, metrics_port=metrics_port) as copy:
        copy.declare(entry("m", mlp))
        url = f"http://127.0.0.1:{port}"
        answer = httpx.post(f"{url}/v2/models/m/infer", content=BODY)
        outside = httpx.get(f"{url}/internal/models")
        index = httpx.post(f"{url}/v2/repository/index").json()
        metrics = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        asked_by_control = httpx.get(f"{url}/metrics?exemplars").text

    assert answer.status_code == 200
    assert outside.status_code == 404
    assert index == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
    assert 'nv_inference_request_success{model="m",version="1"} 1' in metrics
    assert 'nv_inference_request_success{model="m",version="1"} 1' in asked_by_control


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ('{"name": "small", "memory": 1}', 2),
        ("[]", 2),
        ('{"name": "small", "port": PORT}', 4),
    ],
)
def test_a_pool_that_cannot_start_says_why(tmp_path: Path, settings: str, status: int) -> None:
    file = tmp_path / "pool.json"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file.write_text(settings.replace("PORT", str(taken.getsockname()[1])))
        done = subprocess.run(
            [sys.executable, "-m", "headrace.serving", "--settings", str(file)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert done.returncode == status
    assert "cannot" in done.stderr
