"""How soon after the management API's answer does Envoy act on a new weight?

One endpoint with two versions; its weights are put over the API, and Envoy's own count of route
tables taken is read over its admin socket.
"""

import http.client
import json
import shutil
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Final

import onnx

from bench import processes, systems
from bench.context import Context
from bench.results import SuiteResult, Table, Target
from bench.systems import Ports, headrace
from headrace.control.base.home import Home

_CHANGES: Final = 40
_LIMIT_MS: Final = 20.0
_LONGEST_S: Final = 5.0
_POLL_S: Final = 0.0005
_OK: Final = 200
_TAKEN: Final = "/stats?format=json&type=Counters&filter=rds[.]headrace[.]update_success"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_LONGEST_S)
        self._path = str(path)

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def run(context: Context) -> SuiteResult:
    """Change the weights many times."""
    home = context.home / "steer"
    home.mkdir()
    ports = Ports.free()
    log = home / "up.log"
    spec = _write_spec(context.models["mlp"], home)
    argv = headrace("up", str(spec), *ports.flags(home / "state"), "--detach")
    process = processes.start(argv, part=systems.ENVOY, cores=context.placement.all, log=log)
    try:
        if process.wait(60.0):
            raise processes.StartError(processes.tail(log))
        changes = 5 if context.quick else _CHANGES
        taken = [_change(ports.admin, home, weight) for weight in range(1, changes + 1)]
    finally:
        subprocess.run(
            headrace("down", "--home", str(home / "state")),
            env=processes.environment(systems.ENVOY),
            capture_output=True,
            check=False,
            timeout=60.0,
        )
        processes.stop(process)
    answered = [answer for answer, _ in taken]
    acted = [lag for _, lag in taken]
    rows = [
        _row("the API answers after", answered),
        _row("Envoy acts after the answer", acted),
    ]
    worst = statistics.quantiles(acted, n=10)[-1]
    target = Target(
        text="Envoy acts after the API's answer, 9 of 10",
        value=worst,
        limit=_LIMIT_MS,
        unit="ms",
        is_ceiling=True,
    )
    table = Table(headings=["", "median ms", "least", "most"], rows=rows)
    return SuiteResult(name="steer", table=table, targets=[target])


def _row(name: str, took: list[float]) -> list[str]:
    return [name, f"{statistics.median(took):.1f}", f"{min(took):.1f}", f"{max(took):.1f}"]


def _write_spec(model: Path, home: Path) -> Path:
    """A split over two versions: the same network, its file a comment longer."""
    shutil.copy(model, home / "1.onnx")
    other = onnx.load(str(model))
    other.doc_string = "the second version"
    onnx.save(other, str(home / "2.onnx"))
    spec = home / "headrace.yaml"
    spec.write_text(json.dumps({"version": 1, "endpoints": [_entry(home, 50)]}))  # JSON is YAML
    return spec


def _entry(home: Path, weight: int) -> dict[str, object]:
    versions = [
        {"model": str(home / "1.onnx"), "weight": 100 - weight},
        {"model": str(home / "2.onnx"), "weight": weight},
    ]
    return {"name": "m", "versions": versions}


def _change(admin: int, home: Path, weight: int) -> tuple[float, float]:
    """Milliseconds until the API answers, and from there until Envoy has taken the table."""
    time.sleep(0.05)
    envoy = _UnixConnection(Home.at(home / "state").socket_dir() / "envoy" / "admin.sock")
    before = _taken(envoy)
    api = http.client.HTTPConnection("127.0.0.1", admin, timeout=_LONGEST_S)
    body = json.dumps(_entry(home, weight))
    began = time.perf_counter()
    headers = {"content-type": "application/json", **systems.owner_headers(home / "state")}
    api.request("PUT", "/api/v1/endpoints/m", body, headers)
    response = api.getresponse()
    text = response.read()
    answered = time.perf_counter()
    if response.status != _OK:
        raise processes.StartError(text.decode())
    while _taken(envoy) == before:
        if time.perf_counter() - answered > _LONGEST_S:
            raise processes.StartError("Envoy took no new route table")
        time.sleep(_POLL_S)
    acted = time.perf_counter()
    return (answered - began) * 1e3, (acted - answered) * 1e3


def _taken(envoy: _UnixConnection) -> int:
    """How many route tables Envoy has taken."""
    envoy.request("GET", _TAKEN)
    stats = json.loads(envoy.getresponse().read())["stats"]
    return sum(int(stat["value"]) for stat in stats if "value" in stat)
