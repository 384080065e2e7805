"""Payload files that a crash or a full disk cut anywhere: closed, bounded and readable."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.payloads.columns import record_batches
from headrace.control.payloads.files import (
    close_stream,
    file_name,
    list_files,
    read_batches,
    remove_oldest,
)
from headrace.core.spec.observe import PayloadLogSpec
from headrace.serving.telemetry.report import PayloadSample, SampledTensor

NAME = file_name("1", 0.0)
BATCHES = 4


def sample(number: int) -> PayloadSample:
    values = np.full(50, number, np.float32)
    return PayloadSample(
        request_id=f"id-{number}",
        trace_id="",
        caller="shop",
        at=1.0,
        duration_s=0.1,
        code="OK",
        inputs=[SampledTensor(name="x", dtype="<f4", shape=[50], data=values.tobytes())],
        outputs=[SampledTensor(name="y", dtype="O", shape=[1], items=[b"cat" * number])],
    )


def a_stream() -> tuple[bytes, list[tuple[int, list[str]]]]:
    """The bytes of a stream, and the ids of the requests that are whole from each offset on."""
    sink = pa.BufferOutputStream()
    writer = None
    whole: list[tuple[int, list[str]]] = [(0, [])]
    for number in range(BATCHES):
        samples = [sample(3 * number + i) for i in range(3)]
        (batch,) = record_batches("1", samples, PayloadLogSpec(), b"key")
        writer = writer or pa.ipc.new_stream(sink, batch.schema)
        writer.write_batch(batch)
        whole.append((sink.tell(), [*whole[-1][1], *(one.request_id for one in samples)]))
    assert writer is not None
    writer.close()
    return sink.getvalue().to_pybytes(), whole


STREAM, WHOLE = a_stream()


def whole_until(offset: int) -> list[str]:
    return [ids for end, ids in WHOLE if end <= offset][-1]


def ids(path: Path) -> list[str]:
    return [row["request_id"] for batch in read_batches(path) for row in batch.to_pylist()]


def check_closed(directory: Path, content: bytes, expected: Sequence[str]) -> None:
    """Close a file with `content`: its whole rows are in Parquet, and nothing else is left."""
    stream = directory / f"{NAME}.arrows"
    stream.write_bytes(content)
    assert ids(stream) == expected

    closed = close_stream(stream)

    left = list(directory.iterdir())
    if closed is None:
        assert not expected
        assert left == []
    else:
        assert pq.read_table(closed)["request_id"].to_pylist() == expected
        assert left == [closed]
        closed.unlink()


@pytest.mark.slow
def test_a_file_cut_at_any_of_500_bytes_keeps_its_whole_batches(tmp_path: Path) -> None:
    chance = random.Random(6)  # noqa: S311  # places, no secrets
    edges = {end + step for end, _ in WHOLE for step in (-1, 0, 1)} | {len(STREAM)}
    offsets = edges | {chance.randrange(len(STREAM)) for _ in range(500)}

    for offset in sorted(offset for offset in offsets if offset >= 0):
        check_closed(tmp_path, STREAM[:offset], whole_until(offset))


@given(st.integers(0, len(STREAM)), st.sampled_from([b"\0", b"\xff", b"\x01\x02\x03"]))
def test_a_file_whose_end_was_never_written_keeps_the_batches_before_it(
    tmp_path_factory: pytest.TempPathFactory, offset: int, filler: bytes
) -> None:
    """As after a power cut: the length is right, the last blocks are not."""
    missing = len(STREAM) - offset
    directory = tmp_path_factory.mktemp("torn")
    stream = directory / f"{NAME}.arrows"
    stream.write_bytes(STREAM[:offset] + (filler * missing)[:missing])

    close_stream(stream)

    kept = [one for file in list_files(directory) for one in ids(file.path)]
    assert kept[: len(whole_until(offset))] == whole_until(offset)
    assert not [path for path in directory.iterdir() if path.suffix != ".parquet"]


def test_a_file_that_cannot_be_closed_is_left_alone_until_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stream = tmp_path / f"{NAME}.arrows"
    stream.write_bytes(STREAM[:-100])
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OSError, match="No space left"):
            close_stream(stream)

    assert list(tmp_path.iterdir()) == [stream]
    assert ids(stream) == whole_until(len(STREAM) - 100)
    assert remove_oldest(tmp_path, most_bytes=len(STREAM)) == 0
    assert remove_oldest(tmp_path, most_bytes=1000) == 1


def test_a_file_that_vanishes_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_batches(tmp_path / f"{NAME}.arrows"))
    with pytest.raises(FileNotFoundError):
        close_stream(tmp_path / f"{NAME}.arrows")
    assert list(tmp_path.iterdir()) == []
