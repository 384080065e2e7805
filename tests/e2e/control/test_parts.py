"""Parts that need a real socket or a real process, one at a time."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from headrace.control import ControlFile, read_control_file
from headrace.control.base.home import Home
from headrace.control.base.ownership import ProcessOwner, claim
from headrace.control.base.ports import listen, pick_ports
from headrace.control.base.settings import write_control_file
from headrace.control.gateway.first_request import send_first_request
from headrace.control.gateway.supervisor import (
    EnvoySupervisor,
    GatewayRecord,
    read_gateway_record,
    routes_file,
)
from headrace.control.local.driver import LocalDriver, ReplicaRecord, replica_records
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    make_revision,
)
from headrace.control.model.observed import ProbeResult, ReplicaPhase
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler, probe
from headrace.core import (
    DeadlineExceededError,
    EndpointName,
    FailedPreconditionError,
    InvalidArgumentError,
    ReplicaSettings,
    SystemClock,
    UnavailableError,
)
from headrace.core.fetch import fetch
from headrace.core.processes import (
    Process,
    find_by_arguments,
    python_module,
    resident_bytes,
    start_ticks,
)
from headrace.gateway import EndpointRoute, EnvoyGateway, EnvoySettings, GatewayUnavailableError

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NOBODY = 2**22 + 1
"""A pid that Linux never gives."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Home.at(Path(directory) / "home")


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[str]:
    """A Unix socket that gives each connection the next answer, as it is."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"content-length: 0" not in head:
            await reader.read(65536)
        writer.write(left.pop(0) if left else b"")
        writer.close()

    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        server = await asyncio.start_unix_server(answer, f"{directory}/s")
        async with server:
            yield f"unix:{directory}/s"


def reply(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply_in_chunks(chunks: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (reply(200, b"hello"), b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (
            reply_in_chunks(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"),
            b"abcde",
        ),
    ],
)
async def test_bodies_of_every_framing_are_read(raw: bytes, body: bytes) -> None:
    async with serving(raw) as address:
        answer = await fetch(address, "/", timeout_s=5)

    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
        reply_in_chunks(b"zz\r\n"),
        reply_in_chunks(b"5000\r\n"),
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (70 << 10),
    ],
)
async def test_what_is_no_answer_is_unavailable(raw: bytes) -> None:
    async with serving(raw) as address:
        with pytest.raises(UnavailableError, match="no answer"):
            await fetch(address, "/", timeout_s=5, limit_bytes=1000)


async def test_silence_ends_at_the_deadline() -> None:
    gave_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other side gives up
        writer.close()
        await writer.wait_closed()
        gave_up.set()

    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        async with await asyncio.start_unix_server(silent, f"{directory}/s"):
            with pytest.raises(DeadlineExceededError):
                await fetch(f"unix:{directory}/s", "/", timeout_s=0.05)
            await gave_up.wait()


async def test_a_look_at_a_replica_tells_ready_from_not_and_from_nobody() -> None:
    async with serving(reply(200), reply(503), reply(400)) as address:
        looks = [await probe(address) for _ in range(3)]

    assert looks == [ProbeResult.READY, ProbeResult.NOT_READY, ProbeResult.NOT_READY]
    assert await probe("unix:/nowhere/s") is ProbeResult.REFUSED
    assert await probe("127.0.0.1:1") is ProbeResult.REFUSED


METADATA = reply(200, b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]}')


@pytest.mark.parametrize(
    ("answers", "answered", "status"),
    [
        ([METADATA, reply(200, b"{}")], True, 200),
        ([reply(200, b'{"inputs": [], "outputs": []}')], True, 200),
        ([METADATA, reply(400, b"no")], True, 400),
        ([METADATA, reply(500), reply(200)], True, 200),
        ([METADATA, reply(500), reply(500), reply(500)], True, 500),
        ([reply(503), METADATA, reply(200)], True, 200),
        ([reply(200, b"{"), METADATA, reply(200)], True, 200),
        ([b"", METADATA, reply(200)], True, 200),
    ],
)
async def test_the_first_request_counts_if_the_model_said_something(
    answers: Sequence[bytes], answered: bool, status: int
) -> None:
    async with serving(*answers) as address:
        found = await send_first_request(
            address, "m", revisions=("r",), clock=SystemClock(), example={}
        )

    assert (found.answered, found.status, found.revisions) == (answered, status, ("r",))


def spawn(log: Path, code: str) -> Process:
    return Process.spawn([sys.executable, "-c", code], log=log)


async def test_a_process_is_watched_to_its_end_and_its_words_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    process = spawn(log, "import sys; print('said', file=sys.stderr); sys.exit(7)")
    code = await process.wait()
    process.send(signal.SIGTERM)  # to nobody
    process.close()
    process.close()

    assert code == 7
    assert log.read_text() == "said\n"
    assert start_ticks(process.pid) is None
    assert resident_bytes(process.pid) == 0


async def test_a_process_is_a_session_of_its_own_and_ends_by_signal(tmp_path: Path) -> None:
    process = spawn(tmp_path / "x.log", "import time; time.sleep(60)")
    session = os.getsid(process.pid)
    again = await _wait_cancelled(process)
    process.send(signal.SIGKILL)
    code = await process.wait()
    process.close()

    assert session == process.pid
    assert again
    assert code == -signal.SIGKILL


async def _wait_cancelled(process: Process) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await process.wait()
    except TimeoutError:
        return process.is_running()
    return False


async def test_a_process_is_found_by_how_it_was_started(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)"
    process = spawn(tmp_path / "x.log", code)
    try:
        # Its arguments are there once it is no copy of us any more.
        until = time.monotonic() + 10.0
        while find_by_arguments(["-c", code]) is None and time.monotonic() < until:  # noqa: ASYNC110  # the kernel tells nobody
            await asyncio.sleep(0.01)
        assert find_by_arguments(["-c", code]) == process.pid
        assert find_by_arguments(["-c", "nobody started this"]) is None
    finally:
        process.send(signal.SIGKILL)
        await process.wait()
        process.close()


def revision(path: str = "/m") -> Revision:
    settings = ReplicaSettings(model_name="m", model_version="1", path=path)
    return make_revision(endpoint=EndpointName("m"), model="m:1", settings=settings)


def driver(home: Home) -> LocalDriver:
    # A module that ends at once, whatever it is told.
    return LocalDriver(home=home, socket_dir=home.socket_dir(), module="this")


async def test_a_replica_leaves_a_record_and_the_next_driver_finds_it_dead(home: Home) -> None:
    first = driver(home)
    process = first.start(name="m-1-1", serial=1, revision=revision())
    await process.wait()
    first.note_ready("m-1-1")
    first.note_ready("m-1-1")
    said = first.note_exit("m-1-1")
    settings = first.settings_of("m-1-1")
    second = driver(home)
    [found] = second.adopt_all()
    second.forget("m-1-1")
    second.forget("m-1-1")

    assert "more of those" in said  # the last line of the Zen of Python
    assert settings.uds.endswith("/r1/http.sock")
    assert settings.replica == "m-1-1"
    assert (found.process, found.record.was_ready) == (None, True)
    assert list(home.records.iterdir()) == []
    assert first.process_of("m-1-1") is None
    first.close()


async def test_a_replica_is_restarted_with_the_paths_that_hold_then(home: Home) -> None:
    first = driver(home)
    process = first.start(name="m-1-1", serial=1, revision=revision("/before"))
    await process.wait()
    first.note_exit("m-1-1")
    moved = Home.at(home.root.rename(home.root.with_name("moved")))
    second = driver(moved)
    [found] = second.adopt_all()
    process = second.restart("m-1-1", revision("/after"))
    await process.wait()
    second.note_exit("m-1-1")
    settings = second.settings_of("m-1-1")
    process = second.restart("m-1-1")
    await process.wait()
    [record] = replica_records(moved, ProcessOwner.of(moved.root)).read_all()

    assert found.record.address == second.address_of(1) != first.address_of(1)
    assert (settings.path, settings.replica) == ("/after", "m-1-1")
    assert f"unix:{settings.uds}" == record.address == second.address_of(1)
    assert second.settings_of("m-1-1") == settings
    told = replica_records(moved, ProcessOwner.of(moved.root)).settings_path("m-1-1").read_bytes()
    assert record.settings_sha256 == hashlib.sha256(told).hexdigest()
    assert record.restarts == 2
    first.close()
    second.close()


def is_running_with(pid: int, argument: str) -> bool:
    return argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


async def test_a_crash_between_record_and_start_leaves_no_orphan(home: Home) -> None:
    store = replica_records(home, ProcessOwner.of(home.root))
    arguments = ["-c", "import time; time.sleep(60)", "--settings", str(store.settings_path("x"))]
    orphan = Process.spawn([sys.executable, *arguments], log=home.log_of("x"))
    while not is_running_with(orphan.pid, "--settings"):  # noqa: ASYNC110  # the kernel tells nobody
        await asyncio.sleep(0.01)
    store.write(
        ReplicaRecord(
            name="x",
            serial=4,
            endpoint="m",
            version="1",
            revision_id="r",
            address="unix:/r4",
            settings_sha256="",
        )
    )
    found_driver = _FindsBy(home=home, socket_dir=home.socket_dir(), arguments=arguments)
    try:
        [found] = found_driver.adopt_all()
        assert found.process is not None
        assert found.process.pid == orphan.pid
        assert store.read_all()[0].pid == orphan.pid
        await found_driver.stop(drain_s=5)
        assert not orphan.is_running()
        assert found_driver.names() == []
    finally:
        orphan.send(signal.SIGKILL)
        orphan.close()


class _FindsBy(LocalDriver):
    """Looks for a process by other arguments than those of a real replica."""

    def __init__(self, *, home: Home, socket_dir: Path, arguments: list[str]) -> None:
        super().__init__(home=home, socket_dir=socket_dir)
        self._looks_for = arguments

    def _arguments(self, name: str) -> list[str]:
        del name
        return [sys.executable, *self._looks_for]


async def test_a_damaged_record_is_removed(home: Home) -> None:
    (home.records / "x.json").write_bytes(b"{")

    assert replica_records(home, ProcessOwner.of(home.root)).read_all() == []
    assert list(home.records.iterdir()) == []


async def test_what_ignores_the_order_to_drain_is_killed(home: Home, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
    )
    arguments = ["-c", code]
    stubborn = Process.spawn([sys.executable, *arguments], log=home.log_of("x"))
    await until(mark.exists)
    replica_records(home, ProcessOwner.of(home.root)).write(
        ReplicaRecord(
            name="x",
            serial=1,
            endpoint="m",
            version="1",
            revision_id="r",
            address="unix:/r1",
            settings_sha256="",
            pid=stubborn.pid,
            start_ticks=stubborn.start_ticks,
            home=claim(home.root),
        )
    )
    found = driver(home)
    found.adopt_all()
    await found.stop(drain_s=0.1)

    assert not stubborn.is_running()
    stubborn.close()


class _Publisher:
    """Accepts routes, or refuses them a number of times."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.published: list[tuple[EndpointRoute, ...]] = []

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise GatewayUnavailableError("not now")
        self.published.append(tuple(routes))


