"""Remote model as a list of files, and the interface of the servers that hold it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from headrace.core import ArtifactCorruptError

MAX_FILES: Final = 10_000
_MAX_PATH_BYTES: Final = 1024
_MAX_NAME_BYTES: Final = 255


class Unpack(StrEnum):
    """What a downloaded file becomes."""

    NO = "no"
    """The file itself."""
    TAR = "tar"
    """A tar archive, compressed or not: its files."""
    IMAGE = "image"
    """A layer of a container image: its files below `/models`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a remote model."""

    path: str
    """Relative to the model, with `/`; empty for a lone file. Of a layer: a unique name."""
    locator: str
    """URL or key, for the source that listed it."""
    size_bytes: int | None = None
    """None if the server does not say."""
    sha256: str = ""
    """Published hash; empty if the server has none."""
    etag: str = ""
    """Strong entity tag that a continued download must match; empty without one."""
    unpack: Unpack = Unpack.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Content of a remote model at one moment."""

    name: str
    """Name of the file or directory."""
    files: tuple[RemoteFile, ...]
    revision: str
    """Identity of the content, such as `commit 1234…`; empty if the server has none. A download is
    continued, and a version is reused, only for an equal revision.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBody:
    """Bytes of a file from `offset`."""

    offset: int
    """Less than requested if the server sends the file from its start."""
    chunks: Iterator[bytes]
    size_bytes: int | None = None
    """Total size of the file; None if the server does not say."""


class Source(Protocol):
    """Server that holds a model.

    Methods raise UnavailableError for what a retry may mend, and other errors for what it cannot.
    """

    def resolve(self) -> Listing:
        """Return the current content."""

    def read(self, file: RemoteFile, start: int) -> AbstractContextManager[RemoteBody]:
        """Open a file of the listing, from byte `start` if possible.

        Raises:
            FailedPreconditionError: It has changed since the listing.
        """


def check_listing(listing: Listing, where: str) -> None:
    """Check that the files of a remote model stay inside its directory.

    Raises:
        ArtifactCorruptError: There are no files, too many, or a path that leaves the directory.
    """
    if not listing.files:
        raise ArtifactCorruptError(f"{where} holds no file of a model")
    if len(listing.files) > MAX_FILES:
        count = len(listing.files)
        raise ArtifactCorruptError(f"{where} holds {count} files, more than {MAX_FILES}")
    paths = [file.path for file in listing.files]
    if len(set(paths)) != len(paths):
        raise ArtifactCorruptError(f"{where} lists a file twice")
    for path in paths if paths != [""] else ():
        if not is_safe_path(path):
            raise ArtifactCorruptError(f"{where} lists the unsafe path {path[:200]!r}")


def is_safe_path(path: str) -> bool:
    """Whether a relative path stays inside its directory, on every file system."""
    parts = path.split("/")
    return (
        path.isprintable()
        and "\\" not in path
        and len(path.encode("utf-8", "replace")) <= _MAX_PATH_BYTES
        and all(
            part not in {"", ".", ".."} and len(part.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
            for part in parts
        )
    )
