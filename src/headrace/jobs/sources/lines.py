"""Cuts of large text files at ends of rows, with the number of the line where each part begins."""

from collections.abc import Iterator
from typing import IO, Final, Protocol

import numpy as np

from headrace.core import Array, InvalidArgumentError
from headrace.jobs.messages import Shard
from headrace.jobs.sources.files import fingerprint, open_file, unreadable

MAX_SHARD_BYTES: Final = 16 << 20
"""Text is parsed a shard at a time; columns of numbers are about as large in memory."""
MAX_LINE_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 1 << 20


class RowEnds(Protocol):
    """Where the rows of a text end that begins with a row."""

    def __call__(self, data: bytes, *, complete: bool) -> Array:
        """Positions behind the rows, ascending.

        Args:
            complete: Whether the file ends here; else only rows count that more text cannot change.
        """


def line_ends(data: bytes, *, complete: bool) -> Array:
    """Where the rows of a text end in which every line is one."""
    del complete  # the end of the file ends the last part anyway
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1


def cut_file(
    name: str,
    *,
    begin: int,
    shard_bytes: int,
    first: int,
    line: int = 1,
    row_ends: RowEnds = line_ends,
) -> Iterator[Shard]:
    """Parts of a file from `begin` on, of about `shard_bytes`, at most 16 MiB and a row.

    Args:
        first: The first part's number.
        line: The number of the line at `begin`.

    Raises:
        InvalidArgumentError: It cannot be read, or a line is far too long.
    """
    mark, size = fingerprint(name)
    start = begin
    try:
        with open_file(name) as file:
            cuts = _cuts(file, name, begin, min(shard_bytes, MAX_SHARD_BYTES), row_ends)
            for end, lines in [*cuts, (size, 0)]:
                if end > start:
                    yield Shard(
                        number=first,
                        file=name,
                        begin=start,
                        end=end,
                        fingerprint=mark,
                        size_bytes=end - start,
                        line=line,
                    )
                    first, start, line = first + 1, end, line + lines
    except OSError as error:
        raise unreadable(name, error) from error


def _cuts(
    file: IO[bytes], name: str, begin: int, wanted: int, row_ends: RowEnds
) -> Iterator[tuple[int, int]]:
    """Ends of rows, each at least `wanted` bytes after the last, and the lines between them."""
    file.seek(begin)
    data, offset, last, lines = b"", begin, begin, 0
    """Text from the begin of a row on, where it begins; the last cut, and the lines after it."""
    # A row that is longer than a block is looked at again only when twice as much is there.
    while block := file.read(max(_BLOCK_BYTES, len(data))):
        data += block
        ends = row_ends(data, complete=False)
        if not len(ends) and len(data) > MAX_LINE_BYTES:
            # An unclosed quote costs its line, if that has an end.
            ends = row_ends(data, complete=True)[:1]
            if not len(ends) or ends[0] == len(data):
                msg = (
                    f"{name}: a line after byte {offset} has more than {MAX_LINE_BYTES} bytes; "
                    "is a quote missing?"
                )
                raise InvalidArgumentError(msg)
        end = 0
        while (row := int(np.searchsorted(ends, last + wanted - offset))) < len(ends):
            cut = int(ends[row])
            lines += data.count(b"\n", end, cut)
            yield offset + cut, lines
            last, lines, end = offset + cut, 0, cut
        done = int(ends[-1]) if len(ends) else 0
        lines += data.count(b"\n", end, done)
        data, offset = data[done:], offset + done
