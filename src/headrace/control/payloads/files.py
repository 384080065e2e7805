"""Files of a payload log: names, size limit and rows.

Rows are first appended to an Arrow stream, which is readable up to its last complete batch after a
crash or a full disk. When it is large or old enough, it becomes a Parquet file. Only the owner may
read the files.
"""

import contextlib
import importlib.util
import logging
import os
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.core import FailedPreconditionError
from headrace.core.files import make_private_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

_LOG: Final = logging.getLogger("headrace.control")
PARQUET: Final = ".parquet"
OPEN: Final = ".arrows"
"""File suffix of a stream that is still being written."""
PARTIAL: Final = ".partial"
"""File suffix of a Parquet file that is still being written."""
_NAME: Final = re.compile(
    r"(?P<begin>\d{8}T\d{6}\.\d{6}Z)-v(?P<version>\d+)\.(parquet|arrows|partial)"
)
_PRIVATE: Final = 0o600
_KEY_BYTES: Final = 32


def check_pyarrow() -> None:
    """Check that pyarrow is installed; raise FailedPreconditionError if not."""
    if importlib.util.find_spec("pyarrow") is None:
        raise FailedPreconditionError(
            "'payload_log' writes Parquet with pyarrow: pip install 'headrace[data]'"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadFile:
    """A file of a payload log."""

    path: Path
    version: str
    begin: str
    size_bytes: int
    is_open: bool
    """Whether rows are still added to it."""


def file_name(version: str, now: float) -> str:
    """Return the name, without suffix, of a file that begins at `now`; names sort by time."""
    begin = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return f"{begin}-v{version}"


def list_files(directory: Path) -> list[PayloadFile]:
    """Return the readable files of one endpoint, oldest first; empty without a directory."""
    return [file for file in _all_files(directory) if file.path.suffix != PARTIAL]


def _all_files(directory: Path) -> "Iterator[PayloadFile]":
    for path in sorted(directory.glob("*")) if directory.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        with contextlib.suppress(FileNotFoundError):
            yield PayloadFile(
                path=path,
                version=match["version"],
                begin=match["begin"],
                size_bytes=path.stat().st_size,
                is_open=path.suffix == OPEN,
            )


def remove_oldest(directory: Path, *, most_bytes: int, in_use: Collection[Path] = ()) -> int:
    """Remove the oldest files until the rest takes at most `most_bytes`; return the number removed.

    Args:
        in_use: Files that are being written. They count but stay; files left unfinished by a crash
            or a full disk are removed like all others.
    """
    files = list(_all_files(directory))
    total = sum(file.size_bytes for file in files)
    removed = 0
    for file in files:
        if total <= most_bytes:
            break
        if file.path not in in_use:
            file.path.unlink(missing_ok=True)
            total -= file.size_bytes
            removed += 1
    return removed


def open_private(path: Path) -> int:
    """Return a descriptor of a new file that only its owner may read."""
    make_private_dir(path.parent)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)


def hash_key(root: Path) -> bytes:
    """Return the hash key of this home's payload logs; the first call creates it.

    Raises:
        OSError: The key can be neither read nor written.
    """
    path = make_private_dir(root) / "hash.key"
    with contextlib.suppress(FileExistsError), os.fdopen(open_private(path), "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
    return path.read_bytes()


def read_batches(path: Path) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of a file, oldest first; of an open file the complete batches."""
    import pyarrow.parquet as pq  # noqa: PLC0415  # the extra `data`

    if path.suffix == PARQUET:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    with contextlib.suppress(_TornError):
        yield from _stream_batches(path)


class _TornError(Exception):
    """Error for a stream that ends within a batch; the text is the cause."""


def _stream_batches(path: Path) -> "Iterator[pa.RecordBatch]":
    """Yield the complete batches of a stream; raise `_TornError` if an incomplete one follows."""
    import pyarrow as pa  # noqa: PLC0415  # the extra `data`

    with pa.OSFile(str(path)) as file:
        try:
            for batch in pa.ipc.open_stream(file):
                batch.validate(full=True)  # Parquet's writer does not survive wrong offsets
                yield batch
        except pa.ArrowException as error:
            raise _TornError(str(error)) from error
        except OSError as error:
            if error.errno is not None:  # a system error: the file cannot be read now
                raise
            raise _TornError(str(error)) from error


def close_stream(path: Path) -> Path | None:
    """Replace a stream by a Parquet file of its complete batches; return None if it has none.

    Raises:
        OSError: The disk is full, or the stream cannot be read; the stream stays.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415  # the extra `data`

    partial = path.with_suffix(PARTIAL)
    partial.unlink(missing_ok=True)
    final = path.with_suffix(PARQUET)
    with contextlib.ExitStack() as leftovers:
        leftovers.callback(partial.unlink, missing_ok=True)
        writer = None
        with os.fdopen(open_private(partial), "wb") as file:
            try:
                for batch in _stream_batches(path):
                    if writer is None:
                        writer = pq.ParquetWriter(file, batch.schema, compression="zstd")
                    writer.write_batch(batch)
            except _TornError as error:
                if path.stat().st_size:
                    extra = {"path": str(path), "error": str(error)}
                    _LOG.warning("dropped the torn end of a payload file", extra=extra)
            finally:
                if writer is not None:
                    writer.close()
        if writer is not None:
            partial.replace(final)
    path.unlink()
    return None if writer is None else final
