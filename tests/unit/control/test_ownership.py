"""Which processes does a home act on? Its own only, whatever was copied, moved or forgotten."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace.control.base.home import Home, HomeLock
from headrace.control.base.ownership import HomeIdentity, Observation, ProcessOwner, claim, is_owned
from headrace.control.base.settings import (
    ControlFile,
    ControlSettings,
    original_of,
    read_control_file,
    read_last_control_file,
    with_last_addresses,
    write_control_file,
)
from headrace.control.gateway.supervisor import GatewayRecord, read_gateway_record
from headrace.control.local.driver import LocalDriver, ReplicaRecord, replica_records
from headrace.control.streams.driver import StreamDriver, WorkerRecord
from headrace.core.processes import start_ticks
from headrace.core.spec.access import TlsSpec

identities = st.builds(
    HomeIdentity,
    id=st.sampled_from(["a", "b"]),
    path=st.sampled_from(["/x", "/y"]),
    device=st.integers(1, 2),
    inode=st.integers(1, 2),
    boot=st.sampled_from(["first", "second"]),
)
ticks = st.integers(1, 2)


def record(identity: HomeIdentity | None, *, pid: int = 7, started: int = 1) -> ReplicaRecord:
    return ReplicaRecord(
        name="m-1-1",
        serial=1,
        endpoint="m",
        version="1",
        revision_id="r",
        address="unix:/r1",
        settings_sha256="",
        pid=pid,
        start_ticks=started,
        home=identity,
    )


def control_file(directory: Path, **changes: object) -> ControlFile:
    """The control file of this process, as the control plane of the home at `directory`."""
    content = ControlFile(
        pid=os.getpid(),
        started=1.0,
        admin_url="http://127.0.0.1:18080",
        http_url="http://127.0.0.1:18000",
        grpc_target="127.0.0.1:18001",
        metrics_url="http://127.0.0.1:18002/metrics",
        start_ticks=start_ticks(os.getpid()) or 0,
        home=claim(directory),
        host="127.0.0.1",
        http_port=18000,
        grpc_port=18001,
    )
    return msgspec.structs.replace(content, **changes)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    (path / "run").mkdir(parents=True)
    claim(path)
    return path


def copy_of(home: Path) -> Path:
    copy = home.parent / "copy"
    shutil.copytree(home, copy)
    return copy


@given(
    home=identities, writer=identities, started=ticks, runs=st.none() | ticks, names=st.booleans()
)
def test_a_recorded_process_is_owned_by_the_directory_and_boot_that_recorded_it(
    *, home: HomeIdentity, writer: HomeIdentity, started: int, runs: int | None, names: bool
) -> None:
    owned = is_owned(
        record(writer, started=started), home, Observation(start_ticks=runs, names_home=names)
    )

    same_directory = (home.id, home.device, home.inode) == (writer.id, writer.device, writer.inode)
    assert owned == (runs == started and same_directory and home.boot == writer.boot)


@given(home=st.none() | identities, started=ticks, runs=st.none() | ticks, names=st.booleans())
def test_a_process_of_an_older_release_is_owned_if_its_command_line_names_the_home(
    *, home: HomeIdentity | None, started: int, runs: int | None, names: bool
) -> None:
    owned = is_owned(
        record(None, started=started), home, Observation(start_ticks=runs, names_home=names)
    )

    assert owned == (runs == started and names)


@given(identities, identities)
def test_a_home_elsewhere_in_another_directory_is_never_the_former_one(
    home: HomeIdentity, former: HomeIdentity
) -> None:
    continues = home.continues(former)

    assert not continues or (home.id, home.inode) == (former.id, former.inode)
    assert not continues or home.path == former.path or home.device == former.device
    assert home.continues(home)


def test_an_identity_lasts_over_starts_moves_and_links(home: Path) -> None:
    first = claim(home)
    again = claim(home)
    link = home.parent / "link"
    link.symlink_to(home)
    through_link = ProcessOwner.of(link).identity
    moved = claim(home.rename(home.parent / "moved"))

    assert first == again == through_link
    assert moved == msgspec.structs.replace(first, path=str(home.parent / "moved"))


def test_a_copy_gets_an_id_and_loses_the_records_of_the_original(home: Path) -> None:
    (home / "run" / "replicas").mkdir()
    (home / "run" / "replicas" / "m-1-1.json").write_bytes(b"{}")
    (home / "run" / "control.lock").write_bytes(b"1\n")
    write_control_file(home / "run" / "control.json", control_file(home))
    copy = copy_of(home)
    before = original_of(copy)
    identity = claim(copy)

    assert before == str(home)
    assert identity.id != claim(home).id
    assert claim(copy) == identity
    assert sorted(p.name for p in (copy / "run").rglob("*")) == ["control.lock", "replicas"]
    assert (home / "run" / "replicas" / "m-1-1.json").exists()
    assert original_of(copy) == ""


def test_an_id_of_the_older_release_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "planner-id").write_text("0123456789abcdef")
    identity = claim(tmp_path)

    assert identity.id == "0123456789abcdef"
    assert not (tmp_path / "planner-id").exists()


def test_the_control_file_of_a_running_home_is_read_at_home_and_nowhere_else(home: Path) -> None:
    content = control_file(home)
    write_control_file(home / "run" / "control.json", content)
    copy = copy_of(home)

    assert read_control_file(home) == content
    assert read_last_control_file(home) == content
    assert read_control_file(copy) is None
    assert read_last_control_file(copy) is None
    assert ProcessOwner.of(copy).adopt(content) is None
    process = ProcessOwner.of(home).adopt(content)
    assert process is not None
    process.close()


def test_a_copy_at_the_path_of_a_home_that_was_moved_away_is_not_that_home(home: Path) -> None:
    content = control_file(home)
    write_control_file(home / "run" / "control.json", content)
    away = home.rename(home.parent / "away")
    shutil.copytree(away, home)

    assert read_control_file(home) is None
    assert read_control_file(away) == content


def test_the_control_file_of_a_killed_control_plane_is_the_last_one(home: Path) -> None:
    content = control_file(home, start_ticks=1)
    write_control_file(home / "run" / "control.json", content)

    assert read_control_file(home) is None
    assert read_last_control_file(home) == content


def test_a_control_plane_of_an_older_release_is_found_by_the_lock_that_it_holds(home: Path) -> None:
    old = control_file(home, home=None)
    write_control_file(home / "run" / "control.json", old)
    (home / "run" / "control.lock").write_text(f"{os.getpid()}\n")
    before = read_control_file(home)
    lock = HomeLock(home / "run" / "control.lock")
    lock.acquire()
    try:
        copy = copy_of(home)
        at_home, at_copy = read_control_file(home), read_control_file(copy)
    finally:
        lock.release()

    assert before is None
    assert at_home == old
    assert at_copy is None


def test_a_process_of_an_older_release_is_found_by_a_file_of_the_home(home: Path) -> None:
    settings = home / "run" / "settings" / "m-1-1.json"
    command = [sys.executable, "-c", "input()", str(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:  # noqa: S603  # our own
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        old = record(None, pid=child.pid, started=start_ticks(child.pid) or 0)
        at_home, at_copy = (
            ProcessOwner.of(home).is_running(old),
            ProcessOwner.of(copy_of(home)).is_running(old),
        )
        child.communicate(b"\n")

    assert at_home
    assert not at_copy


def test_a_copy_ends_and_removes_nothing_of_the_originals_replicas(home: Path) -> None:
    socket = home / "run" / "r1" / "http.sock"
    socket.parent.mkdir()
    socket.touch()
    original = Home.at(home)
    ours = record(claim(home), pid=os.getpid(), started=start_ticks(os.getpid()) or 0)
    replica_records(original, ProcessOwner.of(original.root)).write(
        msgspec.structs.replace(ours, address=f"unix:{socket}")
    )
    copy = Home.at(copy_of(home))
    driver = LocalDriver(home=copy, socket_dir=copy.run)
    [adopted] = driver.adopt_all()
    asyncio.run(driver.stop(drain_s=0.0))
    at_home = LocalDriver(home=original, socket_dir=original.run)
    [running] = at_home.adopt_all()
    at_home.close()

    assert adopted.process is None
    assert list(copy.records.iterdir()) == []
    assert socket.exists()
    assert running.process is not None
    assert running.process.pid == os.getpid()


def test_a_copy_adopts_no_stream_worker_of_the_original(home: Path) -> None:
    def driver(root: Path) -> StreamDriver:
        return StreamDriver(
            run=root / "run" / "streams", sockets=root / "run", home=root, log_of=root.joinpath
        )

    (home / "run" / "streams").mkdir()
    worker = WorkerRecord(
        stream="s",
        index=0,
        serial=1,
        revision="r",
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()) or 0,
        home=claim(home),
    )
    driver(home).note(worker)
    [(_, at_copy)] = driver(copy_of(home)).adopt()
    [(_, at_home)] = driver(home).adopt()

    assert at_copy is None
    assert at_home is not None
    at_home.close()


def test_a_copy_knows_no_gateway_of_the_original(home: Path) -> None:
    gateway = GatewayRecord(
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()) or 0,
        host="127.0.0.1",
        http_port=1,
        grpc_port=2,
        max_body_bytes=3,
        access_log=False,
        home=claim(home),
    )
    (home / "run" / "gateway.json").write_bytes(msgspec.json.encode(gateway))
    copy = copy_of(home)

    assert read_gateway_record(home / "run" / "gateway.json", ProcessOwner.of(home)) == gateway
    assert read_gateway_record(copy / "run" / "gateway.json", ProcessOwner.of(copy)) is None


def test_processes_are_adopted_by_their_owner_only() -> None:
    """Every signal to a process that a file names needs `Process.adopt`."""
    package = Path(headrace.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "Process.adopt(" in path.read_text(encoding="utf-8")
    }

    assert users == {"control/base/ownership.py"}


def last_addresses(settings: ControlSettings, home: Path, **stored: object) -> ControlSettings:
    return with_last_addresses(settings, control_file(home), stored)


def test_addresses_of_a_killed_control_plane_hold_where_no_flag_says_others(home: Path) -> None:
    found = last_addresses(ControlSettings(home="h"), home)
    flags = last_addresses(ControlSettings(home="h", http_port=0, admin_port=9), home)
    without = with_last_addresses(ControlSettings(home="h"), None, {})

    assert (found.host, found.http_port, found.grpc_port) == ("127.0.0.1", 18000, 18001)
    assert (found.metrics_port, found.admin_port) == (18002, 18080)
    assert (flags.http_port, flags.grpc_port, flags.admin_port) == (0, 18001, 9)
    assert (without.http_port, without.grpc_port, without.host) == (None, None, None)
    assert (without.metrics_port, without.admin_port) == (8002, 8080)


def test_encrypted_port_of_a_killed_control_plane_does_not_come_back_in_plain_text(
    home: Path,
) -> None:
    tls, admin_tls, other = (
        TlsSpec(certificate_file=f"/{name}.pem", key_file=f"/{name}.key") for name in "abc"
    )
    last = msgspec.structs.replace(control_file(home), tls=tls, admin_tls=admin_tls)
    found = with_last_addresses(ControlSettings(home="h"), last, {})
    flags = with_last_addresses(ControlSettings(home="h", tls=other), last, {})

    assert (found.tls, found.admin_tls) == (tls, admin_tls)
    assert (flags.tls, flags.admin_tls) == (other, admin_tls)


def test_a_port_that_was_changed_in_the_spec_wins_over_that_of_before(home: Path) -> None:
    document = {"version": 1, "gateway": {"http_port": 9000, "grpc_port": 9001}}
    settings = ControlSettings(home="h", spec=document)
    found = last_addresses(settings, home, gateway={"http_port": 8000, "grpc_port": 9001})

    assert (found.http_port, found.grpc_port) == (None, 18001)
