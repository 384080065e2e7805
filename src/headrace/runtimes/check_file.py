"""File of recorded requests and responses for verifying a model: an `.npz` without pickles.

NumPy would pickle text, so text is stored as bytes and the length of each element.
"""

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import numpy as np

from headrace.core import Array, InvalidArgumentError, Tensors, UnsupportedModelError, error_kind
from headrace.core.datatypes import DTYPES
from headrace.runtimes.file_bytes import BrokenFileError

MAX_BYTES: Final = 1 << 29
"""Limit of all requests and responses together."""
MAX_REQUESTS: Final = 4096
_MAX_ARRAYS: Final = 65_536
_MAX_HEADER: Final = 10_000
_HEADERS_BYTES: Final = 16 << 20
_ENTRY: Final = re.compile(r"(in|out)/([0-9]{1,4})/([^/#]*)(#text|#sizes)?\.npy")
"""A name is quoted, so that it contains neither `/` nor `#`."""
_TEXT, _SIZES = "#text", "#sizes"
_DTYPES: Final = frozenset(dtype for dtype in DTYPES.values() if not dtype.hasobject)

Asked = tuple[Tensors, Tensors]
"""A request's inputs and the recorded outputs."""


def write_check(file: Path, requests: Sequence[Asked]) -> None:
    """Write requests and their outputs.

    Raises:
        InvalidArgumentError: There are no requests, or too many, or a tensor's dtype is not in the
            protocol.
    """
    if not 1 <= len(requests) <= MAX_REQUESTS:
        msg = (
            f"a model cannot be checked with {len(requests)} requests; allowed are 1 to "
            f"{MAX_REQUESTS}"
        )
        raise InvalidArgumentError(msg)
    left = MAX_BYTES
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in _entries(requests):
            left -= array.nbytes
            if left < 0:
                msg = f"the check requests need more than {MAX_BYTES} bytes"
                raise InvalidArgumentError(f"{msg}; use fewer")
            # A fixed date gives the same content the same digest.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, stream.getvalue())


def read_check(file: Path) -> tuple[Asked, ...]:
    """Return the requests and outputs that `write_check` wrote.

    Raises:
        UnsupportedModelError: The file is damaged, or declares more than the limit.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _paired(_arrays(archive))
    except (
        BrokenFileError,
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,  # encrypted
        NotImplementedError,
    ) as error:
        description = str(error) if isinstance(error, BrokenFileError) else error_kind(error)
        msg = f"{file}: is not a valid file of check requests: {description}"
        raise UnsupportedModelError(msg) from None


def _entries(requests: Sequence[Asked]) -> Iterator[tuple[str, Array]]:
    for number, pair in enumerate(requests):
        for side, tensors in zip(("in", "out"), pair, strict=True):
            for name, array in tensors.items():
                entry_name = f"{side}/{number}/{quote(name, safe='')}"
                if array.dtype.kind == "O":
                    items = array.ravel().tolist()
                    if not all(isinstance(item, bytes) for item in items):
                        msg = f"tensor '{name}' holds objects that are not bytes"
                        raise InvalidArgumentError(msg)
                    sizes = np.array(list(map(len, items)), np.int64).reshape(array.shape)
                    yield entry_name + _TEXT, np.frombuffer(b"".join(items), np.uint8)
                    yield entry_name + _SIZES, sizes
                elif array.dtype in _DTYPES:
                    yield entry_name, np.ascontiguousarray(array).reshape(array.shape)
                else:
                    msg = f"tensor '{name}' is of {array.dtype}, which a request cannot carry"
                    raise InvalidArgumentError(msg)


def _arrays(archive: zipfile.ZipFile) -> dict[str, Array]:
    """Return every array by side, number, name and part; reads are bounded."""
    entries = archive.infolist()
    if len(entries) > _MAX_ARRAYS:
        raise BrokenFileError(f"it holds {len(entries)} arrays; the limit is {_MAX_ARRAYS}")
    if sum(entry.file_size for entry in entries) > MAX_BYTES + _HEADERS_BYTES:
        raise BrokenFileError(f"it needs more than {MAX_BYTES} bytes")
    return {entry.filename: _array(archive, entry) for entry in entries}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    with archive.open(entry) as file:
        data = file.read(entry.file_size)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise BrokenFileError(f"an array has the version {version}")
    header = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
    shape, in_fortran_order, dtype = header
    if dtype not in _DTYPES or in_fortran_order:
        raise BrokenFileError("it holds an array whose type or order is not supported")
    held = len(data) - stream.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != held:
        raise BrokenFileError(f"an array claims the shape {shape} of {held} bytes")
    array: Array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
    return array


def _paired(arrays: Mapping[str, Array]) -> tuple[Asked, ...]:
    sides: dict[int, Asked] = {}
    for entry, array in arrays.items():
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise BrokenFileError("an entry is not a tensor of a request or response")
        side, number, name, part = match.groups()
        if part == _SIZES:
            continue
        tensors = sides.setdefault(int(number), ({}, {}))[side == "out"]
        sizes = arrays.get(entry.replace(_TEXT, _SIZES))
        tensors[unquote(name)] = _text(array, sizes) if part else array
    if not sides or sorted(sides) != list(range(len(sides))):
        raise BrokenFileError("its requests are not numbered from 0")
    if any(not answers for _, answers in sides.values()):
        raise BrokenFileError("a request has no response")
    return tuple(sides[number] for number in sorted(sides))


def _text(data: Array, sizes: Array | None) -> Array:
    if sizes is None or sizes.dtype != np.int64 or data.dtype != np.uint8 or data.ndim != 1:
        raise BrokenFileError("a text is not valid UTF-8")
    counts: list[int] = sizes.ravel().tolist()
    if min(counts, default=0) < 0 or sum(counts) != data.size:
        raise BrokenFileError("a text has another size than declared")
    whole, array = data.tobytes(), np.empty(sizes.size, np.object_)
    ends = accumulate(counts)
    array[:] = [whole[end - size : end] for end, size in zip(ends, counts, strict=True)]
    return array.reshape(sizes.shape)
