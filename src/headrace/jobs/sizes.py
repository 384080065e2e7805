"""How much is taken at once? Follows from the model and the memory alone, never from timings.

A row's last digits can depend on how many rows share a run. So a job that is run twice, or goes on
elsewhere, takes the same sizes.
"""

from typing import Final

from headrace.core import VARIABLE, Datatype, InvalidArgumentError, ModelSignature
from headrace.core.text import size_bytes
from headrace.jobs.columns import row_shape, width
from headrace.jobs.messages import Sizes

MEMORY_BYTES: Final = 512 << 20
_SHARD_ROWS: Final = 1 << 18
_SLOW_SHARD_ROWS: Final = 1 << 14
"""Of models that take texts or pictures: about as much work as the others' shards are."""
_SHARD_BYTES: Final = 64 << 20
_WINDOW_ROWS: Final = 1 << 15
"""Enough that what a window costs beside its rows is little; smaller where rows are large."""
_SORTED_ROWS: Final = 4096
_RUN_BYTES: Final = 256 << 10
"""Inputs of one run: they and what is computed of them should stay in a core's cache."""
_MOST_RUN_ROWS: Final = 4096
_FEWEST_RUN_ROWS: Final = 8
_TEXT_RUN_ROWS: Final = 16
"""In runs of 32 an encoder of 22 M weights takes 7 % longer a row; in runs of 8 as long."""
_COPIES: Final = 8
"""How often a window is in memory at most: read, as columns, as rows, answered, to be written."""
_MOST_BUFFER: Final = 16 << 20


def plan_sizes(
    signature: ModelSignature,
    *,
    row_bytes: float,
    memory_bytes: int,
    workers: int,
    run_rows: int | None = None,
    shard_rows: int | None = None,
) -> Sizes:
    """What fits into `memory_bytes` when `workers` shards are under way.

    Args:
        row_bytes: Of the columns that are read, as they are in memory; 0 where nobody knows.
        run_rows: Rows of one run of the model; None for a good number.
        shard_rows: Rows of a shard; None as well.

    Raises:
        InvalidArgumentError: Not even one row does.
    """
    share = memory_bytes / max(workers, 1) / _COPIES
    fed = max(row_bytes, _input_bytes(signature) or 0)
    fitting = int(share / fed) if fed else _WINDOW_ROWS
    if fitting < 1:
        msg = (
            f"a row takes {fed:.0f} bytes, {_COPIES} times in each of {workers} workers, which "
            f"is more than --memory {memory_bytes >> 20}MiB; give more, or fewer --workers"
        )
        raise InvalidArgumentError(msg)
    slow = is_slow(signature)
    rows = run_rows or usual_run_rows(signature)
    window = max(rows, _SORTED_ROWS if slow else _WINDOW_ROWS)
    window = min(window, fitting)
    return Sizes(
        shard_rows=shard_rows or (_SLOW_SHARD_ROWS if slow else _SHARD_ROWS),
        shard_bytes=_SHARD_BYTES,
        run_rows=min(rows, window),
        window_rows=window,
        buffer_bytes=int(min(share, _MOST_BUFFER)),
    )


def usual_run_rows(signature: ModelSignature) -> int:
    """A good number of rows for one run: thousands of small rows, few large ones."""
    if not signature.batched:
        return 1
    size = _input_bytes(signature)
    if size is None or is_slow(signature):
        return _TEXT_RUN_ROWS
    rows = max(_RUN_BYTES // max(size, 1), 1)
    return min(max(1 << (rows.bit_length() - 1), _FEWEST_RUN_ROWS), _MOST_RUN_ROWS)


def is_slow(signature: ModelSignature) -> bool:
    """Whether rows are texts, pictures or sequences, which take a model long."""
    return any(
        spec.datatype is Datatype.BYTES or VARIABLE in row_shape(spec, batched=signature.batched)
        for spec in signature.inputs
    )


def _input_bytes(signature: ModelSignature) -> int | None:
    """What one row has of all inputs; None if that depends on the row."""
    total = 0
    for spec in signature.inputs:
        size = width(row_shape(spec, batched=signature.batched))
        if size is None or spec.datatype is Datatype.BYTES:
            return None
        total += size * spec.datatype.dtype.itemsize
    return total


def parse_bytes(text: str) -> int:
    """Bytes out of `512MiB`, `1GB` or a number.

    Raises:
        InvalidArgumentError: It is no size.
    """
    size = size_bytes(text)
    if size is None:
        raise InvalidArgumentError(f"'{text}' is no size; write 512MiB or 2GB")
    return size
