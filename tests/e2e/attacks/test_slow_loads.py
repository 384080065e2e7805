"""A model that takes long to load delays nobody but whoever asked for it."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
import pytest

from headrace.testing import models
from tests.e2e.attacks.tenants import ONE_USER, SEC, Tenants

pytestmark = [pytest.mark.e2e, pytest.mark.slow, ONE_USER]

LOADS_FOR_S: Final = 60
ROLLED_BACK: Final = {
    "strategy": "canary",
    "steps": [{"weight": 10, "until": "verdict"}],
    "max_duration_s": 6,
    "on_timeout": "rollback",
}


def slow(marker: str, kind: str = "") -> bytes:
    """A Python model whose import waits for a process that has `marker` as an argument."""
    wait = f"import subprocess\nsubprocess.run(['sleep', '{marker}'])\n"
    return (wait + models.python_double() + f"\n# {kind}\n").encode()


def sleepers(marker: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", marker]]


def until(condition: Callable[[], bool], within_s: float = 40.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Request:
    """A request under way in a thread; `leave` breaks it off."""

    house: Tenants
    user: str
    method: str
    path: str
    body: bytes
    status: int = 0
    _connection: http.client.HTTPConnection = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        netloc = urlsplit(self.house.system.where().admin_url).netloc
        self._connection = http.client.HTTPConnection(netloc, timeout=LOADS_FOR_S * 3)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        kind = "json" if self.method == "PUT" else "octet-stream"
        headers = {
            "authorization": f"Bearer {self.house.tokens[self.user]}",
            "content-type": f"application/{kind}",
        }
        with contextlib.suppress(OSError, http.client.HTTPException, AttributeError, ValueError):
            self._connection.request(self.method, self.path, self.body, headers)
            self.status = self._connection.getresponse().status

    @property
    def is_under_way(self) -> bool:
        return self._thread.is_alive()

    def leave(self) -> None:
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(2)
        self._connection.close()
        self._thread.join(10)


@contextlib.contextmanager
def loading(house: Tenants, way: str, marker: str) -> Iterator[Request]:
    """A model that loads for a minute: named by an admin as a path, or uploaded by an operator."""
    if way == "path":
        path = house.system.home.parent / f"slow{marker}.py"
        path.write_bytes(slow(marker))
        path.chmod(0o644)
        body: dict[str, Any] = {"model": str(path), "allow_code": True}
        arguments = ("admin", "PUT", "/api/v1/endpoints/slow", json.dumps(body).encode())
    else:
        upload = f"/api/v1/models/{SEC}?filename=slow.py&allow_code=true"
        arguments = ("operator:sec", "POST", upload, slow(marker))
    request = Request(house, *arguments)
    try:
        assert until(lambda: bool(sleepers(marker))), "it does not load"
        yield request
    finally:
        request.leave()
        for process in sleepers(marker):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def phase(house: Tenants, name: str) -> str:
    return str(house.admin("GET", f"/api/v1/endpoints/{name}/rollout")["phase"])


@pytest.mark.parametrize("way", ["path", "upload"])
def test_changes_and_rollbacks_of_others_complete_while_a_model_loads(
    house: Tenants, way: str
) -> None:
    house.call("admin", "POST", "/api/v1/endpoints/pub/rollout/abort", {})
    house.admin("POST", "/api/v1/endpoints/pub/rollout", {"version": "2", "rollout": ROLLED_BACK})
    assert until(lambda: phase(house, "pub") != "preparing")
    with loading(house, way, f"{LOADS_FOR_S}.{len(way)}") as request:
        entry = house.admin("GET", "/api/v1/endpoints/rival")["spec"]
        changed = house.call("admin", "PUT", "/api/v1/endpoints/rival", {**entry, "timeout_s": 11})
        after_put = request.is_under_way
        own = house.call("operator:sec", "PUT", "/api/v1/endpoints/sec", {"model": "sec:1"})
        after_own = request.is_under_way
        is_rolled_back = until(
            lambda: house.admin("GET", "/api/v1/endpoints/pub")["rollout"]["over"]
        )
        after_rollback = request.is_under_way

    assert (changed.status, own.status) == (200, 200)
    assert after_put, "the change waited for the load"
    assert after_own, "the operator's own change waited for the load"
    assert is_rolled_back
    assert after_rollback, "the rollback waited for the load"
    assert phase(house, "pub") == "rolled_back"


@pytest.mark.parametrize("way", ["path", "upload"])
def test_an_inspection_ends_when_its_caller_leaves(house: Tenants, way: str) -> None:
    marker = f"{LOADS_FOR_S * 2}.{len(way)}"
    with loading(house, way, marker) as request:
        request.leave()

        assert until(lambda: not sleepers(marker)), "it goes on for nobody"


def test_one_caller_does_not_take_all_room_for_uploads(house: Tenants) -> None:
    marker = f"{LOADS_FOR_S * 2}.5"
    upload = f"/api/v1/models/{SEC}?filename=slow.py&allow_code=true"
    requests = [
        Request(house, "operator:sec", "POST", upload, slow(marker, str(number)))
        for number in range(12)
    ]
    try:
        assert until(lambda: bool(sleepers(marker)))
        assert until(lambda: any(request.status for request in requests))
        pushed = house.push("admin", "rival", models.mlp(seed=60))
        others_under_way = [request.is_under_way for request in requests]
        refused = {request.status for request in requests if request.status}

        assert pushed.status == 201, pushed
        assert any(others_under_way)
        assert refused <= {429, 503}
    finally:
        for request in requests:
            request.leave()
        for process in sleepers(marker):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_a_change_that_was_overtaken_is_not_made(house: Tenants) -> None:
    """Two changes of one endpoint: the one that loads longer does not undo the newer one."""
    marker = f"{LOADS_FOR_S}.9"
    path = Path(house.system.home.parent) / "overtaken.py"
    path.write_bytes(slow(marker))
    path.chmod(0o644)
    body = json.dumps({"model": str(path), "allow_code": True}).encode()
    request = Request(house, "admin", "PUT", "/api/v1/endpoints/sec", body)
    try:
        assert until(lambda: bool(sleepers(marker)))
        newer = house.call(
            "operator:sec", "PUT", "/api/v1/endpoints/sec", {"model": "sec:1", "timeout_s": 13}
        )
        assert newer.status == 200, newer
        assert request.is_under_way
        for process in sleepers(marker):
            process.kill()  # the import goes on
        assert until(lambda: not request.is_under_way)
    finally:
        request.leave()
    entry = house.admin("GET", "/api/v1/endpoints/sec")["spec"]

    # Either order is one that somebody could have seen; a mixture is not.
    if request.status == 409 or request.status >= 400:
        assert (entry["model"], entry["timeout_s"]) == ("sec:1", 13)
    else:
        assert "timeout_s" not in entry
