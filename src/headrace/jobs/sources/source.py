"""Source interface of jobs, and listing, fingerprints and opening of input files.

An input is a path, a glob, a folder, or the URL of a store that fsspec supports.
"""

import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol

from headrace.core import Datatype, FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.jobs.libraries import Batch, Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A window of input rows."""

    frame: pl.DataFrame
    broken: Mapping[int, str] = field(default_factory=dict)
    """Why a row could not be read, by its index in `frame`; its columns are null."""
    line_of: Callable[[int], int] | None = None
    """Returns the line at which a row begins, from 1; None if the file is not text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """What to read of a shard."""

    columns: Sequence[str]
    """Columns to read."""
    rows: int
    """Maximum number of rows per window."""
    whole_bytes: int = 0
    """A shard smaller than this may be read into memory at once."""
    datatypes: Mapping[str, Datatype] = field(default_factory=dict)
    """Datatype of the input that a column is for."""


class JobSource(Protocol):
    """One opened input of a job; it holds no resources."""

    has_types: bool = True
    """Whether its columns have types; otherwise text is parsed as the model needs."""

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the columns, read from the head of the first file only.

        Args:
            datatypes: Datatypes of the inputs that columns are for, once planned: values of a
                format without types then have the type that the model takes.

        Raises:
            InvalidArgumentError: The input does not exist, or is damaged; the message names it.
        """

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Return all shards in the input's order, the same for the same input.

        Raises:
            InvalidArgumentError: A file is damaged, or has other columns than the first.
        """

    def mark(self, shard: Shard) -> str:
        """Return the current fingerprint of the shard's input: that of its file.

        Raises:
            InvalidArgumentError: The input does not exist any more.
        """
        return fingerprint(shard.file)[0]

    def row_bytes(self, columns: Sequence[str]) -> float:  # noqa: ARG002  # for overrides
        """Return the approximate row size in memory, in bytes; 0 if unknown before reading."""
        return 0.0

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Yield rows in order, at most `request.rows` at once, with the columns in order.

        Raises:
            InvalidArgumentError: The input cannot be read.
        """


def paths_of(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Return the path of each selectable column; struct fields have dotted names.

    A column whose own name has dots precedes a field of that path.
    """
    paths: dict[str, tuple[str, ...]] = {}
    nested: list[tuple[tuple[str, ...], Any]] = [((field.name,), field.type) for field in schema]
    while nested:
        path, kind = nested.pop(0)
        if pa.types.is_struct(kind):
            nested += [((*path, field.name), field.type) for field in kind]
        else:
            paths.setdefault(".".join(path), path)
    return paths


def flat_schema(schema: Schema) -> Schema:
    """Return the selectable columns with their types; a field of a null struct is null."""
    fields = []
    for name, (first, *rest) in paths_of(schema).items():
        field = schema.field(first)
        for part in rest:
            field = field.type.field(part)
        fields.append(pa.field(name, field.type, field.nullable or bool(rest)))
    return pa.schema(fields)