def wanting(*, replicas: int = 1) -> DesiredState:
    arm = DesiredArm(revision=revision(), weight=100, replicas=replicas)
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=(arm,))
    return DesiredState(generation=1, endpoints=(endpoint,))


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is waited for is outside of the loop
            await asyncio.sleep(0.01)


async def running(reconciler: Reconciler, during: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(reconciler.run())
    try:
        await during()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_replica_whose_process_cannot_be_started_waits_like_a_crashed_one(
    home: Home,
) -> None:
    class Broken(LocalDriver):
        def start(self, *, name: str, serial: int, revision: Revision) -> Process:
            super().start(name=name, serial=serial, revision=revision).send(signal.SIGKILL)
            raise OSError(12, "Cannot allocate memory")

        def restart(self, name: str, revision: Revision | None = None) -> Process:
            assert revision is not None, "it is wanted"
            raise OSError(12, f"Cannot allocate memory for {name}")

    broken = Broken(home=home, socket_dir=home.socket_dir(), module="this")
    reconciler = Reconciler(
        driver=broken,
        publication=RoutePublication(publisher=_Publisher()),
        clock=SystemClock(),
        drain_timeout_s=1.0,
    )
    reconciler.set_desired(wanting())

    async def during() -> None:
        await until(lambda: any(r.failures >= 3 for r in reconciler.replicas.values()))

    await running(reconciler, during)
    [replica] = reconciler.replicas.values()
    await broken.stop(drain_s=1)

    assert replica.phase is ReplicaPhase.EXITED
    assert "Cannot allocate memory" in replica.reason


async def test_refused_routes_are_published_again(home: Home) -> None:
    publisher = _Publisher(refusals=1)
    local = driver(home)
    reconciler = Reconciler(
        driver=local,
        publication=RoutePublication(publisher=publisher),
        clock=SystemClock(),
        drain_timeout_s=1.0,
    )
    reconciler.set_desired(wanting())
    seen: list[str] = []

    async def during() -> None:
        await until(lambda: bool(reconciler.publication.error))
        seen.append(reconciler.publication.error)
        await until(lambda: reconciler.publication.published is not None)

    await running(reconciler, during)
    await local.stop(drain_s=1)
    local.close()

    assert seen == ["not now"]
    assert reconciler.publication.error == ""
    assert publisher.published[0][0].name == "m"


async def test_publishing_to_a_gateway_that_is_not_there_ends_with_the_reason(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.control.gateway.supervisor._UP_TIMEOUT_S", 0.05)
    keeper = EnvoySupervisor(
        envoy=EnvoyGateway(EnvoySettings(run_dir=home.run / "envoy")),
        owner=ProcessOwner.of(home.root),
        record_path=home.gateway_file,
        routes_path=home.routes_file,
        clock=SystemClock(),
    )

    with pytest.raises(GatewayUnavailableError, match="being started"):
        await keeper.publish(())
    assert not keeper.is_ready
    assert keeper.pid is None


async def test_records_of_a_gateway_that_is_gone_or_unreadable_are_no_gateway(home: Home) -> None:
    record = GatewayRecord(
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()) or 0,
        home=claim(home.root),
        host="h",
        http_port=1,
        grpc_port=2,
        max_body_bytes=3,
        access_log=True,
    )
    home.gateway_file.write_bytes(msgspec.json.encode(record))
    alive = read_gateway_record(home.gateway_file, ProcessOwner.of(home.root))
    home.gateway_file.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(record, start_ticks=1))
    )
    recycled = read_gateway_record(home.gateway_file, ProcessOwner.of(home.root))
    home.gateway_file.write_bytes(b"?")
    home.routes_file.write_bytes(b"?")

    assert alive == record
    assert recycled is None
    assert read_gateway_record(home.gateway_file, ProcessOwner.of(home.root)) is None
    assert routes_file(home.routes_file).load() is None


