"""Content of a model's file or directory, hashed and copied.

The digest of a file is the SHA-256 of its bytes. That of a directory is the SHA-256 of the list of
its files, sorted by path, each with its own SHA-256: the same on every machine, and a change can
be traced to a file. Empty directories, file modes and times do not count.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from headrace.core import ArtifactCorruptError, Digest, InvalidArgumentError
from headrace.registry.tree import Tree
from headrace.registry.version import StoredFile

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_TREE_MARK: Final = b"headrace-tree-1\n"
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A model's files and the digest over them."""

    digest: Digest
    size_bytes: int
    files: tuple[StoredFile, ...]


def read_content(path: Path, *, beneath: Path | None = None) -> Content:
    """Hash the file or directory at `path`.

    Raises:
        InvalidArgumentError: It holds no file, or something that cannot be stored.
    """
    with Tree.open(path, beneath=beneath) as tree:
        return _content(tree, tree.names(), lambda _, stream: _hash(stream))


def copy_content(
    path: Path, target: Path, *, beneath: Path | None = None, progress: Progress | None = None
) -> Content:
    """Copy the file or directory at `path` to `target`, hashing what is written.

    `target` must not exist. Copies are flushed to disk, so that what is published later survives a
    power cut. Nothing outside of `path` is copied, whatever is changed there meanwhile.

    Raises:
        InvalidArgumentError: It holds no file, or something that cannot be stored.
        OSError: Reading or writing fails.
    """
    total = done = 0

    def copy(name: str, stream: BinaryIO) -> tuple[int, str]:
        def write(chunk: bytes) -> None:
            nonlocal done
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)

        copied = target / name if name else target
        copied.parent.mkdir(parents=True, exist_ok=True)
        with copied.open("xb") as file:
            result = _hash(stream, write)
            file.flush()
            os.fsync(file.fileno())
        return result

    with Tree.open(path, beneath=beneath) as tree:
        names = tree.names()
        for name in names if progress is not None else ():
            with tree.open_file(name) as stream:
                total += os.fstat(stream.fileno()).st_size
        return _content(tree, names, copy)


def differences(path: Path, files: tuple[StoredFile, ...]) -> list[str]:
    """How what is at `path` differs from `files`; empty if it does not."""
    try:
        present = {file.path: file.sha256 for file in read_content(path).files}
    except InvalidArgumentError as error:
        return [str(error)]
    expected = {file.path: file.sha256 for file in files}
    problems = [f"unexpected file {name}" for name in present if name not in expected]
    for name, sha256 in expected.items():
        if name not in present:
            problems.append(f"{name or path.name} is missing")
        elif present[name] != sha256:
            shown = name or path.name
            problems.append(f"{shown}: expected sha256 {sha256}, found {present[name]}")
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


def _content(
    tree: Tree, names: Sequence[str], handle: Callable[[str, BinaryIO], tuple[int, str]]
) -> Content:
    files: list[StoredFile] = []
    for name in names:
        with tree.open_file(name) as stream:
            size, sha256 = handle(name, stream)
        files.append(StoredFile(path=name, size_bytes=size, sha256=sha256))
    return Content(
        digest=digest_of(files), size_bytes=sum(f.size_bytes for f in files), files=tuple(files)
    )


def _hash(stream: BinaryIO, write: Callable[[bytes], object] = lambda _: None) -> tuple[int, str]:
    """The size and SHA-256 of what was read, and passed to `write`."""
    sha256 = hashlib.sha256()
    size = 0
    while chunk := stream.read(_CHUNK_BYTES):
        sha256.update(chunk)
        write(chunk)
        size += len(chunk)
    return size, sha256.hexdigest()
