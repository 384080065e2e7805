"""Model code of one endpoint: what it can reach, what it can take, and what it leaves behind."""

import contextlib
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from headrace.testing import models
from tests.e2e.attacks.tenants import SEC, Tenants
from tests.e2e.control.system import ROW, replicas

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WITHIN_S: Final = 30.0
MARKERS: Final = itertools.count(86_000)
"""Arguments of `sleep`, by which processes are recognised; each a day or so."""
_SPY: Final = """
import numpy as np


class Spy:
    inputs = {"x": ("BYTES", [1])}
    outputs = {"y": ("BYTES", [1])}

    def infer(self, inputs):
        names = {}
        try:
            exec(inputs["x"][0].decode(), names)
            answer = repr(names["answer"])
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        return {"y": np.array([answer.encode()], dtype=np.object_)}
"""
_DETACH: Final = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "{marker}"])
    os._exit(0)
answer = "started"
"""


def serve_spy(house: Tenants, **fields: object) -> None:
    """Serve the model that runs what it is sent, pushed by the operator of the endpoint."""
    pushed = house.push("operator:sec", SEC, _SPY.encode(), "spy.py", allow_code="true")
    assert pushed.status == 201, pushed
    entry = {"model": pushed.json["reference"], "allow_code": True, "access": "public", **fields}
    put = house.call("operator:sec", "PUT", "/api/v1/endpoints/sec?wait_s=60", entry)
    assert put.status == 200, put
    assert put.json.get("ready", True), put


@pytest.fixture
def spy(building: tuple[Tenants, object]) -> Tenants:
    """The system whose endpoint `sec` runs what it is sent; it stays so for the next test."""
    house, _ = building
    serve_spy(house)
    return house


def run(house: Tenants, code: str) -> str:
    """What the model says after it ran `code`: its `answer`, or what went wrong."""
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [code]}
    status, answer = house.system.infer(SEC, {"inputs": [tensor]})
    assert status == 200, answer
    return str(answer["outputs"][0]["data"][0])


def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def marker() -> Iterator[str]:
    """An argument of `sleep`; what still runs with it afterwards is killed."""
    text = f"{next(MARKERS)}.{os.getpid()}"
    try:
        yield text
    finally:
        for process in sleepers(text):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def sleepers(text: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", text]]


def of_home(house: Tenants) -> list[psutil.Process]:
    """All processes of the system but the control plane."""
    assert house.system.process is not None
    control = psutil.Process(house.system.process.pid)
    return [*{*house.system.processes(), *control.children(recursive=True)}]


def status_of(process: psutil.Process) -> dict[str, str]:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return {
        name: value.strip() for name, _, value in (li.partition(":") for li in text.splitlines())
    }


def replica_of(house: Tenants, name: str) -> psutil.Process:
    return psutil.Process(replicas(house.system.status(), name)[0]["pid"])


# What it starts.


def test_what_a_replica_started_ends_with_it(spy: Tenants) -> None:
    with marker() as text:
        run(spy, _DETACH.format(marker=text))
        assert until(lambda: bool(sleepers(text))), "the model could not start it at all"
        spy.admin("PUT", "/api/v1/endpoints/sec?wait_s=60", {"model": "sec:1"})

        assert until(lambda: not sleepers(text)), "it outlived the replica"


def test_what_a_replica_started_ends_when_the_replica_is_killed(spy: Tenants) -> None:
    with marker() as text:
        run(spy, _DETACH.format(marker=text))
        assert until(lambda: bool(sleepers(text))), "the model could not start it at all"
        replica_of(spy, SEC).kill()

        assert until(lambda: not sleepers(text)), "it outlived the replica"


@pytest.mark.parametrize("ending", ["", "raise ValueError('no model')", "os._exit(3)"])
def test_what_an_inspection_started_ends_with_it(house: Tenants, ending: str) -> None:
    with marker() as text:
        code = f"{_DETACH.format(marker=text)}\n{ending}\n{models.python_double()}"
        house.push("operator:sec", SEC, code.encode(), "model.py", allow_code="true")

        assert until(lambda: not sleepers(text)), "it outlived the inspection"


def test_it_neither_sees_nor_signals_processes_of_others(spy: Tenants) -> None:
    rival = replica_of(spy, "rival")
    assert spy.system.process is not None
    for pid in (rival.pid, spy.system.process.pid):
        read = f"answer = open('/proc/{pid}/cmdline').read()"
        kill = f"import os; answer = os.kill({pid}, 9)"
        assert "headrace" not in run(spy, read)
        assert "Error" in run(spy, kill)
    assert rival.is_running()


# What it reads and writes.


def test_it_has_a_temporary_directory_of_its_own(spy: Tenants) -> None:
    name = f"/tmp/hr-planted-{os.getpid()}"  # noqa: S108  # that it is shared is the attack
    Path(name).write_text("of the host")
    Path(name).chmod(0o666)
    try:
        content = run(spy, f"answer = open({name!r}).read()")
        run(spy, f"open({name + '-own'!r}, 'w').write('of a model'); answer = 1")

        assert "of the host" not in content
        assert not Path(f"{name}-own").exists()
    finally:
        Path(name).unlink()
        Path(f"{name}-own").unlink(missing_ok=True)


def test_it_reads_no_file_of_the_home_and_opens_no_socket_of_others(spy: Tenants) -> None:
    home = spy.system.home
    for path in ("admin-token", "state.db", "run/control.json", "logs", "payloads"):
        assert "Error" in run(spy, f"import os; answer = os.stat({str(home / path)!r})")
    sockets = [*home.rglob("*.sock")]
    assert sockets
    own = f"{replicas(spy.system.status(), SEC)[0]['address'].removeprefix('unix:')}"
    for name in map(str, sockets):
        connect = f"import socket; s = socket.socket(1); answer = s.connect({name!r})"
        if name != own:
            assert "Error" in run(spy, connect), name


# Who it is.


def test_no_process_but_the_control_plane_is_root_or_has_capabilities(spy: Tenants) -> None:
    names = []
    for process in of_home(spy):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError):
            names.append(process.name())
            line, status = " ".join(process.cmdline()), status_of(process)
            assert 0 not in process.uids(), line
            assert int(status["CapEff"], 16) == 0, line
            assert int(status["CapPrm"], 16) == 0, line
            assert status["NoNewPrivs"] == "1", line
    assert any("envoy" in name for name in names)


def test_replicas_of_two_endpoints_are_two_users(spy: Tenants) -> None:
    if os.geteuid() != 0 or spy.system.user.uid != 0:
        pytest.skip("needs root")
    users = {replica_of(spy, name).uids().real for name in (SEC, "rival", "pub")}

    assert len(users) == 3


def acl_for_root_only() -> bytes:
    """`user:0:rwx, other::---`, which root without capabilities may read as well."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, 7, nobody), (0x02, 7, 0), (0x04, 0, nobody), (0x10, 7, nobody)]
    entries.append((0x20, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize("kind", ["an access list for root", "mode 0700"])
def test_what_a_replicas_user_may_not_read_is_not_served_by_root(house: Tenants, kind: str) -> None:
    """A directory that an admin names: the sandbox ends in a refusal, not in uid 0."""
    if house.system.user.uid != 0:
        pytest.skip("needs a control plane that runs as root")
    repository = house.system.home.parent / "closed" / "repo"
    version = repository / SEC / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(_SPY)
    for path in (repository, repository / SEC):
        path.chmod(0o755)
    if kind == "mode 0700":
        version.chmod(0o700)
    else:
        os.chown(version, 59_322, 59_322)
        os.setxattr(version, "system.posix_acl_access", acl_for_root_only())
    entry = {"model": str(repository), "allow_code": True, "access": "public"}
    put = house.call("admin", "PUT", "/api/v1/endpoints/sec", entry)
    roots: list[str] = []

    def is_decided() -> bool:
        for process in of_home(house):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[1:3] == ["-m", "headrace.serving"]:
                    roots.extend(process.cmdline() if 0 in process.uids() else [])
        status = house.system.status()["endpoints"]
        sec = next(endpoint for endpoint in status if endpoint["name"] == SEC)
        states = [r for revision in sec["revisions"] for r in revision["replicas"]]
        return sec["ready"] or any(r["reason"] or r["restarts"] for r in states)

    if put.status == 200:
        until(is_decided)
        is_decided()

    assert roots == []
    if put.status == 200 and replicas(house.system.status(), SEC)[0]["state"] == "ready":
        assert run(house, "import os; answer = os.getuid()") != "0"


# How much it takes.


def memory_bound(process: psutil.Process) -> int | None:
    """Bytes of memory that a process can have; None without a bound."""
    bounds = []
    for line in Path(f"/proc/{process.pid}/limits").read_text().splitlines():
        if line.startswith(("Max address space", "Max data size")):
            soft = line[25:].split()[0]
            bounds += [int(soft)] if soft != "unlimited" else []
    for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines():
        group = Path("/sys/fs/cgroup") / line.rpartition(":")[2].lstrip("/")
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                bounds.append(int((group / name).read_text()))
    return min(bounds, default=None)


def test_a_replica_has_a_memory_bound_and_is_killed_before_the_control_plane(spy: Tenants) -> None:
    assert spy.system.process is not None
    control = Path(f"/proc/{spy.system.process.pid}/oom_score_adj")
    for name in (SEC, "rival", "pub"):
        replica = replica_of(spy, name)
        bound = memory_bound(replica)
        assert bound is not None, f"no bound for {name}"
        assert bound <= psutil.virtual_memory().total
        assert int(Path(f"/proc/{replica.pid}/oom_score_adj").read_text()) > int(
            control.read_text()
        )


@pytest.mark.parametrize("flags", ["PRIVATE", "SHARED"])
def test_more_memory_than_the_bound_costs_others_nothing(spy: Tenants, flags: str) -> None:
    bound = memory_bound(replica_of(spy, SEC))
    assert bound is not None
    before = replica_of(spy, "pub").pid
    # Address space without pages: costs the machine nothing where there is no such bound.
    size = bound + (1 << 20)
    code = f"import mmap as m; answer = len(m.mmap(-1, {size}, m.MAP_{flags} | m.MAP_ANONYMOUS))"

    assert "Error" in run(spy, code)
    assert spy.system.infer("pub")[0] == 200
    assert replica_of(spy, "pub").pid == before


def shape_driven() -> bytes:
    """`n` INT64 [1] to `y` FP32 [n]: the output has as many bytes as the caller says."""
    return models.build(
        [("ConstantOfShape", ["n"], ["y"], {})],
        [("n", 7, [1])],
        [("y", 1, [None])],
    )


def test_one_request_of_a_shape_driven_model_takes_no_memory_from_others(house: Tenants) -> None:
    pushed = house.push("operator:sec", SEC, shape_driven(), "shape.onnx")
    assert pushed.status == 201, pushed
    entry = {"model": pushed.json["reference"], "access": "public"}
    assert house.call("operator:sec", "PUT", "/api/v1/endpoints/sec?wait_s=60", entry).status == 200
    bound = memory_bound(replica_of(house, SEC))
    assert bound is not None, "a caller chooses how much memory it takes"

    def infer(n: int) -> int:
        tensor = {"name": "n", "shape": [1], "datatype": "INT64", "data": [n]}
        status: int = house.system.infer(SEC, {"inputs": [tensor]})[0]
        return status

    assert infer(3) == 200
    assert infer(bound // 4 + (1 << 20)) >= 400
    assert infer(1 << 50) >= 400
    assert house.system.infer("pub")[0] == 200
    assert until(lambda: infer(3) == 200)


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/seccomp/actions_avail").exists(), reason="a kernel without seccomp"
)
def test_model_code_is_behind_a_filter_of_system_calls(spy: Tenants) -> None:
    for name in (SEC, "rival"):
        assert status_of(replica_of(spy, name))["Seccomp"] == "2"
    # ptrace of a child of its own, bpf, keyctl, perf_event_open, userfaultfd: x86-64 numbers.
    if os.uname().machine == "x86_64":
        for number in (101, 321, 250, 298, 323):
            call = f"import ctypes; answer = ctypes.CDLL(None).syscall({number}, 0, 0, 0, 0, 0)"
            assert run(spy, call) == "-1", number


# Pools.

_HAS_ANOTHER_RUNTIME: Final = "import sys; answer = 'onnxruntime' in sys.modules"


def test_model_code_shares_no_process_with_another_endpoint(house: Tenants) -> None:
    """An admin puts a model that runs code into a pool that a model of ONNX is in."""
    serve_spy(house)
    assert run(house, _HAS_ANOTHER_RUNTIME) == "False"
    key = house.admin("POST", "/api/v1/keys", {"name": "pool", "scopes": ["infer:pooled"]})
    url = f"{house.system.where().http_url}/v2/models/pooled/infer"
    entry = {**house.admin("GET", "/api/v1/endpoints/sec")["spec"], "pool": "shared"}

    put = house.call("admin", "PUT", "/api/v1/endpoints/sec?wait_s=60", entry)

    assert house.system.call("POST", url, ROW, token=key["key"])[0] == 200
    if put.status == 200:
        assert until(lambda: len(replicas(house.system.status(), SEC)) == 1)
        assert run(house, _HAS_ANOTHER_RUNTIME) == "False"


# How it is isolated where less is possible.


def test_isolation_is_shown_in_the_status(spy: Tenants) -> None:
    isolation = replicas(spy.system.status(), SEC)[0]["isolation"]

    assert isolation["problems"] == []
    assert isolation["files"] is True
    assert isolation["user"] != 0
