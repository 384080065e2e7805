"""Backups: what is contained, what is refused, and what a restored home is like."""

import errno
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.app import backup
from headrace.control.app.backup import BackupManifest, check_backup, restore_backup, write_backup
from headrace.control.base.home import RESTORING, Home
from headrace.control.base.ownership import claim
from headrace.control.state import home_url, open_store
from headrace.core import (
    AlreadyExistsError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.registry import Registry
from tests.unit.control.conftest import inspect


def nobody(_what: str, _done: int, _total: int) -> None:
    """Nobody watches."""


def back_up(home: Path, out: Path, **options: Any) -> backup.Backup:  # noqa: ANN401  # as declared there
    return write_backup(
        home, out, **{"state_url": "", "payloads": False, "now": 1.0, "progress": nobody, **options}
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with everything, as files."""
    home = Home.at(tmp_path / "home").root
    claim(home)
    open_store(home_url(home)).close()
    registry = Registry(home, inspect)
    model = tmp_path / "m.onnx"
    for number in (1, 2):
        model.write_bytes(b"model %d" % number)
        registry.push("m", model)
        registry.push("M", model)  # of another name, where case counts
    for name, data in {
        "admin-token": b"hrt_secret\n",
        "alerts.json": b"{}",
        "trail-checkpoint.json": b"{}",
        "history.bin": bytes(range(256)),
        "payloads/hash.key": b"key",
        "logs/control.log": b"line\n",
        "run/control.json": b"{}",
        "features/served/s/1.arrow": b"rows",
        ".half-written": b"x",
    }.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return home


def contents(home: Path) -> dict[str, bytes]:
    """Every plain file of a home."""
    files = (path for path in home.rglob("*") if path.is_file())
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files}


def test_a_restored_home_has_all_that_is_needed_and_no_process_or_identity(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.tar"
    result = back_up(home, out)
    manifest = restore_backup(out, tmp_path / "new" / "home", progress=nobody)
    restored, original = contents(tmp_path / "new" / "home"), contents(home)

    assert {name: data for name, data in restored.items() if name != "state.db"} == {
        name: data
        for name, data in original.items()
        if (name.split("/")[0] in {"artifacts", "registry"} - {"tmp"} and ".lock" not in name)
        or name in {"admin-token", "alerts.json", "trail-checkpoint.json", "history.bin"}
    }
    assert manifest == result.manifest == check_backup(out, progress=nobody).manifest
    assert (manifest.models, manifest.state) == (("M:1", "M:2", "m:1", "m:2"), "sqlite")
    assert manifest.left_out == ("logs", "features/served", "payloads")
    assert out.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home", "m.onnx", "new"]
    new = tmp_path / "new" / "home"
    assert claim(new).id != claim(home).id
    assert [str(v.reference) for v in Registry(new).list("m")] == ["m:1", "m:2"]
    for version in Registry(new).list():
        Registry(new).verify(version)
    assert {path.stat().st_mode & 0o077 for path in new.glob("*") if path.is_file()} == {0}
    assert new.stat().st_mode & 0o777 == 0o700


def test_payload_logs_are_contained_where_asked_for(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b.tar", payloads=True)
    restore_backup(tmp_path / "b.tar", tmp_path / "new", progress=nobody)

    assert (tmp_path / "new" / "payloads" / "hash.key").read_bytes() == b"key"


def test_a_database_is_copied_whole_while_another_connection_writes(
    home: Path, tmp_path: Path
) -> None:
    path = home / "streams" / "s" / "log.db"
    path.parent.mkdir(parents=True)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO t VALUES (2)")
    back_up(home, tmp_path / "b.tar")
    writer.close()
    restore_backup(tmp_path / "b.tar", tmp_path / "new", progress=nobody)
    copy = sqlite3.connect(tmp_path / "new" / "streams" / "s" / "log.db")
    rows = copy.execute("SELECT x FROM t").fetchall()
    copy.close()

    assert rows == [(1,)]
    assert not list((tmp_path / "new").rglob("*-wal"))


def test_a_state_in_postgres_is_said_to_be_missing(home: Path, tmp_path: Path) -> None:
    result = back_up(home, tmp_path / "b.tar", state_url="postgresql://u:secret@db/headrace")

    assert result.manifest.state == "postgres"
    assert "home/state.db" not in result.manifest.files
    assert b"secret@" not in (tmp_path / "b.tar").read_bytes()


def test_a_state_in_a_file_elsewhere_becomes_that_of_the_home(home: Path, tmp_path: Path) -> None:
    (home / "state.db").rename(tmp_path / "elsewhere.db")
    result = back_up(home, tmp_path / "b.tar", state_url=f"sqlite:///{tmp_path}/elsewhere.db")

    assert (result.manifest.state, result.manifest.generation) == ("sqlite", 0)
    assert "home/state.db" in result.manifest.files


def test_a_link_in_the_home_is_said_to_be_missing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (home / "features" / "online").symlink_to(tmp_path / "disk")
    (home / "linked.json").symlink_to("/etc/passwd")
    result = back_up(home, tmp_path / "b.tar")

    assert result.manifest.outside == (
        str(home / "features" / "online"),
        str(home / "linked.json"),
    )


def test_nothing_is_replaced_and_nothing_is_left_over(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.tar"
    out.write_bytes(b"precious")
    with pytest.raises(AlreadyExistsError, match="not replaced"):
        back_up(home, out)
    with pytest.raises(InvalidArgumentError, match="lies in the home"):
        back_up(home, home / "b.tar")
    with pytest.raises(NotFoundError, match="is not a Headrace home"):
        back_up(tmp_path / "nowhere", tmp_path / "c.tar")
    with pytest.raises(NotFoundError, match="does not exist"):
        back_up(home, tmp_path / "nowhere" / "c.tar")

    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home", "m.onnx"]
    assert list((home / "artifacts" / "tmp").iterdir()) == []


def test_a_full_disk_leaves_no_backup(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: object, _member: object, _content: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space"):
        back_up(home, tmp_path / "b.tar")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "m.onnx"]


def test_a_damaged_database_is_not_backed_up(home: Path, tmp_path: Path) -> None:
    data = bytearray((home / "state.db").read_bytes())
    data[4096:12288] = b"\xff" * 8192
    (home / "state.db").write_bytes(data)

    with pytest.raises(FailedPreconditionError, match=r"state\.db"):
        back_up(home, tmp_path / "b.tar")


def test_a_home_that_is_not_empty_is_not_restored_into(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b.tar")
    before = contents(home)
    with pytest.raises(FailedPreconditionError, match="is not empty"):
        restore_backup(tmp_path / "b.tar", home, progress=nobody)
    (tmp_path / "empty").mkdir()
    restore_backup(tmp_path / "b.tar", tmp_path / "empty", progress=nobody)

    assert contents(home) == before
    assert (tmp_path / "empty" / "state.db").exists()


def test_another_user_backs_up_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)

    with pytest.raises(FailedPreconditionError, match="belongs to user"):
        back_up(home, tmp_path / "b.tar")


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = back_up(home, tmp_path / "b.tar").size
    usage = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with pytest.raises(FailedPreconditionError, match=f"needs {size} bytes, and {size - 1} are"):
        restore_backup(tmp_path / "b.tar", tmp_path / "new", progress=nobody)
    assert not (tmp_path / "new").exists()


def test_a_restore_that_did_not_end_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "home" / RESTORING).mkdir(parents=True)

    with pytest.raises(FailedPreconditionError, match="did not end"):
        Home.at(tmp_path / "home")


Change = Callable[[dict[str, bytes], BackupManifest], None]


def tar(path: Path, members: dict[str, bytes], **special: bytes) -> Path:
    """An archive; `special`: the type of a member that is no plain file."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in special.items():
            member = tarfile.TarInfo(f"home/{name}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            member.name: content.read()
            for member in archive
            if (content := archive.extractfile(member)) is not None
        }


def refused(path: Path, match: str) -> None:
    """Neither checked nor restored, and nothing is left of the attempt."""
    target = path.parent / "target"
    with pytest.raises(HeadraceError, match=match):
        check_backup(path, progress=nobody)
    with pytest.raises(HeadraceError, match=match):
        restore_backup(path, target, progress=nobody)
    assert not target.exists()


def test_archives_that_are_no_whole_backup_are_refused(home: Path, tmp_path: Path) -> None:
    good = tmp_path / "b.tar"
    back_up(home, good)
    members = members_of(good)
    manifest = json.loads(members["manifest.json"])
    bad = tmp_path / "bad.tar"

    def with_manifest(**changes: object) -> dict[str, bytes]:
        return {**members, "manifest.json": json.dumps(manifest | changes).encode()}

    altered = {**members, "home/admin-token": b"hrt_others\n"}
    refused(tar(bad, altered), "'home/admin-token' is not what was backed up")
    refused(tar(bad, {**members, "home/more": b"x"}), "'home/more' is not what was backed up")
    missing = {name: data for name, data in members.items() if name != "home/state.db"}
    refused(tar(bad, missing), r"'home/state\.db' is missing")
    refused(tar(bad, {"home/state.db": b"x"}), "not a Headrace backup")
    refused(tar(bad, {**members, "manifest.json": b"[]"}), "not a Headrace backup")
    refused(tar(bad, with_manifest(format=2)), "format 2")
    refused(tar(bad, {**members, "home/../../x": b"x"}), "leads out")
    refused(tar(bad, {**members, "/etc/x": b"x"}), "absolute")
    refused(tar(bad, members, link=tarfile.SYMTYPE), "symbolic link")
    refused(tar(bad, members, link=tarfile.LNKTYPE), "hard link")
    refused(tar(bad, members, device=tarfile.CHRTYPE), "device")
    bad.write_bytes(good.read_bytes()[:-20_000])
    refused(bad, "invalid tar archive|is missing")
    bad.write_bytes(b"")
    refused(bad, "invalid tar archive")


@pytest.mark.parametrize("name", ["home/run/control.json", "home/identity.json", "elsewhere"])
def test_archives_with_files_that_no_backup_has_are_refused(
    home: Path, tmp_path: Path, name: str
) -> None:
    good = tmp_path / "b.tar"
    back_up(home, good)
    members = members_of(good)
    manifest = json.loads(members["manifest.json"])
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    manifest["files"][name] = {"size": 1, "sha256": digest}
    members |= {name: b"x", "manifest.json": json.dumps(manifest).encode()}

    refused(tar(tmp_path / "bad.tar", members), f"it contains '{name}'")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small backup, made once."""
    folder = tmp_path_factory.mktemp("backup")
    (folder / "home").mkdir()
    (folder / "home" / "admin-token").write_bytes(b"hrt_secret\n")
    back_up(folder / "home", folder / "b.tar")
    return folder / "b.tar"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_found_or_changes_nothing_that_is_restored(
    archive: Path, data: st.DataObject
) -> None:
    content = bytearray(archive.read_bytes())
    # Behind the first end mark nothing is read.
    position = data.draw(st.integers(0, content.rindex(b"}") + 512))
    content[position] ^= data.draw(st.integers(1, 255))
    bad = archive.with_name("changed.tar")
    bad.write_bytes(content)
    before = check_backup(archive, progress=nobody).manifest
    try:
        after = check_backup(bad, progress=nobody).manifest
    except HeadraceError:
        return

    assert after.files == before.files
