"""Image source: one row per file, with its `path` within the folder and its bytes as `image`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from headrace.core import Datatype, InvalidArgumentError
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.parquet import runs
from headrace.jobs.sources.source import JobSource, ReadRequest, Rows, is_url, open_file, unreadable

PATH: Final = "path"
IMAGE: Final = "image"
_MAX_BYTES: Final = 8 << 20
"""Maximum bytes of images in one window, not counting its first image."""
_MAX_FILE_BYTES: Final = 256 << 20


class ImagesSource(JobSource):
    """Image files, in the order of their names."""

    def __init__(self, files: Sequence[str], root: str) -> None:
        for name in files:
            if is_url(name):
                raise InvalidArgumentError(f"{name}: images must be in a local folder")
        self._files = list(files)
        self._root = Path(root) if Path(root).is_dir() else Path()

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the two columns."""
        del datatypes
        return pa.schema([(PATH, pa.large_string()), (IMAGE, pa.large_binary())])

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Group neighbouring files; the fingerprint covers their names, sizes and times."""
        del columns
        counted = [(1, Path(name).stat().st_size) for name in self._files]
        shards: list[Shard] = []
        for begin, end in runs(counted, sizes):
            shards.append(
                Shard(
                    number=len(shards),
                    file=str(self._root),
                    begin=begin,
                    end=end,
                    fingerprint=self._mark(begin, end),
                    rows=end - begin,
                    size_bytes=sum(size for _, size in counted[begin:end]),
                )
            )
        return shards

    def mark(self, shard: Shard) -> str:
        """Return the fingerprint of the shard's files."""
        return self._mark(shard.begin, shard.end)

    def _mark(self, begin: int, end: int) -> str:
        digest = hashlib.sha256()
        for name in self._files[begin:end]:
            try:
                info = Path(name).stat()
            except OSError as error:
                raise unreadable(name, error) from error
            digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\0".encode())
        return digest.hexdigest()[:32]

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Yield windows of a few files."""
        names: list[str] = []
        images: list[bytes | None] = []
        broken: dict[int, str] = {}
        size = 0
        for name in self._files[shard.begin : shard.end]:
            data, reason = _read(name) if IMAGE in request.columns else (b"", "")
            if names and (len(names) == request.rows or size + len(data) > _MAX_BYTES):
                yield _rows(names, images, broken, request)
                names, images, broken, size = [], [], {}, 0
            if reason:
                broken[len(names)] = reason
            names.append(str(Path(name).relative_to(self._root)))
            images.append(None if reason else data)
            size += len(data)
        if names:
            yield _rows(names, images, broken, request)


def _read(name: str) -> tuple[bytes, str]:
    """Return an image's bytes, or the error."""
    try:
        with open_file(name) as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        return b"", f"{name} cannot be read: {error.strerror or error}"
    if len(data) > _MAX_FILE_BYTES:
        return b"", f"{name} has more than {_MAX_FILE_BYTES} bytes"
    return data, ""


def _rows(
    names: Sequence[str],
    images: Sequence[bytes | None],
    broken: dict[int, str],
    request: ReadRequest,
) -> Rows:
    frame = pl.DataFrame({PATH: names, IMAGE: images}, schema={PATH: pl.String, IMAGE: pl.Binary})
    return Rows(frame=frame.select(request.columns), broken=broken)
