"""Where can a large text file be cut? After a line's end that is not inside quotes."""

from collections.abc import Iterator
from typing import IO, Final

from headrace.core import InvalidArgumentError
from headrace.jobs.messages import Shard
from headrace.jobs.sources.files import fingerprint, open_file, unreadable

MAX_SHARD_BYTES: Final = 16 << 20
"""Text is parsed a shard at a time; columns of numbers are about as large in memory."""
MAX_LINE_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 1 << 20


def cut_file(
    name: str, *, begin: int, shard_bytes: int, quoted: bool, first: int
) -> Iterator[Shard]:
    """Parts of a file from `begin` on, of about `shard_bytes`, at ends of lines.

    Args:
        quoted: Ends of lines between double quotes belong to a value, as in CSV.
        first: The first part's number.

    Raises:
        InvalidArgumentError: It cannot be read, or a line is far too long.
    """
    mark, size = fingerprint(name)
    start = begin
    try:
        with open_file(name) as file:
            for end in [*_cuts(file, name, begin, min(shard_bytes, MAX_SHARD_BYTES), quoted), size]:
                if end > start:
                    yield Shard(
                        number=first,
                        file=name,
                        begin=start,
                        end=end,
                        fingerprint=mark,
                        size_bytes=end - start,
                    )
                    first, start = first + 1, end
    except OSError as error:
        raise unreadable(name, error) from error


def _cuts(  # one caller
    file: IO[bytes],
    name: str,
    begin: int,
    wanted: int,
    quoted: bool,  # noqa: FBT001  # as above
) -> Iterator[int]:
    """Places after ends of lines, each at least `wanted` bytes after the last."""
    file.seek(begin)
    place, last, odd = begin, begin, False
    while block := file.read(_BLOCK_BYTES):
        at = 0
        while at < len(block):
            # Up to here nothing is looked for but quotes.
            skip = min(max(last + wanted - place - at, 0), len(block) - at)
            odd ^= quoted and bool(block.count(b'"', at, at + skip) & 1)
            at += skip
            if at == len(block):
                break
            end, odd = _line_end(block, at, odd=odd, quoted=quoted)
            if end < 0:
                at = len(block)
            else:
                at = end
                last = place + end
                yield last
        place += len(block)
        if place - last > wanted + MAX_LINE_BYTES:
            msg = (
                f"{name}: a line after byte {last + wanted} has more than {MAX_LINE_BYTES} bytes; "
                "is a quote missing?"
            )
            raise InvalidArgumentError(msg)


def _line_end(block: bytes, at: int, *, odd: bool, quoted: bool) -> tuple[int, bool]:
    """The place after the next end of a line outside quotes, -1 if there is none in the block."""
    while (end := block.find(b"\n", at)) >= 0:
        odd ^= quoted and bool(block.count(b'"', at, end) & 1)
        if not odd:
            return end + 1, odd
        at = end + 1
    return -1, odd ^ (quoted and bool(block.count(b'"', at) & 1))
