"""How far a job is, read where its model may have written."""

import os
from pathlib import Path

import pytest

from headrace.jobs.messages import JobProgress, read_progress

JOB = b'{"id": "r", "shards": [{}, {}], "model": 1}'
LINE = b'{"shard": 0, "rows": 5, "errors": 1}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "_headrace").mkdir()
    (tmp_path / "_headrace" / "job.json").write_bytes(JOB)
    (tmp_path / "_headrace" / "manifest.jsonl").write_bytes(LINE + LINE[:9])
    return tmp_path


def test_whole_lines_count(folder: Path) -> None:
    found = read_progress(folder)

    assert found == JobProgress(run_id="r", shards=2, shards_done=1, rows=5, errors=1)


@pytest.mark.parametrize("name", ["job.json", "manifest.jsonl"])
def test_what_is_no_plain_file_is_neither_followed_nor_waited_for(folder: Path, name: str) -> None:
    path = folder / "_headrace" / name
    kept = path.rename(folder / "elsewhere")
    path.symlink_to(kept)
    followed = read_progress(folder)
    path.unlink()
    os.mkfifo(path)
    waited = read_progress(folder)

    nothing = JobProgress(run_id="r", shards=2, shards_done=0, rows=0, errors=0)
    assert followed == waited == (None if name == "job.json" else nothing)


@pytest.mark.parametrize("damage", [b'{"id": "\xff"}', b'{"x": ' + b"[" * 100_000])
@pytest.mark.parametrize("name", ["job.json", "manifest.jsonl"])
def test_what_cannot_be_decoded_is_no_progress(folder: Path, name: str, damage: bytes) -> None:
    (folder / "_headrace" / name).write_bytes(damage + b"\n")

    found = read_progress(folder)

    assert found is None or (name, found.shards_done) == ("manifest.jsonl", 0)
