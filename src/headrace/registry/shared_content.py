"""Artifacts of a shared store: manifest, upload, download and deletion.

sha256/HEX/manifest.json            written last, once all files exist
sha256/HEX/GENERATION/FILE_HEX      a file, named by its own SHA-256

Writers and `gc` synchronize on the manifest: content exists while a manifest says so, and both
change it only by conditional writes. Before `gc` deletes files it marks the manifest as deleted; a
later push of the same content uses the next `generation`, so that a late deletion cannot hit files
that are in use again.
"""

import hashlib
import os
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    ConflictError,
    Digest,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    error_kind,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.registry.bucket import ObjectInfo, ObjectStore
from headrace.registry.content import Content, Progress, digest_of
from headrace.registry.index import StoredFile

_HEX: Final = frozenset("0123456789abcdef")
_SHA256_DIGITS: Final = 64
_MAX_GENERATION: Final = 10**15
_GENERATION_DIGITS: Final = 15


class ArtifactManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a digest: `sha256/HEX/manifest.json`.

    `filename` is what a runtime loads: a file, or a directory with `files`. `generation` is part of
    the keys of the files.
    """

    digest: Digest
    filename: str
    size_bytes: int
    files: tuple[StoredFile, ...]
    generation: int = 0
    is_deleted: bool = False
    """Whether the files are deleted, or being deleted."""
    touched_at: float = 0.0
    """Time of the last push, in seconds since 1970."""
    touched_by: str = ""
    """Random token of the last push, so that two manifests are never equal."""

    def key_of(self, file: StoredFile) -> str:
        """Return a file's key. It is named by content, so that keys have plain characters only."""
        return f"{content_prefix(self.digest)}{self.generation}/{file.sha256}"


def check_digest(text: str) -> Digest:
    """Check a digest and return it.

    Raises:
        InvalidArgumentError: It is malformed.
    """
    if not is_digest(text):
        message = f"'{text[:200]}' is not a digest, which is sha256: and 64 hexadecimal digits"
        raise InvalidArgumentError(message)
    return Digest(text)


def is_digest(text: str) -> bool:
    """Whether `text` is a digest."""
    kind, _, digits = text.partition(":")
    return kind == "sha256" and _is_sha256(digits)


def generation_of(key: str) -> int:
    """Return the generation of a file's key; -1 if the key has none."""
    part = [*key.split("/"), "", "", ""][2]
    is_number = part.isascii() and part.isdigit() and len(part) <= _GENERATION_DIGITS
    return int(part) if is_number else -1


def content_prefix(digest: Digest) -> str:
    """Return the key prefix of a digest's objects."""
    return f"sha256/{digest.removeprefix('sha256:')}/"


def manifest_key(digest: Digest) -> str:
    """Return the key of a digest's manifest."""
    return f"{content_prefix(digest)}manifest.json"


def encode_manifest(manifest: ArtifactManifest) -> bytes:
    """Encode the manifest as JSON."""
    return msgspec.json.encode(manifest)


def decode_manifest(data: bytes, digest: Digest, *, location: str) -> ArtifactManifest:
    """Decode and validate a manifest; its content is not trusted.

    Raises:
        ArtifactCorruptError: It is malformed, of another digest, or names files outside of its
            directory.
    """
    try:
        manifest = msgspec.json.decode(data, type=ArtifactManifest)
    except UNDECODABLE as error:
        description = error_kind(error)
        raise ArtifactCorruptError(
            f"{location} is damaged and cannot be read: {description}"
        ) from None
    if not 0 <= manifest.generation <= _MAX_GENERATION:
        raise ArtifactCorruptError(
            f"{location} is damaged: there is no generation {manifest.generation}"
        )
    if manifest.is_deleted and manifest.digest == digest:
        return manifest
    check_files(manifest.filename, manifest.files, location=location)
    if (real := digest_of(manifest.files)) != digest or manifest.digest != digest:
        raise ArtifactCorruptError(f"{location} is damaged: its files have digest {real}")
    if manifest.size_bytes != sum(file.size_bytes for file in manifest.files):
        raise ArtifactCorruptError(f"{location} is damaged: its sizes do not add up")
    return manifest


def check_files(filename: str, files: tuple[StoredFile, ...], *, location: str) -> None:
    """Check that file names do not leave the artifact's directory.

    Raises:
        ArtifactCorruptError: A name does.
    """
    if filename in {".", ".."} or not _is_part(filename):
        raise ArtifactCorruptError(f"{location} is damaged: it names the file {filename[:200]!r}")
    if not files:
        raise ArtifactCorruptError(f"{location} is damaged: it names no files")
    for file in files:
        parts = file.path.split("/")
        is_lone = not file.path and len(files) == 1
        if not is_lone and not all(_is_part(part) and part not in {".", ".."} for part in parts):
            raise ArtifactCorruptError(
                f"{location} is damaged: it names the file {file.path[:200]!r}"
            )
        if not _is_sha256(file.sha256):
            raise ArtifactCorruptError(f"{location} is damaged: {file.path[:200]!r} has no digest")
        if file.size_bytes < 0:
            raise ArtifactCorruptError(f"{location} is damaged: {file.path[:200]!r} has no size")
    paths = {file.path for file in files}
    inside = {str(p) for path in paths for p in PurePosixPath(path).parents}
    if len(paths) != len(files) or paths & inside - {"."}:
        raise ArtifactCorruptError(f"{location} is damaged: it names a file twice")


