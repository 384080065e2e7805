"""Which answers did a replica give? The latest ones, kept for pairing with another replica's."""

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final
from zlib import crc32

import numpy as np

from headrace.core import Array, Tensors
from headrace.serving.report import Answer, AnswersPage

CAPACITY: Final = 20_000
"""Answers that are kept; then the oldest goes."""
PAGE: Final = 500
"""Answers in one page: one of answers with 64 numbers each is encoded in 3 ms."""
MAX_VALUES: Final = 64
_LONGEST_TEXT: Final = 200
_WHOLE: Final = 100

Piece = Array | list[str]


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer as it is kept: numbers as arrays, which take an eighth of a list's memory."""

    request_id: str
    unit: str
    pieces: Sequence[Piece] = ()
    digest: bytes = b""
    failed: bool = False


class AnswerRing:
    """The last `CAPACITY` answers. A cursor counts all answers that were ever added."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque(maxlen=CAPACITY)
        self._added = 0

    def add(self, request_id: str, unit: str, outputs: Tensors) -> None:
        """Keep the beginning of an answer, and a digest of all of it."""
        pieces = tuple(_pieces(outputs))
        self._append(_Kept(request_id, unit, pieces, digest_of(outputs)))

    def add_failure(self, request_id: str, unit: str) -> None:
        """Keep that a request got an error."""
        self._append(_Kept(request_id, unit, failed=True))

    def clear(self) -> None:
        """Forget all answers; the cursor goes on."""
        self._kept.clear()

    def page(self, after: int) -> AnswersPage:
        """What was added after the cursor `after`, or all if that is of another process's ring."""
        oldest = self._added - len(self._kept)
        first = max(after, oldest) if after <= self._added else oldest
        found = islice(self._kept, first - oldest, first - oldest + PAGE)
        answers = [_answer(kept) for kept in found]
        return AnswersPage(cursor=first + len(answers), answers=answers)

    def _append(self, kept: _Kept) -> None:
        self._added += 1
        self._kept.append(kept)


def is_sampled(request_id: bytes, percent: int) -> bool:
    """Whether an id is in a share of `percent` of all ids: the same one in every process."""
    return crc32(request_id) % _WHOLE < percent


def digest_of(outputs: Tensors) -> bytes:
    """Eight bytes that are equal for equal outputs."""
    digest = hashlib.blake2b(digest_size=8)
    for name, array in outputs.items():
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        if array.dtype.kind == "O":
            for item in array.ravel().tolist():
                digest.update(len(item).to_bytes(8))
                digest.update(item)
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _pieces(outputs: Tensors) -> Iterator[Piece]:
    left = MAX_VALUES
    for array in outputs.values():
        if left <= 0:
            return
        part = array.reshape(-1)[:left]
        left -= part.size
        if part.dtype.kind == "O":
            yield [item.decode(errors="replace")[:_LONGEST_TEXT] for item in part.tolist()]
        else:
            yield part.astype(np.float64)


def _answer(kept: _Kept) -> Answer:
    values: list[float | str] = []
    for piece in kept.pieces:
        if isinstance(piece, list):
            values += piece
        else:  # JSON has no number for what is not finite
            values += [v if math.isfinite(v) else str(v) for v in piece.tolist()]
    return Answer(kept.request_id, kept.unit, values, kept.digest.hex(), kept.failed)
