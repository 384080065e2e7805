"""`headrace backup` and `headrace restore`: what they print, and their exit status."""

import json
from pathlib import Path

import msgspec
import pytest

from headrace.control.base.ownership import claim
from headrace.control.base.settings import ControlFile, write_control_file
from tests.unit.cli.conftest import Command


@pytest.fixture
def pushed(headrace: Command, home: Path, model: Path) -> Path:
    """A home with a model that was never started."""
    assert headrace("models", "push", "m", model).status == 0
    return home


def test_a_backup_is_described_and_as_json_has_every_file(
    headrace: Command, pushed: Path, tmp_path: Path
) -> None:
    text = headrace("backup", "b.tar")
    document = json.loads(headrace("backup", "--verify", "b.tar", "--json").out)

    assert text.status == 0
    assert f"b.tar: written, sha256 {document['sha256']}" in text.out
    assert "not included: the desired state; the home has no state.db" in text.out
    assert document["size"] == (tmp_path / "b.tar").stat().st_size
    assert document["manifest"]["home"] == str(pushed)
    assert document["manifest"]["models"] == ["m:1"]
    assert "home/registry/m/1.json" in document["manifest"]["files"]


def test_a_restored_home_has_the_models(headrace: Command, pushed: Path, tmp_path: Path) -> None:
    headrace("backup", "b.tar")
    restored = headrace("restore", "b.tar", "--home", tmp_path / "new")
    again = headrace("restore", "b.tar", "--home", tmp_path / "new")
    document = headrace("restore", "b.tar", "--home", tmp_path / "newer", "--json")
    listed = json.loads(headrace("models", "list", "--json", "--home", tmp_path / "new").out)

    assert restored.status == 0
    assert f"`headrace up --home {tmp_path}/new` starts it" in restored.out
    assert (again.status, "is not empty" in again.err) == (1, True)
    assert json.loads(document.out)["home"] == str(tmp_path / "newer")
    assert [version["name"] for version in listed] == ["m"]
    assert pushed.is_dir()


def test_what_cannot_be_done_fails_with_the_reason(
    headrace: Command, pushed: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    cases = {
        ("backup", "x.tar"): "exists, and is not replaced",
        ("backup", str(pushed / "b.tar")): "lies in the home",
        ("backup", "b.tar", "--home", "nowhere"): "is not a Headrace home",
        ("backup", "--verify", "x.tar"): "invalid tar archive",
        ("backup", "--verify", "nowhere.tar"): "does not exist",
        ("restore", "x.tar", "--home", "new"): "invalid tar archive",
        ("restore", "nowhere.tar", "--home", "new"): "does not exist",
    }
    outcomes = {arguments: headrace(*arguments) for arguments in cases}

    assert [outcome.status for outcome in outcomes.values()] == [1] * len(cases)
    assert [a for a, outcome in outcomes.items() if cases[a] not in outcome.err] == []
    assert not (tmp_path / "new").exists()


def test_a_state_in_postgres_is_known_from_the_flag_and_from_the_control_plane(
    headrace: Command, pushed: Path
) -> None:
    by_flag = headrace("backup", "a.tar", "--state-url", "postgresql://u:secret@db/headrace")
    (pushed / "run").mkdir()
    killed = ControlFile(
        pid=1,
        started=0.0,
        admin_url="http://127.0.0.1:1",
        http_url="http://127.0.0.1:2",
        grpc_target="127.0.0.1:3",
        metrics_url="http://127.0.0.1:4/metrics",
        home=claim(pushed),
        state_url="postgresql://",
    )
    write_control_file(pushed / "run" / "control.json", killed)
    by_control_plane = headrace("backup", "b.tar")
    copied = msgspec.structs.replace(claim(pushed), id="another", inode=1)
    write_control_file(
        pushed / "run" / "control.json", msgspec.structs.replace(killed, home=copied)
    )
    of_another_home = headrace("backup", "c.tar")

    assert "pg_dump" in by_flag.out
    assert "secret" not in by_flag.out
    assert "pg_dump" in by_control_plane.out
    assert "pg_dump" not in of_another_home.out
