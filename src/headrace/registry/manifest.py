"""What is an artifact in a shared store? A manifest that names its files, which it does not hold.

The manifest is where writers and `gc` meet: content counts while a manifest says that it is there,
and both change it only if nobody else did meanwhile. A `gc` that is to delete files says so first;
who wants the same content later uploads it under the next `generation`, so that no late deletion
can meet a file that is in use again.
"""

from pathlib import PurePosixPath
from typing import Final

import msgspec

from headrace.core import ArtifactCorruptError, Digest, InvalidArgumentError, error_kind
from headrace.registry.content import digest_of
from headrace.registry.version import UNREADABLE, StoredFile

_HEX: Final = frozenset("0123456789abcdef")
_SHA256_DIGITS: Final = 64
_MOST_GENERATION: Final = 10**15
_GENERATION_DIGITS: Final = 15


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content behind a digest: `sha256/HEX/manifest.json`.

    `filename` is what a runtime loads: a file, or a directory with `files`. `generation` is where
    the files lie. `is_deleted`: they are gone, or are being deleted. `touched_at` (seconds since
    1970) and `touched_by` change with each push, so that two manifests are never equal.
    """

    digest: Digest
    filename: str
    size_bytes: int
    files: tuple[StoredFile, ...]
    generation: int = 0
    is_deleted: bool = False
    touched_at: float = 0.0
    touched_by: str = ""

    def key_of(self, file: StoredFile) -> str:
        """Where a file lies. Named by content: whatever its path is, a key has plain characters."""
        return f"{content_prefix(self.digest)}{self.generation}/{file.sha256}"


def check_digest(text: str) -> Digest:
    """`text` as a digest.

    Raises:
        InvalidArgumentError: It is none.
    """
    if not is_digest(text):
        message = f"'{text[:200]}' is no digest; one looks like sha256: and 64 hexadecimal digits"
        raise InvalidArgumentError(message)
    return Digest(text)


def is_digest(text: str) -> bool:
    """Whether `text` is a digest."""
    kind, _, digits = text.partition(":")
    return kind == "sha256" and _is_sha256(digits)


def generation_of(key: str) -> int:
    """The generation of a file's key; -1 of what is none."""
    part = [*key.split("/"), "", "", ""][2]
    is_number = part.isascii() and part.isdigit() and len(part) <= _GENERATION_DIGITS
    return int(part) if is_number else -1


def content_prefix(digest: Digest) -> str:
    """Below which all that belongs to a digest lies."""
    return f"sha256/{digest.removeprefix('sha256:')}/"


def manifest_key(digest: Digest) -> str:
    """Where the manifest of a digest lies."""
    return f"{content_prefix(digest)}manifest.json"


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON."""
    return msgspec.json.encode(manifest)


def decode_manifest(data: bytes, digest: Digest, *, where: str) -> Manifest:
    """The manifest that `data` holds, which nobody has to be trusted for.

    Raises:
        ArtifactCorruptError: It is none, is not of this digest, or names files outside of its own
            directory.
    """
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except UNREADABLE as error:
        what = error_kind(error)
        raise ArtifactCorruptError(f"{where} is damaged and cannot be read: {what}") from None
    if not 0 <= found.generation <= _MOST_GENERATION:
        raise ArtifactCorruptError(f"{where} is damaged: there is no generation {found.generation}")
    if found.is_deleted and found.digest == digest:
        return found
    check_files(found.filename, found.files, where=where)
    if (real := digest_of(found.files)) != digest or found.digest != digest:
        raise ArtifactCorruptError(f"{where} is damaged: its files have digest {real}")
    if found.size_bytes != sum(file.size_bytes for file in found.files):
        raise ArtifactCorruptError(f"{where} is damaged: its sizes do not add up")
    return found


def check_files(filename: str, files: tuple[StoredFile, ...], *, where: str) -> None:
    """Refuse names that would become paths elsewhere.

    Raises:
        ArtifactCorruptError: One does.
    """
    if filename in {".", ".."} or not _is_part(filename):
        raise ArtifactCorruptError(f"{where} is damaged: it names the file {filename[:200]!r}")
    if not files:
        raise ArtifactCorruptError(f"{where} is damaged: it names no files")
    for file in files:
        parts = file.path.split("/")
        is_lone = not file.path and len(files) == 1
        if not is_lone and not all(_is_part(part) and part not in {".", ".."} for part in parts):
            raise ArtifactCorruptError(f"{where} is damaged: it names the file {file.path[:200]!r}")
        if not _is_sha256(file.sha256):
            raise ArtifactCorruptError(f"{where} is damaged: {file.path[:200]!r} has no digest")
        if file.size_bytes < 0:
            raise ArtifactCorruptError(f"{where} is damaged: {file.path[:200]!r} has no size")
    paths = {file.path for file in files}
    inside = {str(p) for path in paths for p in PurePosixPath(path).parents}
    if len(paths) != len(files) or paths & inside - {"."}:
        raise ArtifactCorruptError(f"{where} is damaged: it names a file twice")


def _is_sha256(digits: str) -> bool:
    return len(digits) == _SHA256_DIGITS and _HEX.issuperset(digits)


def _is_part(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name
