"""A model that does what it should not: it is stopped and says why, and others serve on."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import psutil
import pytest
from onnx import TensorProto, helper

from headrace.control.local.sandbox import FIRST_UID, PROCESSES, UIDS, KernelProbe, libraries
from headrace.core import confine
from headrace.testing import models
from tests.e2e.control.system import ROW, System, Traffic, replicas

pytestmark = pytest.mark.e2e

IS_ROOT = os.geteuid() == 0
ABLE = KernelProbe().result()
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
        known |= {"fork_many": fork_many, "uncover": uncover, "outlive": outlive}
        try:
            said = repr(eval(inputs["x"][0].decode(), known))
        except (OSError, MemoryError) as error:
            said = str(error) or type(error).__name__
        return {"y": np.array([said.encode()], dtype=np.object_)}


def outlive(marker):
    # A process that has left its parent, its session and its group.
    import subprocess, sys

    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = open(os.devnull, "r+")
            sleep = [sys.executable, "-c", "import time; time.sleep(600)", marker]
            subprocess.Popen(sleep, stdin=null, stdout=null, stderr=null, start_new_session=True)
        os._exit(0)
    os.wait()


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


_WITHOUT_NAMESPACES = """
import ctypes, os, struct, sys

# unshare is number 272 on x86-64 and 97 on ARM: it fails with EPERM; all else is allowed.
number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
steps = (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


class Unprivileged(System):
    """A control plane that runs as a user without rights, where the tests have root's.

    `filtered`: it may not make namespaces, as in a container with Docker's seccomp profile.
    """

    filtered: bool = False

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
        if self.filtered:
            command = [sys.executable, "-c", _WITHOUT_NAMESPACES, *command]
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


@pytest.fixture
def filtered() -> Iterator[Unprivileged]:
    if not IS_ROOT or ABLE.namespaces or not ABLE.landlock:
        pytest.skip("needs root, namespaces and Landlock")
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = Unprivileged(Path(directory) / "home")
        system.filtered = True
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
    adjusted = ask(system, "open('/proc/self/oom_score_adj').read()")
    user = int(ask(system, "os.getuid()"))
    killed = ask(system, f"os.kill({system.process.pid}, 9)")
    neighbour = ask(system, f"os.kill({replicas(system.status(), 'm')[0]['pid']}, 9)")

    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{kind}:\\t0000000000000000" in status
    assert "NoNewPrivs:\\t1" in status
    assert "Seccomp:\\t2" in status
    assert adjusted == "'500\\n'"
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


@needs_namespaces
def test_what_a_model_starts_ends_with_its_replica_and_it_shares_no_temporary_files(
    system: System, mlp: Path
) -> None:
    serve(system, mlp)
    marker = f"outlives-{os.getpid()}-{system.home.parent.name}"
    started = ask(system, f"outlive({marker!r})")
    system.wait_for(lambda _: bool(processes_with(marker)))
    temporary = ask(system, f"sorted(set(os.listdir('/tmp')) - {{{system.home.parent.name!r}}})")
    written = ask(system, f"open('/tmp/{marker}', 'w').name")
    status, _ = system.manage("DELETE", "/api/v1/endpoints/spy?wait_s=30")
    system.wait_for(lambda _: not processes_with("spy-1-2.json"))

    assert (started, temporary, written) == ("None", "[]", f"'/tmp/{marker}'")
    assert not Path(f"/tmp/{marker}").exists()  # noqa: S108  # the model's own /tmp
    assert status == 200
    assert processes_with(marker) == []


@needs_namespaces
def test_a_request_that_needs_more_memory_than_the_replica_may_take_fails_alone(
    system: System, mlp: Path
) -> None:
    folder = system.home.parent
    (folder / "large.onnx").write_bytes(shape_driven())
    serve(system, mlp, memory_bytes=1 << 30)
    entry = {"model": str(folder / "large.onnx")}
    status, answer = system.manage("PUT", "/api/v1/endpoints/large?wait_s=60", entry)
    assert status == 201, answer
    allocated = ask(system, "len(bytearray(3 << 30))")
    small, _ = infer_shape(system, 1000)
    large, refusal = infer_shape(system, 3 * 10**9)
    again, _ = infer_shape(system, 1000)
    found = system.status()

    assert "MemoryError" in allocated
    assert (small, again) == (200, 200)
    assert large >= 400, refusal
    assert [replicas(found, name)[0]["restarts"] for name in ("spy", "large")] == [0, 0]
    assert replicas(found, "spy")[0]["isolation"]["memory_bytes"] == 1 << 30
    assert replicas(found, "large")[0]["isolation"]["memory_bytes"] >= 4 << 30


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
@needs_namespaces
def test_root_starts_nothing_that_stays_root(mlp: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        folder = Path(directory)
        slow = folder / "slow.py"
        slow.write_text(f"import time; time.sleep(3)\n{_SPY}")
        pl.DataFrame({"a": [0.0] * 4, "b": [1.0] * 4}).write_parquet(folder / "in.parquet")
        (folder / "rows.py").write_text(models.python_double(delay_s=1.0))
        job = {
            "name": "j",
            "model": str(folder / "rows.py"),
            "input": str(folder / "in.parquet"),
            "output": str(folder / "out" / "{run_id}"),
            "columns": {"x": ["a", "b"]},
            "allow_code": True,
            "chunk_rows": 1,
            "workers": 1,
        }
        stream = {
            "name": "s",
            "source": {"broker": "log:demo", "topics": ["in"]},
            "sink": {"topic": "out"},
            "model": str(mlp),
        }
        document = {
            "version": 1,
            "pools": [{"name": "small"}],
            "endpoints": [
                {"name": "m", "model": str(mlp)},
                {"name": "pooled", "model": str(mlp), "pool": "small"},
            ],
            "jobs": [job],
            "streams": [stream],
        }
        users: dict[str, set[int]] = {}
        try:
            system.start(spec=document)
            status = system.wait_for(lambda s: all(e["ready"] for e in s["endpoints"]))
            assert system.infer("pooled")[0] == 200, "its nursery forks"
            begun, run = system.post("/api/v1/jobs/j/run")
            assert begun < 300, run
            entry = {"model": str(slow), "allow_code": True}
            path = "/api/v1/endpoints/slow"
            asking = threading.Thread(target=lambda: system.manage("PUT", path, entry))
            asking.start()
            until = time.monotonic() + 60
            while time.monotonic() < until and not all(map(users.get, _KINDS)):
                assert system.process is not None
                control = psutil.Process(system.process.pid)
                for process in control.children(recursive=True):
                    note(process, users, " ".join(control.cmdline()))
                time.sleep(0.02)
            asking.join()
            capabilities = capabilities_of(status["gateway"]["pid"])
        finally:
            system.close()

    assert {kind: bool(users.get(kind)) for kind in _KINDS} == dict.fromkeys(_KINDS, True)
    # What launches a sandbox, and what finds a job's files, is root until it is in it.
    assert {kind: user for kind, user in users.items() if 0 in user} == {}
    assert capabilities == 0


_KINDS = {
    "replica": "headrace.serving --settings",
    "inspection": "headrace.serving.inspection",
    "trial": "headrace.serving.pool.fork_server",
    "stream": "headrace.streaming",
    "job": "--chosen=",
    "gateway": "--config-path",
    "watcher": "job_watch",
}


def note(process: psutil.Process, users: dict[str, set[int]], control: str) -> None:
    """Add the user of a process that is no launcher to those of its kind.

    A process with the command line of the control plane is its fork, before it is another program.
    """
    with contextlib.suppress(psutil.Error):
        line, uid = " ".join(process.cmdline()), process.uids().effective
        launches = confine.__file__ in line or ("--confined=" in line and uid == 0)
        if line and line != control and not launches:
            kinds = [kind for kind, text in _KINDS.items() if text in line]
            users.setdefault(kinds[0] if kinds else line, set()).add(uid)


def capabilities_of(pid: int) -> int:
    """All that a process has, or may get."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return sum(int(line.split()[1], 16) for line in lines if line.startswith(wanted))


def test_without_namespaces_an_ordinary_user_gets_landlock_and_a_strict_filter(
    filtered: Unprivileged, mlp: Path
) -> None:
    status = serve(filtered, mlp)
    home, control = filtered.home, filtered.process
    assert control is not None
    isolation = replicas(status, "spy")[0]["isolation"]
    listed = ask(filtered, f"os.listdir({str(home)!r})")
    called = ask(filtered, "socket.create_connection(('127.0.0.1', 9), 2)")
    local = ask(filtered, f"socket.socket(1).connect({str(home / 'run/control.sock')!r})")
    killed = ask(filtered, f"os.kill({control.pid}, 9)")
    forked = ask(filtered, "os.fork()")
    traced = ask(filtered, f"open('/proc/{control.pid}/environ').read()")

    assert (isolation["files"], isolation["network"]) == (True, "seccomp")
    assert isolation["problems"] == []
    assert "Permission denied" in listed
    assert "Address family not supported" in called
    assert "Operation not permitted" in local
    assert "Operation not permitted" in killed
    assert "Operation not permitted" in forked
    assert "Permission denied" in traced
    assert filtered.infer("m")[0] == 200


def test_what_cannot_be_isolated_does_not_start_unless_an_admin_accepted_that(
    filtered: Unprivileged, mlp: Path
) -> None:
    serve(filtered, mlp)
    entry = {"model": "spy:1", "network": True, "allow_code": True}
    path = "/api/v1/endpoints/open?wait_s=0"
    assert filtered.manage("PUT", path, entry)[0] == 201
    refused = filtered.wait_for(lambda s: "cannot isolate" in json.dumps(s["endpoints"]))
    assert filtered.manage("PUT", path, {**entry, "isolation": "best-effort"})[0] == 200
    accepted = filtered.wait_ready()
    isolation = replicas(accepted, "open")[0]["isolation"]

    assert "allow unprivileged user namespaces" in json.dumps(refused["endpoints"])
    assert "`isolation` is `best-effort`" in isolation["problems"]
    assert any("may open the network" in problem for problem in isolation["problems"])


def processes_with(text: str) -> list[int]:
    """The processes of this machine whose command line has `text`."""
    found = psutil.process_iter(["cmdline", "status"])
    return [p.pid for p in found if text in " ".join(p.info["cmdline"] or ())]


def infer_shape(system: System, count: int) -> tuple[int, Any]:
    """What the model `large` answers that is asked for so many numbers."""
    tensor = {"name": "n", "shape": [1], "datatype": "INT64", "data": [count]}
    return system.infer("large", {"inputs": [tensor]})


def shape_driven() -> bytes:
    """An ONNX graph that makes as many numbers as its input says, and adds them."""
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["y"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "shape",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