async def test_free_ports_are_different_and_equal_wishes_are_one() -> None:
    picked = pick_ports("127.0.0.1", {"--http-port": 0, "--grpc-port": 0})
    port = picked["--http-port"]
    same = pick_ports("127.0.0.1", {"--http-port": port, "--grpc-port": port})

    assert picked["--http-port"] != picked["--grpc-port"]
    assert same == {"--http-port": port, "--grpc-port": port}


async def test_a_host_that_is_not_ours_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match=r"nowhere\.invalid"):
        listen("nowhere.invalid", 0, description="metrics", flag="--metrics-port")
    with pytest.raises(FailedPreconditionError, match=r"cannot bind metrics to 192\.0\.2\.1"):
        listen("192.0.2.1", 0, description="metrics", flag="--metrics-port")


async def test_a_taken_port_is_told_with_the_flag_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPreconditionError, match=rf"port {port} .*--admin-port"):
            listen("127.0.0.1", port, description="the management API", flag="--admin-port")


async def test_a_control_file_of_another_process_is_no_control_plane(home: Home) -> None:
    mine = ControlFile(
        pid=os.getpid(),
        started=0.0,
        admin_url="a",
        http_url="b",
        grpc_target="c",
        metrics_url="d",
        start_ticks=start_ticks(os.getpid()) or 0,
        home=claim(home.root),
    )
    write_control_file(home.control_file, mine)
    found = read_control_file(home.root)
    write_control_file(home.control_file, msgspec.structs.replace(mine, start_ticks=1))

    assert found == mine
    assert read_control_file(home.root) is None
    assert read_control_file(home.root / "elsewhere") is None


async def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(FailedPreconditionError, match="HEADRACE_HOME"):
        Home.at(tmp_path / "file")


@pytest.mark.long
@pytest.mark.parametrize("arguments", [[], ["--settings"], ["--settings", "/nowhere.json"]])
async def test_a_control_plane_that_cannot_read_its_orders_says_so(arguments: list[str]) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        python_module("headrace.control", *arguments),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert "usage" in done.stderr or "cannot read /nowhere.json" in done.stderr