def _is_sha256(digits: str) -> bool:
    return len(digits) == _SHA256_DIGITS and _HEX.issuperset(digits)


def _is_part(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name


RANGE_BYTES: Final = 8 << 20
MAX_CONCURRENT_RANGES: Final = 4
"""Concurrent range reads; a download holds at most 32 MiB in memory."""
TOMBSTONE_AGE_S: Final = 30 * 86_400.0
"""How long a deleted artifact's manifest stays: longer than any deletion takes."""
_TRIES: Final = 20
_CHUNK_BYTES: Final = 1 << 20


class SharedContent:
    """Artifacts in an object store."""

    def __init__(self, bucket: ObjectStore) -> None:
        self._bucket = bucket

    def manifest(self, digest: Digest) -> ArtifactManifest:
        """Return the manifest of an existing artifact.

        Raises:
            NotFoundError: The artifact does not exist.
            ArtifactCorruptError: The manifest is damaged.
        """
        stored = self._manifest(digest)
        if stored is None or stored[0].is_deleted:
            raise NotFoundError(f"{self._bucket.where} holds no content with digest {digest}")
        return stored[0]

    def ensure(
        self,
        content: Content,
        source: Path,
        *,
        filename: str,
        now: Callable[[], float],
        progress: Progress | None = None,
    ) -> ArtifactManifest:
        """Upload missing files of the content at `source`; return its manifest with a new time.

        The time protects the content from `gc` until a version refers to it. Files of an
        interrupted upload are not sent again.

        Raises:
            ArtifactCorruptError: The files at `source` differ from `content`.
            ConflictError: Other processes keep changing the same content.
        """
        for _ in range(_TRIES):
            stored = self._manifest(content.digest)
            manifest = ArtifactManifest(
                digest=content.digest,
                filename=filename,
                size_bytes=content.size_bytes,
                files=content.files,
            )
            if stored is not None:
                generation = stored[0].generation + stored[0].is_deleted
                stored_filename = filename if stored[0].is_deleted else stored[0].filename
                manifest = msgspec.structs.replace(
                    manifest, generation=generation, filename=stored_filename
                )
            self._upload_missing(manifest, source, progress)
            touched = msgspec.structs.replace(
                manifest, touched_at=now(), touched_by=secrets.token_hex(8)
            )
            if self._write(touched, None if stored is None else stored[1]):
                return touched
        message = (
            f"too many concurrent changes of {content.digest} in {self._bucket.where}; try again"
        )
        raise ConflictError(message)

    def is_held(self, manifest: ArtifactManifest) -> bool:
        """Return whether the content still exists in the same generation."""
        stored = self._manifest(manifest.digest)
        return (
            stored is not None
            and not stored[0].is_deleted
            and stored[0].generation == manifest.generation
        )

    def download(
        self, manifest: ArtifactManifest, target: Path, *, progress: Progress | None = None
    ) -> None:
        """Download an artifact to `target`, which must not exist, and verify every file.

        Raises:
            ArtifactCorruptError: An object is missing or damaged; the message names it.
        """
        done = 0
        for file in manifest.files:
            path = target / file.path if file.path else target
            path.parent.mkdir(parents=True, exist_ok=True)
            sha256 = hashlib.sha256()
            with path.open("xb") as copy:
                for chunk in self._chunks(manifest, file):
                    sha256.update(chunk)
                    copy.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, manifest.size_bytes)
                copy.flush()
                os.fsync(copy.fileno())
            if sha256.hexdigest() != file.sha256:
                raise self._damaged(manifest, file, f"its content is sha256 {sha256.hexdigest()}")

    def sweep(
        self, list_referenced: Callable[[], Collection[Digest]], *, before: float
    ) -> tuple[list[Digest], int]:
        """Delete unreferenced artifacts; return their digests and the bytes freed.

        Args:
            list_referenced: Returns the digests to keep; called after the artifacts are listed.
            before: Seconds since 1970; artifacts written or touched later stay.
        """
        deleted: list[Digest] = []
        freed = 0
        old = dict(self._old(before))
        referenced = list_referenced() if old else ()
        for digest, objects in old.items():
            files = [info for info in objects if info.key != manifest_key(digest)]
            if digest in referenced or not self._claim(digest, files, before):
                continue
            self._bucket.delete(info.key for info in files)
            freed += sum(info.size_bytes for info in files)
            deleted += [digest] if files else []
        self._bucket.clean(before)
        return deleted, freed

    def _claim(self, digest: Digest, files: list[ObjectInfo], before: float) -> bool:
        """Mark the content as deleted; return False if it was touched meanwhile."""
        stored = self._manifest(digest)
        used = max((generation_of(info.key) for info in files), default=0)
        if stored is not None:
            manifest = stored[0]
            used = max(used, manifest.generation)
            if not manifest.is_deleted and manifest.touched_at >= before:
                return False
            if manifest.is_deleted and used == manifest.generation:
                if not files and manifest.touched_at < before - TOMBSTONE_AGE_S:
                    self._bucket.delete([manifest_key(digest)])
                return True
        tombstone = ArtifactManifest(
            digest=digest,
            filename="",
            size_bytes=0,
            files=(),
            generation=used,
            is_deleted=True,
            touched_at=before,
        )
        return self._write(tombstone, None if stored is None else stored[1])

    def _old(self, before: float) -> Iterator[tuple[Digest, list[ObjectInfo]]]:
        """Yield artifacts that were last written before that time, with their objects."""
        by_digest: dict[str, list[ObjectInfo]] = {}
        for info in self._bucket.list("sha256/"):
            by_digest.setdefault(f"sha256:{info.key.split('/')[1]}", []).append(info)
        for digest, objects in by_digest.items():
            if is_digest(digest) and max(info.modified_at for info in objects) < before:
                yield Digest(digest), objects

    def _manifest(self, digest: Digest) -> tuple[ArtifactManifest, str] | None:
        key = manifest_key(check_digest(digest))
        stored = self._bucket.read(key)
        if stored is None:
            return None
        return decode_manifest(stored[0], digest, location=f"{self._bucket.where}/{key}"), stored[1]

    def _write(self, manifest: ArtifactManifest, etag: str | None) -> bool:
        key, data = manifest_key(manifest.digest), encode_manifest(manifest)
        if etag is None:
            return self._bucket.create(key, data)
        return self._bucket.replace(key, data, etag)

    def _upload_missing(
        self, manifest: ArtifactManifest, source: Path, progress: Progress | None
    ) -> None:
        done = 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, manifest.size_bytes)

        for file in manifest.files:
            key = manifest.key_of(file)
            stored = self._bucket.find(key)
            if stored is not None and stored.size_bytes == file.size_bytes:
                report(file.size_bytes)
                continue
            path = source / file.path if file.path else source
            self._bucket.upload(key, _checked(path, file, report), file.size_bytes)

    def _chunks(self, manifest: ArtifactManifest, file: StoredFile) -> Iterator[bytes]:
        """Yield a file's ranges in order; `MAX_CONCURRENT_RANGES` are read concurrently."""
        key = manifest.key_of(file)
        starts = iter(range(0, file.size_bytes, RANGE_BYTES))
        waiting: deque[tuple[int, Future[bytes | None]]] = deque()
        with ThreadPoolExecutor(MAX_CONCURRENT_RANGES, thread_name_prefix="artifact") as pool:

            def ask(starts: Iterable[int]) -> None:
                for start in starts:
                    length = min(RANGE_BYTES, file.size_bytes - start)
                    future = pool.submit(self._bucket.read_range, key, start, length)
                    waiting.append((length, future))

            try:
                ask(start for _, start in zip(range(MAX_CONCURRENT_RANGES), starts, strict=False))
                while waiting:
                    length, coming = waiting.popleft()
                    chunk = coming.result()
                    ask([start] if (start := next(starts, None)) is not None else [])
                    if chunk is None:
                        raise self._damaged(manifest, file, "it is missing")
                    if len(chunk) != length:
                        raise self._damaged(manifest, file, "it is too short")
                    yield chunk
            finally:
                for _, pending in waiting:
                    pending.cancel()

    def _damaged(
        self, manifest: ArtifactManifest, file: StoredFile, reason: str
    ) -> ArtifactCorruptError:
        key = manifest.key_of(file)
        return ArtifactCorruptError(
            f"{self._bucket.where}/{key} is damaged: {reason}; it is "
            f"{file.path or manifest.filename} of {manifest.digest}. Delete that object and push "
            "the model again"
        )


def _checked(path: Path, file: StoredFile, report: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the content of `path`, and the last chunk only if the whole matches `file`.

    An upload of other content thus ends with an error instead of an object.
    """
    sha256 = hashlib.sha256()
    held = b""
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha256.update(chunk)
                if held:
                    yield held
                held = chunk
                report(len(chunk))
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error
    if sha256.hexdigest() != file.sha256:
        raise ArtifactCorruptError(f"{path} is damaged: it has sha256 {sha256.hexdigest()}")
    yield held
