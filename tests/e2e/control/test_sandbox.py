"""A model that does what it should not: it is stopped and says why, and others serve on."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.sandbox import FIRST_UID, PROCESSES, UIDS, Probe, libraries
from headrace.serving import confine
from tests.e2e.control.system import ROW, System, Traffic, replicas

pytestmark = pytest.mark.e2e

IS_ROOT = os.geteuid() == 0
ABLE = Probe().result()
LIBRARIES = libraries()  # before other tests' models add to what is imported from
needs_namespaces = pytest.mark.skipif(
    bool(ABLE.namespaces), reason=f"no namespaces: {ABLE.namespaces}"
)
_SPY = """
import os, signal, socket, time

import numpy as np


class Spy:
    inputs = {"x": ("BYTES", [1])}
    outputs = {"y": ("BYTES", [1])}

    def infer(self, inputs):
        known = {"a": "the first request", "os": os, "socket": socket}
        known |= {"fork_many": fork_many, "uncover": uncover}
        try:
            said = repr(eval(inputs["x"][0].decode(), known))
        except OSError as error:
            said = str(error)
        return {"y": np.array([said.encode()], dtype=np.object_)}


def uncover(home):
    # As root of a user namespace of its own: does it see what lies below the cover?
    import ctypes

    reader, writer = os.pipe()
    if os.fork() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        uid, gid = os.getuid(), os.getgid()
        said = [libc.unshare(0x10000000 | 0x20000)]
        if said == [0]:
            maps = {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}
            for name, text in maps.items():
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            said.append(libc.umount2(home.encode(), 2))
            said.append(libc.mount(b"none", home.encode(), None, ctypes.c_ulong(32 | 4096), None))
        os.write(writer, repr((said, os.path.exists(home + "/state.db"))).encode())
        os._exit(0)
    os.wait()
    return os.read(reader, 1000).decode()


def fork_many(most):
    children = []
    try:
        for _ in range(most):
            pid = os.fork()
            if pid == 0:
                time.sleep(20)
                os._exit(0)
            children.append(pid)
    except OSError as error:
        return len(children), str(error)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
"""


class Unprivileged(System):
    """A control plane that runs as a user without rights, where the tests have root's."""

    def start(self, *endpoints: dict[str, Any], **settings: Any) -> None:
        self._starts += 1
        folder = self.home.parent
        path = folder / f"settings-{self._starts}.json"
        path.write_bytes(msgspec.json.encode(self.settings(*endpoints, **settings)))
        for entry in (folder, *folder.rglob("*")):
            os.chown(entry, 1000, 1000)
        spec = {
            "sandbox": "namespaces",
            "contained": False,
            "filtered": False,
            "uid": 1000,
            "network": True,
            "user_ns": ABLE.user_ns,
            "hide": [],
            "keep": [],
            "own": [str(folder)],
            "reach": list(LIBRARIES.needed),
            "also": list(LIBRARIES.others),
            "limits": {},
            "report": str(folder / f"report-{self._starts}"),
        }
        command = [sys.executable, "-m", "headrace.control", "--settings", str(path)]
        launcher = [sys.executable, "-I", "-S", confine.__file__, json.dumps(spec), *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(launcher, stderr=log)


@pytest.fixture(
    params=[pytest.param("as root", marks=pytest.mark.long), "as a user without rights"]
)
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    is_root = request.param == "as root"
    if is_root and not IS_ROOT:
        pytest.skip("needs root")
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        kind = System if is_root or not IS_ROOT else Unprivileged
        system = kind(Path(directory) / "home")
        try:
            yield system
        finally:
            system.close()


def serve(system: System, mlp: Path, **more: Any) -> Any:
    """The models `m` and `spy`; the status when both answer."""
    folder = system.home.parent
    model, spy = folder / "mlp.onnx", folder / "spy.py"
    shutil.copy(mlp, model)
    spy.write_text(_SPY)
    system.start({"name": "m", "model": str(model)}, {"name": "spy", "model": str(spy), **more})
    return system.wait_ready()


def ask(system: System, expression: str) -> str:
    """What the model `spy` finds when it evaluates `expression`, or what stopped it."""
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [expression]}
    status, answer = system.infer("spy", {"inputs": [tensor]})
    assert status == 200, answer
    return str(answer["outputs"][0]["data"][0])


