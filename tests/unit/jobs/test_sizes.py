"""How much is taken at once follows from the model and the memory, never from timings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError, TensorSpec
from headrace.jobs.prepare import parse_bytes, plan_sizes, usual_run_rows
from tests.unit.jobs.parts import SUMS, signature, spec

TEXT = signature([spec("t", Datatype.BYTES, -1)], [])


@given(
    row_bytes=st.floats(0, 1 << 19),
    memory=st.integers(1 << 26, 1 << 32),
    workers=st.integers(1, 8),
    run_rows=st.one_of(st.none(), st.integers(1, 10_000)),
)
def test_what_is_in_memory_stays_within_what_may_be(
    row_bytes: float, memory: int, workers: int, run_rows: int | None
) -> None:
    sizes = plan_sizes(
        SUMS, row_bytes=row_bytes, memory_bytes=memory, workers=workers, run_rows=run_rows
    )
    assert 1 <= sizes.run_rows <= sizes.window_rows
    assert sizes.window_rows * row_bytes * workers * 8 <= memory * 1.001


def test_a_row_larger_than_the_memory_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="more than --memory 1MiB"):
        plan_sizes(SUMS, row_bytes=1e6, memory_bytes=1 << 20, workers=2)


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ([spec("x", Datatype.FP32, -1, 32)], 2048),
        ([spec("id", Datatype.INT64, -1)], 4096),
        ([spec("x", Datatype.FP32, -1, 3, 224, 224)], 8),
        ([spec("t", Datatype.BYTES, -1)], 16),
        ([spec("ids", Datatype.INT64, -1, -1)], 16),
    ],
)
def test_small_rows_run_by_thousands_and_large_ones_by_a_few(
    inputs: list[TensorSpec], rows: int
) -> None:
    assert usual_run_rows(signature(inputs, [])) == rows


def test_slow_rows_have_small_shards() -> None:
    slow = plan_sizes(TEXT, row_bytes=0, memory_bytes=1 << 29, workers=1)
    fast = plan_sizes(SUMS, row_bytes=0, memory_bytes=1 << 29, workers=1)
    assert slow.shard_rows < fast.shard_rows


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512MiB", 512 << 20), ("1.5 GB", 1_500_000_000), ("2g", 2 << 30)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "1 parsec", "nan", "1e999"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a size"):
        parse_bytes(text)
