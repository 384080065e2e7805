"""Download of a model to a host without a registry, verified and published atomically."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core import (
    ArtifactCorruptError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelName,
    check_name,
    check_version,
)
from headrace.core.files import move, sync_directory
from headrace.registry.content import check_content, differences, read_content
from headrace.registry.index import VersionNotFoundError
from headrace.registry.shared import SharedStore
from headrace.registry.shared_content import ArtifactManifest, check_digest, is_digest

_STAGING: Final = ".headrace-fetch-"
_LOCK: Final = ".headrace-fetch.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A fetched model: `path` is what a runtime loads; `reference` as requested."""

    reference: str
    digest: str
    path: str
    size_bytes: int
    is_new: bool
    """Whether this call downloaded it."""


def fetch_model(
    shared: SharedStore,
    reference: str,
    output: Path,
    *,
    deadline: float | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Fetched:
    """Download the model `sha256:DIGEST` or `NAME:VERSION` into `output`.

    It appears atomically under its own file name. Equal content is left in place; other content
    of that name is replaced.

    Args:
        deadline: By `monotonic`; None waits as long as the store sends.

    Raises:
        NotFoundError: The content or version does not exist.
        ArtifactCorruptError: An object of the store is damaged; the message names it.
        UnavailableError: The store does not answer.
        DeadlineExceededError: The download did not finish by the deadline.
        FailedPreconditionError: The disk is full or not writable.
    """
    manifest = _manifest(shared, reference)
    if manifest.filename.startswith("."):
        # The file name comes from the store, and no digest covers it.
        raise ArtifactCorruptError(
            f"{reference} is stored as {manifest.filename[:200]!r} in {shared.where}: names that "
            f"begin with a dot are not written to {output}; push it under another file name"
        )
    path = output / manifest.filename
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _alone_in(output):
            is_new = not path.exists() or bool(differences(path, manifest.files))
            if is_new:
                free = shutil.disk_usage(output).free
                if free < manifest.size_bytes:
                    message = (
                        f"{manifest.filename} has {manifest.size_bytes} bytes, and {free} are free "
                        f"in {output}"
                    )
                    raise FailedPreconditionError(message)
                with (
                    _deadline(shared, deadline, monotonic),
                    tempfile.TemporaryDirectory(
                        dir=output, prefix=_STAGING, ignore_cleanup_errors=True
                    ) as folder,
                ):
                    staging = Path(folder)
                    staged = staging / manifest.filename
                    shared.fetch(manifest, staged)
                    check_content(staged, manifest.files, manifest.digest, location=shared.where)
                    _publish(staged, path, staging)
    except OSError as error:
        location = f" ({error.filename})" if error.filename else ""
        message = f"cannot fetch {reference} to {output}: {error.strerror or error}{location}"
        raise FailedPreconditionError(message) from error
    return Fetched(
        reference=reference,
        digest=manifest.digest,
        path=str(path.absolute()),
        size_bytes=manifest.size_bytes,
        is_new=is_new,
    )


def check_model(digest: str, path: Path) -> Fetched:
    """Check that the model at `path`, such as a mounted volume's, has this digest, and return it.

    Raises:
        InvalidArgumentError: `digest` is malformed, or no model is at `path`.
        ArtifactCorruptError: The model has another digest.
    """
    check_digest(digest)
    content = read_content(path)
    if content.digest != digest:
        raise ArtifactCorruptError(f"{path} has digest {content.digest}, not {digest}")
    return Fetched(
        reference=digest,
        digest=digest,
        path=str(path.absolute()),
        size_bytes=content.size_bytes,
        is_new=False,
    )


def check_reference(reference: str) -> None:
    """Raise InvalidArgumentError if `reference` is neither a version nor a digest."""
    name, colon, number = reference.partition(":")
    if is_digest(reference):
        return
    if name == "sha256" and not number.isdecimal():
        check_digest(reference)
    if not colon:
        message = f"'{reference[:200]}' is neither NAME:VERSION nor sha256:DIGEST"
        raise InvalidArgumentError(message)
    check_name(name)
    check_version(number)


def _manifest(shared: SharedStore, reference: str) -> ArtifactManifest:
    if is_digest(reference):
        return shared.content.manifest(check_digest(reference))
    check_reference(reference)
    name, _, number = reference.partition(":")
    listed = shared.index.list(name).get(ModelName(name))
    version = (
        shared.index.read(name, int(number)) if listed and int(number) in listed.live else None
    )
    if version is None:
        raise VersionNotFoundError(name, number, listed.live if listed else ())
    return shared.content.manifest(version.digest)


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Lock `output` against other fetches and delete leftovers of killed ones."""
    with (output / _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in output.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _deadline(
    shared: SharedStore, deadline: float | None, monotonic: Callable[[], float]
) -> Iterator[None]:
    """Abort the block's transfer at the deadline."""
    original = shared.on_transfer

    def check_deadline(description: str, done: int, total: int) -> None:
        if deadline is not None and monotonic() > deadline:
            message = f"{description}: {done} of {total} bytes were transferred by the deadline"
            raise DeadlineExceededError(message)
        original(description, done, total)

    shared.on_transfer = check_deadline
    try:
        yield
    finally:
        shared.on_transfer = original


def _publish(staged: Path, path: Path, staging: Path) -> None:
    """Move the staged model into place; an old directory is moved away first."""
    for directory, _, names in os.walk(staged) if staged.is_dir() else ():
        for name in names:
            Path(directory, name).chmod(0o444)
        sync_directory(Path(directory))
    if staged.is_file():
        staged.chmod(0o444)
    if path.is_dir() or (staged.is_dir() and path.exists()):
        move(path, staging / "former", durable=False)
    move(staged, path)
