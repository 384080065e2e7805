"""What a confined run may read, and why it cannot be another user."""

from pathlib import Path

import pytest

from headrace.cli.batch.model import Inputs, inputs_of, sandbox_user_obstacle
from headrace.core import FailedPreconditionError, InvalidArgumentError


def file(path: Path, mode: int = 0o644, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_files_here_are_read_without_the_network(tmp_path: Path) -> None:
    one = file(tmp_path / "a" / "1.csv")
    two = file(tmp_path / "b" / "2.csv")
    database = file(tmp_path / "d.db")

    assert inputs_of(str(one)) == Inputs(folder=one, files=(one,))
    assert inputs_of(str(tmp_path / "a")) == Inputs(folder=tmp_path / "a", files=(one,))
    assert inputs_of(f"{tmp_path}/*/[12].csv") == Inputs(folder=tmp_path, files=(one, two))
    assert inputs_of(f"file://{one}") == inputs_of(str(one))
    assert inputs_of(f"sqlite:///{database}") == Inputs(folder=tmp_path, files=(database,))


@pytest.mark.parametrize(
    "source", ["postgresql://u:${PASSWORD}@h/d", "s3://bucket/*.parquet", "https://h/x.csv"]
)
def test_what_is_elsewhere_needs_the_network_and_no_file(source: str) -> None:
    assert inputs_of(source, {"PASSWORD": "/etc"}) == Inputs(network=True)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no file or folder matches"):
        inputs_of(str(tmp_path / "none"))
    with pytest.raises(FailedPreconditionError, match="NOWHERE"):
        inputs_of("${NOWHERE}/x.csv", {})


def test_a_user_of_its_own_reads_only_what_all_may_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # what lies around is no obstacle
    folder = tmp_path / "in"
    file(folder / "open" / "1.csv")
    assert sandbox_user_obstacle(inputs_of(str(folder))) == ""

    private = file(folder / "open" / "2.csv", 0o640)
    assert sandbox_user_obstacle(inputs_of(str(folder))) == f"other users cannot read {private}"
    private.unlink()
    (folder / "open").chmod(0o700)
    assert (
        sandbox_user_obstacle(inputs_of(str(folder)))
        == f"other users cannot read {folder / 'open'}"
    )
    assert sandbox_user_obstacle(inputs_of(str(folder / "open" / "1.csv"))) == ""


def test_readers_of_a_database_in_wal_mode_write_beside_it(tmp_path: Path) -> None:
    plain = file(tmp_path / "d" / "plain.db", data=b"SQLite format 3\0\x10\0\1\1" + b"\0" * 80)
    wal = file(tmp_path / "d" / "wal.db", data=b"SQLite format 3\0\x10\0\2\2" + b"\0" * 80)

    for other in (plain, file(tmp_path / "d" / "empty")):
        assert sandbox_user_obstacle(inputs_of(f"sqlite:///{other}")) == ""
    assert "WAL" in sandbox_user_obstacle(inputs_of(f"sqlite:///{wal}"))
