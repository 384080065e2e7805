"""What does a store of objects do? Whole objects under keys: each is there with all of it, or not.

Three things hold the registry of several hosts together: an object is seen whole or not at all,
`create` succeeds once for a key, and `replace` succeeds only if nobody else wrote meanwhile.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.core import ArtifactCorruptError

MOST_READ_BYTES: Final = 64 << 20
"""Of a small object. More is nothing that we wrote, and would fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a listing says of an object; `modified_at` in seconds since 1970, by the store's clock.

    `etag` changes whenever the content does.
    """

    key: str
    size_bytes: int
    modified_at: float
    etag: str


def check_small(where: str, key: str, size_bytes: int) -> None:
    """Raise ArtifactCorruptError if an object is too large to be read whole."""
    if size_bytes > MOST_READ_BYTES:
        raise ArtifactCorruptError(
            f"{where}/{key} is damaged: it has {size_bytes} bytes, and {MOST_READ_BYTES} at most "
            "can be ours"
        )


class Bucket(Protocol):
    """Objects under keys such as `registry/fraud/3.json`; safe to use from several threads.

    Every method raises UnavailableError where the store does not answer in time, and
    FailedPreconditionError where it refuses.
    """

    @property
    def where(self) -> str:
        """Its URL, for messages; holds no secret."""

    def read(self, key: str) -> tuple[bytes, str] | None:
        """A small object with its etag; None if there is none.

        Raises:
            ArtifactCorruptError: It has more than `MOST_READ_BYTES`.
        """

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        """`length` bytes from `start`, fewer where the object ends; None if there is none."""

    def find(self, key: str) -> ObjectInfo | None:
        """What is known about an object; None if there is none."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin with `prefix`, which is empty or ends with `/`."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that is not there yet; whether it holds `data` now."""

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """Write over the content that `etag` stands for; whether it holds `data` now."""

    def upload(self, key: str, chunks: Iterator[bytes], size_bytes: int) -> None:
        """Write a large object, whatever was there; an error of `chunks` leaves it as it was."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there do no harm."""

    def clean(self, before: float) -> None:
        """Delete what writers that were killed before that time left, where that can be seen."""