def framed(batch: Batch, columns: Sequence[str]) -> pl.DataFrame:
    """Return columns of a record batch or a table; struct fields by dotted names."""
    if not set(columns) <= set(batch.schema.names):
        paths = paths_of(batch.schema)
        arrays = []
        for first, *rest in (paths[name] for name in columns):
            array = batch.column(first)
            arrays.append(pa.compute.struct_field(array, rest) if rest else array)
        batch = type(batch).from_arrays(arrays, names=list(columns))
    frame = pl.from_arrow(batch.select(list(columns)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def windows(
    frame: pl.DataFrame,
    rows: int,
    broken: Mapping[int, str],
    line_of: Callable[[int], int] | None = None,
) -> Iterator[Rows]:
    """Yield a frame in parts of at most `rows`."""
    parts: dict[int, dict[int, str]] = {}
    for row, reason in broken.items():
        parts.setdefault(row // rows, {})[row % rows] = reason
    for part, start in enumerate(range(0, frame.height, rows)):
        yield Rows(
            frame=frame.slice(start, rows),
            broken=parts.get(part, {}),
            line_of=None if line_of is None else partial(_line_behind, line_of, start),
        )


def _line_behind(line_of: Callable[[int], int], start: int, row: int) -> int:
    return line_of(start + row)


SUFFIXES: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".arrows": "arrow",
}
PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_HEAD_BYTES: Final = 1 << 16
_HIDDEN: Final = (".", "_")
_SHOWN: Final = 3


def is_url(text: str) -> bool:
    """Return whether the text is a URL."""
    return "://" in text


def list_files(text: str) -> list[str]:
    """Return matching files, sorted by name, without hidden files and folders.

    Raises:
        InvalidArgumentError: No file matches.
        FailedPreconditionError: The text is a URL, and the package for it is not installed.
    """
    if is_url(text):
        files = _list_url(text)
    elif Path(text).is_dir():
        files = [str(path) for path in Path(text).rglob("*") if path.is_file()]
        files = [name for name in files if not _is_hidden(os.path.relpath(name, text))]
    elif Path(text).is_file():
        files = [text]
    else:
        files = [name for name in glob.glob(text, recursive=True) if Path(name).is_file()]  # noqa: PTH207  # may be absolute
    if not files:
        raise InvalidArgumentError(f"no file or folder matches '{text}'")
    return sorted(files)


def kind_of(files: Sequence[str]) -> tuple[str, list[str]]:
    """Return the format of files by their suffixes, and the files of this format.

    Raises:
        InvalidArgumentError: The files have several formats, or no known one.
    """
    kinds: dict[str, list[str]] = {}
    for name in files:
        suffix = Path(name).suffix.lower()
        kind = "images" if suffix in PICTURES else SUFFIXES.get(suffix)
        if kind is not None:
            kinds.setdefault(kind, []).append(name)
    if len(kinds) == 1:
        return next(iter(kinds.items()))
    if kinds:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in sorted(kinds.items()))
        raise InvalidArgumentError(
            f"the input has files of several formats ({counts}); set --input-format"
        )
    shown = ", ".join(Path(name).name for name in files[:_SHOWN])
    msg = (
        f"the format of {shown} is unknown: use one of the suffixes {', '.join(sorted(SUFFIXES))}, "
        "or set --input-format"
    )
    raise InvalidArgumentError(msg)


def fingerprint(name: str) -> tuple[str, int]:
    """Return a file's fingerprint (of size, time, first and last 64 KiB) and its size.

    Raises:
        InvalidArgumentError: The file cannot be read.
    """
    try:
        if is_url(name):
            fs, path = _filesystem(name)
            info = fs.info(path)
            size = int(info["size"])
            stamp = str(fs.ukey(path))
        else:
            status = Path(name).stat()
            size, stamp = status.st_size, str(status.st_mtime_ns)
        with open_file(name) as file:
            digest = hashlib.sha256(file.read(_HEAD_BYTES))
            if size > _HEAD_BYTES:
                file.seek(max(size - _HEAD_BYTES, _HEAD_BYTES))
                digest.update(file.read(_HEAD_BYTES))
    except OSError as error:
        raise unreadable(name, error) from error
    digest.update(stamp.encode())
    return f"{size}-{digest.hexdigest()[:24]}", size


def open_file(name: str) -> IO[bytes]:
    """Open a local or remote file for reading.

    Raises:
        OSError: The file cannot be opened.
        FailedPreconditionError: The package for its URL is not installed.
    """
    if not is_url(name):
        return Path(name).open("rb")
    fs, path = _filesystem(name)
    opened: IO[bytes] = fs.open(path, "rb")
    return opened


def unreadable(name: str, error: Exception) -> HeadraceError:
    """Return the error for an unreadable input, in one line."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:300]
    return InvalidArgumentError(f"{name} cannot be read: {reason or type(error).__name__}")


def read_at(name: str, begin: int, end: int) -> bytes:
    """Return a range of bytes of a file."""
    with open_file(name) as file:
        file.seek(begin, io.SEEK_SET)
        return file.read(end - begin)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(_HIDDEN) for part in Path(path).parts)


def _list_url(text: str) -> list[str]:
    fs, path = _filesystem(text)
    scheme = text.partition("://")[0]
    try:
        if any(char in path for char in "*?["):
            files = fs.glob(path)
        elif fs.isdir(path):
            files = [
                name
                for name in fs.find(path)
                if not _is_hidden(name.removeprefix(path).lstrip("/"))
            ]
        else:
            files = [path] if fs.exists(path) else []
    except OSError as error:
        raise unreadable(text, error) from error
    if scheme in {"http", "https"}:
        return list(files)
    return [f"{scheme}://{name.removeprefix(f'{scheme}://')}" for name in files]


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        import fsspec  # noqa: PLC0415  # optional, for remote data
    except ModuleNotFoundError:
        msg = f"{url}: remote data needs fsspec: pip install fsspec, and its package for {scheme}"
        raise FailedPreconditionError(msg) from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise FailedPreconditionError(f"{url} cannot be opened: {error}") from error
    return fs, str(path)