@needs_namespaces
def test_a_replica_sees_its_own_model_and_settings_and_nothing_else_of_the_home(
    system: System, mlp: Path
) -> None:
    status = serve(system, mlp)
    [spy] = replicas(status, "spy")
    home, control = system.home, system.process
    assert control is not None
    listed = {
        name: ask(system, f"sorted(os.listdir({str(home / name)!r}))")
        for name in ("", "run", "run/settings", "artifacts/sha256")
    }
    state = ask(system, f"open({str(home / 'state.db')!r}, 'rb').read(9)")
    others = ask(system, f"open({str(home / 'run/settings/m-1-1.json')!r}).read()")
    around = ask(system, f"os.listdir('/proc/{control.pid}/root')")
    [digest] = json.loads(listed["artifacts/sha256"].replace("'", '"'))
    uncovered = ask(system, f"uncover({str(home)!r})")
    own = ask(system, f"open({str(home / 'artifacts/sha256' / digest / 'spy.py')!r}, 'a')")
    settings = ask(system, f"open({str(home / 'run/settings/spy-1-2.json')!r}, 'a')")

    assert listed[""] == "['artifacts', 'run']"
    assert listed["run"] == "['r2', 'settings']"
    assert listed["run/settings"] == "['spy-1-2.json']"
    assert "No such file or directory" in state
    assert "No such file or directory" in others
    assert "No such file or directory" in around
    assert uncovered.strip("'") in {"([0, -1, -1], False)", "([-1], False)"}
    assert "Read-only file system" in own or "Permission denied" in own
    assert "Read-only file system" in settings
    assert spy["isolation"]["files"] is True
    assert spy["isolation"]["problems"] == []
    assert system.infer("m")[0] == 200


def is_open(found: list[Any]) -> bool:
    """Whether the replicas that may open connections are the only ones."""
    return [(r["isolation"] or {}).get("network") for r in found] == ["allowed"]


@needs_namespaces
def test_a_replica_reaches_nobody_unless_its_endpoint_allows_it(system: System, mlp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        closed = serve(system, mlp)
        refused = ask(system, call)
        entry = {"model": "spy:1", "network": True, "allow_code": True}
        changed, _ = system.manage("PUT", "/api/v1/endpoints/spy?wait_s=30", entry)
        opened = system.wait_for(lambda s: is_open(replicas(s, "spy")))
        allowed = ask(system, call)

    assert "Network is unreachable" in refused
    assert changed == 200
    assert "socket.socket" in allowed
    assert replicas(closed, "spy")[0]["isolation"]["network"] == "namespace"
    assert is_open(replicas(opened, "spy"))


@pytest.mark.long
@needs_namespaces
def test_a_replica_has_no_rights_and_ends_no_process_of_others(system: System, mlp: Path) -> None:
    serve(system, mlp)
    assert system.process is not None
    status = ask(system, "open('/proc/self/status').read()")
    limits = ask(system, "open('/proc/self/limits').read()")
    user = int(ask(system, "os.getuid()"))
    killed = ask(system, f"os.kill({system.process.pid}, 9)")
    neighbour = ask(system, f"os.kill({replicas(system.status(), 'm')[0]['pid']}, 9)")

    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{kind}:\\t0000000000000000" in status
    assert "NoNewPrivs:\\t1" in status
    assert "Seccomp:\\t2" in status
    assert limits.split("Max core file size")[1].split()[0] == "0"
    if isinstance(system, Unprivileged) or not IS_ROOT:
        assert user in {1000, os.getuid()}
    else:
        assert FIRST_UID <= user < FIRST_UID + UIDS
    assert "No such process" in killed
    assert "No such process" in neighbour
    assert system.infer("m")[0] == 200


@pytest.mark.long
@needs_namespaces
def test_ten_thousand_processes_are_not_started_and_others_are_served(
    system: System, mlp: Path
) -> None:
    serve(system, mlp)
    found: list[str] = []
    forking = threading.Thread(target=lambda: found.append(ask(system, "fork_many(10_000)")))
    with Traffic(system, "m").flowing(2) as traffic:
        forking.start()
        forking.join(60)
    count, _, reason = found[0].strip("()").partition(", ")

    assert 100 < int(count) < PROCESSES + 16 * (os.cpu_count() or 1)
    assert "Resource temporarily unavailable" in reason
    assert traffic.failures == []
    assert traffic.versions


@pytest.mark.long
@needs_namespaces
def test_isolated_replicas_are_adopted_and_drained(system: System, mlp: Path) -> None:
    before = serve(system, mlp)
    url = f"{system.where().http_url}/v2/models/m/infer"
    system.kill_control()
    meanwhile, _ = system.call("POST", url, ROW)
    system.start()
    after = system.wait_ready()
    pids = [replicas(status, "spy")[0]["pid"] for status in (before, after)]
    isolation = replicas(after, "spy")[0]["isolation"]
    stopped = system.end_control()

    assert meanwhile == 200
    assert pids[0] == pids[1]
    assert isolation["problems"] == []
    assert stopped == 0, system.log_text()
    assert system.processes() == []
    assert not list((system.home / "run").glob("r*/http.sock"))


@pytest.mark.long
def test_envoy_and_the_control_plane_cannot_gain_rights_and_leave_no_core(
    system: System, mlp: Path
) -> None:
    status = serve(system, mlp)
    assert system.process is not None
    for pid in (system.process.pid, status["gateway"]["pid"]):
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert limits.split("Max core file size")[1].split()[0] == "0"
