"""What is in a model's file or directory: listed, hashed, copied.

The digest of a file is the SHA-256 of its bytes. That of a directory is the SHA-256 of the list of
its files, sorted by path, each with its own SHA-256: the same on every machine, and a change can
be traced to a file. Empty directories, file modes and times do not count.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core import ArtifactCorruptError, Digest, InvalidArgumentError
from headrace.registry.version import StoredFile

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

IGNORED: Final = frozenset({"__pycache__", ".git", ".DS_Store"})
"""What tools leave in a directory; never part of a model."""

_TREE_MARK: Final = b"headrace-tree-1\n"
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A model's files and the digest over them."""

    digest: Digest
    size_bytes: int
    files: tuple[StoredFile, ...]


def read_content(path: Path) -> Content:
    """Hash the file or directory at `path`.

    Raises:
        InvalidArgumentError: It holds no file, or something that cannot be stored.
    """
    return _content(path, lambda source: _hash_only(source, _nothing))


def copy_content(path: Path, target: Path, *, progress: Progress | None = None) -> Content:
    """Copy the file or directory at `path` to `target`, hashing what is written.

    `target` must not exist. Copies are flushed to disk, so that what is published later survives a
    power cut.

    Raises:
        InvalidArgumentError: It holds no file, or something that cannot be stored.
        OSError: Reading or writing fails.
    """
    total = sum(file.stat().st_size for _, file in list_files(path))
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def copy(source: Path) -> tuple[int, str]:
        copied = target / source.relative_to(path) if source != path else target
        copied.parent.mkdir(parents=True, exist_ok=True)
        return _copy_and_hash(source, copied, report)

    return _content(path, copy)


def list_files(path: Path) -> list[tuple[str, Path]]:
    """Each file under `path` with its relative path (empty if `path` is a file itself), sorted.

    Raises:
        InvalidArgumentError: There is none, or a link that leaves the directory, or something that
            is neither a file nor a directory.
    """
    if path.is_file():
        return [("", path)]
    if not path.is_dir():
        what = "is neither a file nor a directory" if path.exists() else "does not exist"
        msg = f"{path}: {what}"
        raise InvalidArgumentError(msg)
    root = path.resolve()
    found = sorted((file.relative_to(path).as_posix(), file) for file in _walk(path, root))
    if not found:
        msg = f"{path}: the directory holds no file"
        raise InvalidArgumentError(msg)
    return found


def differences(path: Path, files: tuple[StoredFile, ...]) -> list[str]:
    """How what is at `path` differs from `files`; empty if it does not."""
    try:
        present = dict(list_files(path))
    except InvalidArgumentError as error:
        return [str(error)]
    problems = [
        f"unexpected file {name}" for name in present if name not in {f.path for f in files}
    ]
    for stored in files:
        file = present.get(stored.path)
        shown = stored.path or path.name
        if file is None:
            problems.append(f"{shown} is missing")
            continue
        _, found = _hash_only(file, _nothing)
        if found != stored.sha256:
            problems.append(f"{shown}: expected sha256 {stored.sha256}, found {found}")
    return problems


def check_content(path: Path, files: tuple[StoredFile, ...], digest: Digest, *, where: str) -> None:
    """Compare what is at `path` with `files`, and these with the digest over them.

    Raises:
        ArtifactCorruptError: They differ; the message names `where`, each file and both digests.
    """
    problems = differences(path, files)
    if not problems and digest_of(files) != digest:
        problems = [f"expected digest {digest}, found {digest_of(files)}"]
    if problems:
        msg = f"{where} is damaged: {'; '.join(problems)}"
        raise ArtifactCorruptError(msg)


def digest_of(files: Sequence[StoredFile]) -> Digest:
    """The digest over files that are sorted by path; that of a lone file is its own."""
    if len(files) == 1 and not files[0].path:
        return Digest(f"sha256:{files[0].sha256}")
    tree = hashlib.sha256(_TREE_MARK)
    for file in files:
        # The path comes last and ends with a byte that no path holds: no two lists look alike.
        tree.update(f"{file.sha256} {file.path}\0".encode("utf-8", "surrogateescape"))
    return Digest(f"sha256:{tree.hexdigest()}")


def _content(path: Path, handle: Callable[[Path], tuple[int, str]]) -> Content:
    files: list[StoredFile] = []
    for name, file in list_files(path):
        size, sha256 = handle(file)
        files.append(StoredFile(path=name, size_bytes=size, sha256=sha256))
    return Content(
        digest=digest_of(files), size_bytes=sum(f.size_bytes for f in files), files=tuple(files)
    )


def _walk(directory: Path, root: Path) -> Iterator[Path]:
    for entry in sorted(directory.iterdir()):
        if entry.name in IGNORED:
            continue
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            msg = f"{entry}: the link leaves the directory; put the file itself there"
            raise InvalidArgumentError(msg)
        if entry.is_dir():
            if entry.is_symlink():
                msg = f"{entry}: links to directories are not stored; put the directory there"
                raise InvalidArgumentError(msg)
            yield from _walk(entry, root)
        elif entry.is_file():
            yield entry
        else:
            what = "the link leads nowhere" if entry.is_symlink() else "is no regular file"
            msg = f"{entry}: {what}"
            raise InvalidArgumentError(msg)


def _hash_only(source: Path, report: Callable[[int], None]) -> tuple[int, str]:
    sha256 = hashlib.sha256()
    size = 0
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
            report(len(chunk))
    return size, sha256.hexdigest()


def _copy_and_hash(source: Path, target: Path, report: Callable[[int], None]) -> tuple[int, str]:
    sha256 = hashlib.sha256()
    size = 0
    with source.open("rb") as stream, target.open("xb") as copy:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
            copy.write(chunk)
            size += len(chunk)
            report(len(chunk))
        copy.flush()
        os.fsync(copy.fileno())
    return size, sha256.hexdigest()


def _nothing(_: int) -> None:
    """No progress to report."""
