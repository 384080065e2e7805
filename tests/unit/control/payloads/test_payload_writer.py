"""What a payload log holds, how much, and what becomes of it when a disk or a process fails."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from headrace.control.payloads import writer as writer_module
from headrace.control.payloads.files import (
    close_stream,
    file_name,
    list_files,
    read_batches,
    remove_oldest,
)
from headrace.control.payloads.writer import PayloadWriter
from headrace.core import SystemClock
from headrace.core.spec.observe import PayloadLogSpec
from headrace.serving.telemetry.report import PayloadSample, SampledTensor
from tests.metrics import exposed

PLAIN = PayloadLogSpec()


def tensor(name: str, array: np.ndarray[Any, Any]) -> SampledTensor:
    return SampledTensor(
        name=name, dtype=array.dtype.str, shape=list(array.shape), data=array.tobytes()
    )


def words(name: str, *items: bytes) -> SampledTensor:
    return SampledTensor(name=name, dtype="O", shape=[len(items)], items=list(items))


def sample(
    request_id: str = "r",
    *inputs: SampledTensor,
    outputs: list[SampledTensor] | None = None,
    code: str = "OK",
) -> PayloadSample:
    return PayloadSample(
        request_id=request_id,
        trace_id="",
        caller="shop",
        at=1.5,
        duration_s=0.25,
        code=code,
        inputs=list(inputs) or [tensor("x", np.array([[1, 2]], np.float32))],
        outputs=[tensor("y", np.array([[3]], np.int64))] if outputs is None else outputs,
    )


def write(root: Path, *samples: PayloadSample, settings: PayloadLogSpec = PLAIN) -> PayloadWriter:
    """A writer that wrote `samples` of endpoint `m` and stopped."""
    writer = PayloadWriter(root=root, clock=SystemClock())
    writer.add("m", "1", settings, samples)
    writer.stop()
    return writer


def rows(root: Path) -> list[dict[str, Any]]:
    return [
        row
        for file in list_files(root / "m")
        for batch in read_batches(file.path)
        for row in batch.to_pylist()
    ]


def test_a_request_is_a_row_of_a_parquet_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    writer = write(tmp_path / "p", sample("a"))

    (file,) = list_files(tmp_path / "p" / "m")
    (row,) = pq.read_table(file.path).to_pylist()
    assert file.path.suffix == ".parquet"
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700
    assert (row["request_id"], row["caller"], row["version"]) == ("a", "shop", "1")
    assert (row["input.x"], row["input.x.shape"]) == ([1, 2], [1, 2])
    assert (row["output.y"], row["output.y.shape"]) == ([3], [1, 1])
    assert row["time"].timestamp() == 1.5
    assert dict(writer.written) == {"m": 1}


def test_columns_are_dropped_or_hashed_and_equal_values_stay_equal(tmp_path: Path) -> None:
    ids = words("id", b"alice", b"bob", b"alice")
    numbers = tensor("n", np.array([7, 7], np.int64))
    secret = tensor("x", np.array([1.5], np.float32))
    settings = PayloadLogSpec(drop=("output.y",), hash=("input.id", "input.n", "input.x", "caller"))

    write(tmp_path, sample("a", ids, numbers, secret), settings=settings)
    (row,) = rows(tmp_path)
    text = "".join(str(file.path.read_bytes()) for file in list_files(tmp_path / "m"))

    alice, bob, again = row["input.id"]
    assert alice == again != bob
    assert len({*row["input.n"]}) == 1
    assert len(row["input.x"]) == 1
    assert row["caller"] not in {"", "shop"}
    assert "output.y" not in row
    assert "alice" not in text
    assert "shop" not in text


def test_hashes_of_two_homes_differ(tmp_path: Path) -> None:
    settings = PayloadLogSpec(hash=("caller",))
    for home in ("a", "b"):
        write(tmp_path / home, sample(), settings=settings)

    (one,), (other,) = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert one["caller"] != other["caller"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([True, False]),
        np.array([1, 255], np.uint8),
        np.array([-1], np.int64),
        np.array([0.5], np.float16),
        np.array([0.1], np.float64),
        np.zeros((0, 4), np.float32),
        np.array(3, np.int32),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_every_kind_of_tensor_comes_back(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    write(tmp_path, sample("a", tensor("x", array)))
    (row,) = rows(tmp_path)

    assert row["input.x"] == array.ravel().tolist()
    assert row["input.x.shape"] == list(array.shape)


def test_strings_come_back_as_bytes(tmp_path: Path) -> None:
    write(tmp_path, sample("a", words("x", b"\xff\x00", b"ok")))

    assert rows(tmp_path)[0]["input.x"] == [b"\xff\x00", b"ok"]


def test_other_columns_begin_another_file_and_no_row_is_lost(tmp_path: Path) -> None:
    failed = sample("b", outputs=[], code="INTERNAL")

    write(tmp_path, sample("a"), failed, sample("c"))

    assert [row["request_id"] for row in rows(tmp_path)] == ["a", "b", "c"]
    assert len(list_files(tmp_path / "m")) == 3


def test_a_large_file_is_closed_and_the_oldest_go(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).random(20_000)  # 160 kB that cannot be made smaller
    settings = PayloadLogSpec(max_file_bytes=1 << 16, max_total_bytes=400_000)
    writer = PayloadWriter(root=tmp_path, clock=SystemClock())
    for name in "abcde":
        writer.add("m", "1", settings, [sample(name, tensor("x", noise))])
    writer.stop()

    assert [row["request_id"] for row in rows(tmp_path)] == ["d", "e"]
    assert sum(file.size_bytes for file in list_files(tmp_path / "m")) <= 400_000


def test_what_a_killed_process_left_open_can_be_read_and_closed(tmp_path: Path) -> None:
    writer = PayloadWriter(root=tmp_path, clock=SystemClock())
    writer.add("m", "1", PLAIN, [sample("a")])
    _until(lambda: writer.written["m"] == 1)
    (left,) = list_files(tmp_path / "m")
    cut = left.path.with_name(f"{file_name('2', 0.0)}.arrows")
    cut.write_bytes(left.path.read_bytes() + b"\xff\xff\xff\xff\x10\x00")

    assert left.is_open
    assert [row["request_id"] for row in rows(tmp_path)] == ["a", "a"]
    closed = close_stream(cut)
    assert closed is not None
    assert pq.read_table(closed).num_rows == 1
    writer.stop()


def test_an_empty_stream_leaves_no_file(tmp_path: Path) -> None:
    stream = tmp_path / f"{file_name('1', 0.0)}.arrows"
    stream.write_bytes(b"")

    assert close_stream(stream) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_use_is_never_removed_and_unfinished_ones_are(tmp_path: Path) -> None:
    names = [
        f"{file_name('1', at)}{suffix}"
        for at, suffix in enumerate((".arrows", ".arrows", ".partial", ".parquet"))
    ]
    for name in (*names, "else"):
        (tmp_path / name).write_bytes(b"1234")

    assert remove_oldest(tmp_path, most_bytes=12, in_use={tmp_path / names[0]}) == 1
    assert remove_oldest(tmp_path, most_bytes=0, in_use={tmp_path / names[0]}) == 2
    assert {path.name for path in tmp_path.iterdir()} == {names[0], "else"}


def test_samples_beyond_the_queue_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_MAX_WAITING", 3)
    writer = PayloadWriter(root=tmp_path, clock=SystemClock())

    writer.add("m", "1", PLAIN, [sample(str(i)) for i in range(4)])
    writer.lost("m", 2)
    writer.add("m", "1", PLAIN, [sample("a")])
    writer.stop()
    writer.add("m", "1", PLAIN, [sample("late")])

    assert dict(writer.dropped) == {("m", "queue"): 5, ("m", "replica"): 2}
    text = exposed(writer.families())
    assert 'headrace_payload_log_dropped_total{endpoint="m",reason="queue"} 5' in text
    assert 'headrace_payload_log_written_total{endpoint="m"} 1' in text


def test_a_disk_that_fails_costs_samples_and_the_next_ones_are_written(tmp_path: Path) -> None:
    writer = PayloadWriter(root=tmp_path, clock=SystemClock())
    blocker = tmp_path / "m"
    blocker.write_text("a file where the directory should be")

    writer.add("m", "1", PLAIN, [sample("a")])
    _until(lambda: writer.dropped["m", "disk"] == 1)
    blocker.unlink()
    writer.add("m", "1", PLAIN, [sample("b")])
    writer.stop()

    assert [row["request_id"] for row in rows(tmp_path)] == ["b"]


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
