"""One endpoint's rollout, told and watched over the API; and the weights that the gateway has."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import Callers

Json = dict[str, Any]

ONLY_ERRORS: Json = {"rejections": None, "latency": None, "predictions": None}
ONLY_LATENCY: Json = {"errors": None, "rejections": None, "predictions": None}
ONLY_PREDICTIONS: Json = {"errors": None, "rejections": None, "latency": None}


def endpoint(model: Path, *, name: str = "m", **settings: object) -> Json:
    """A line of the spec; one request at a time is a batch, so that a fault stays with its own."""
    return {"name": name, "model": str(model), "batching": {"max_batch_size": 1}, **settings}


def canary(*steps: Mapping[str, object], **settings: object) -> Json:
    """A canary that counts soon and needs few samples: loopback is warm after half a second."""
    defaults: Json = {"strategy": "canary", "warmup_s": 0.5, "min_samples": 100}
    return {**defaults, "steps": list(steps), **settings}


@dataclass(slots=True)
class Rollout:
    """The newest rollout of an endpoint."""

    system: System
    name: str = "m"

    def start(self, model: Path, how: Json) -> Json:
        status, answer = self.system.post(
            f"/api/v1/endpoints/{self.name}/rollout", {"model": str(model), "rollout": how}
        )
        assert status == 201, answer
        found: Json = answer
        return found

    def tell(self, verb: str, reason: str = "") -> tuple[int, Any]:
        path = f"/api/v1/endpoints/{self.name}/rollout/{verb}"
        return self.system.post(path, {"reason": reason})

    def status(self) -> Json:
        found: Json = self.system.get(f"/api/v1/endpoints/{self.name}/rollout")
        return found

    def wait_for(self, condition: Callable[[Json], bool], timeout_s: float = 20.0) -> Json:
        deadline = time.monotonic() + timeout_s
        found: Json = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, AssertionError, URLError):
                found = self.status()
                if condition(found):
                    return found
            time.sleep(0.02)
        raise AssertionError(f"still {found}\n{self.system.log_text()[-6000:]}")

    def wait_over(self, timeout_s: float = 20.0) -> Json:
        return self.wait_for(lambda status: bool(status["over"]), timeout_s)

    def wait_phase(self, phase: str, timeout_s: float = 20.0) -> Json:
        return self.wait_for(lambda status: status["phase"] == phase, timeout_s)

    def wait_weight(self, weight: int, timeout_s: float = 20.0) -> Json:
        return self.wait_for(lambda status: status["weight"] == weight, timeout_s)

    def events(self) -> list[Json]:
        found: list[Json] = self.system.get(f"/api/v1/events?endpoint={self.name}")["events"]
        return found


def callers(
    system: System, *, rate: float, name: str = "m", users: int = 100, request_id: str = ""
) -> Callers:
    address = system.where().http_url.removeprefix("http://")
    return Callers(address, name, rate=rate, users=users, request_id=request_id)


def metric(status: Json, name: str) -> Json:
    """What a verdict says of one metric."""
    found: Json = next(m for m in status["verdict"]["metrics"] if m["metric"] == name)
    return found


@dataclass(slots=True)
class RouteFile:
    """Reads what Envoy is told to do, each time that it changes, in a thread of its own."""

    home: Path
    sums: list[int] = field(default_factory=list)
    weights: list[dict[str, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def shares(self, version: str) -> list[int]:
        """A version's weights that the gateway had, in order, its own replicas' only."""
        return [
            sum(w for name, w in split.items() if name.split("~", 1)[1] == version)
            for split in self.weights
        ]

    @contextlib.contextmanager
    def watched(self) -> "Iterator[RouteFile]":
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        (path,) = self.home.rglob("rds.json")
        last = None
        while not self._stop.is_set():
            text = path.read_bytes()
            if text != last:
                last = text
                self._note(json.loads(text))
            time.sleep(0.005)

    def _note(self, document: object) -> None:
        for split in _splits(document):
            found = {cluster["name"]: cluster["weight"] for cluster in split["clusters"]}
            self.sums.append(sum(cluster["weight"] for cluster in split["clusters"]))
            if not self.weights or self.weights[-1] != found:
                self.weights.append(found)


@dataclass(slots=True)
class Capacity:
    """Looks at an endpoint again and again: each version's weight, and its replicas ready then."""

    system: System
    name: str = "m"
    looks: list[dict[str, tuple[int, int]]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> "Iterator[Capacity]":
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.03):
            status = self.system.status()
            found = next(e for e in status["endpoints"] if e["name"] == self.name)
            self.looks.append(
                {
                    revision["version"]: (
                        revision["weight"],
                        sum(replica["state"] == "ready" for replica in revision["replicas"]),
                    )
                    for revision in found["revisions"]
                }
            )


def _splits(document: object) -> Iterator[Json]:
    """All weighted clusters anywhere in a resource."""
    match document:
        case dict():
            for key, value in document.items():
                if key == "weighted_clusters":
                    yield value
                else:
                    yield from _splits(value)
        case list():
            for item in document:
                yield from _splits(item)
