"""Reading, hashing and copying of model files that other processes may change meanwhile.

The digest of a file is the SHA-256 of its bytes. That of a directory is the SHA-256 of the list of
its files, sorted by path, each with its own SHA-256: the same on every machine, and a change can be
attributed to a file. Empty directories, file modes and times do not count.

Every component of a path is opened separately, from the descriptor of its parent directory and with
`O_NOFOLLOW`; a symbolic link is read and its target opened in the same way, as long as it stays
below the root. So even if a component is renamed or replaced by a link between a check and its use,
only files below the root are read. (`openat2` with `RESOLVE_BENEATH` does the same, but older
kernels and container runtimes lack it.)
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from headrace.core import ArtifactCorruptError, Digest, InvalidArgumentError
from headrace.registry.index import StoredFile

IGNORED: Final = frozenset({"__pycache__", ".git", ".DS_Store"})
"""Files that tools create in a directory; never part of a model."""
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags with which opening a FIFO or device does not block; its type is then refused."""
_MAX_LINKS: Final = 40
"""Limit of links on the path to one file, as in Linux."""
_MAX_DEPTH: Final = 64
"""Limit of nested directories; each holds a descriptor open."""
_NEITHER: Final = "is neither a file nor a directory"
_LEAVES: Final = "the link leaves the directory; put the file itself there"


@dataclass(frozen=True, slots=True)
class Tree:
    """An open file or directory; a context manager that closes it.

    `path` itself may be a link; links below it that leave it are refused.
    """

    path: Path
    _root: int = field(repr=False)
    _is_file: bool = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, *, beneath: Path | None = None) -> "Iterator[Tree]":
        """Open `path`; with `beneath`, a directory above it, only if no link leaves that.

        Raises:
            InvalidArgumentError: It does not exist, is neither a file nor a directory, or is
                outside of `beneath`.
            OSError: It cannot be opened.
        """
        with ExitStack() as stack:
            try:
                if beneath is None:
                    root = os.open(path, _FLAGS)
                elif not path.is_relative_to(beneath):
                    raise InvalidArgumentError(f"{path}: is outside of {beneath}")
                else:
                    with _opened(beneath) as above:
                        root = _open_beneath(above, path.relative_to(beneath).as_posix(), path)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket, or a device without a driver
                    raise InvalidArgumentError(f"{path}: {_NEITHER}") from None
                if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    raise InvalidArgumentError(f"{path}: does not exist") from None
                raise
            stack.callback(os.close, root)
            mode = os.fstat(root).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise InvalidArgumentError(f"{path}: {_NEITHER}")
            yield cls(path, root, stat.S_ISREG(mode))

    def names(self) -> list[str]:
        """Return the relative paths of all files, sorted; one empty name for a single file.

        Raises:
            InvalidArgumentError: The directory is empty, or holds a link that leaves it or an entry
                that is neither a file nor a directory.
        """
        if self._is_file:
            return [""]
        names = sorted(self._walk(self._root, ""))
        if not names:
            raise InvalidArgumentError(f"{self.path}: the directory holds no file")
        return names

    def open_file(self, name: str) -> BinaryIO:
        """Open the file of that name for reading.

        Raises:
            InvalidArgumentError: It is not a regular file, or a link that leaves the directory.
            OSError: It cannot be opened.
        """
        shown = self.path / name
        if self._is_file:
            file = os.dup(self._root)
            os.lseek(file, 0, os.SEEK_SET)
        else:
            file = _open_beneath(self._root, name, shown)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            _refuse(shown, "is not a regular file")
        return os.fdopen(file, "rb")

    def _walk(self, directory: int, prefix: str, depth: int = 0) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            _refuse(self.path / prefix, f"is nested deeper than {_MAX_DEPTH} directories")
        for entry in sorted(os.listdir(directory)):
            if entry in IGNORED:
                continue
            name = f"{prefix}{entry}"
            mode = os.stat(entry, dir_fd=directory, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                self._check_link(name)
                yield name
            elif stat.S_ISDIR(mode):
                with _opened(entry, os.O_NOFOLLOW, directory) as inner:
                    yield from self._walk(inner, f"{name}/", depth + 1)
            elif stat.S_ISREG(mode):
                yield name
            else:
                _refuse(self.path / name, "is not a regular file")

    def _check_link(self, name: str) -> None:
        shown = self.path / name
        try:
            target = _open_beneath(self._root, name, shown)
        except OSError:
            _refuse(shown, "the link is broken")
        mode = os.fstat(target).st_mode
        os.close(target)
        if stat.S_ISDIR(mode):
            _refuse(shown, "links to directories are not stored; put the directory there")
        if not stat.S_ISREG(mode):
            _refuse(shown, "is not a regular file")


def copy_files(
    path: Path, target: Path, *, beneath: Path | None = None, max_bytes: int | None = None
) -> Path:
    """Copy the file or directory at `path` to `target`, which must not exist; return `target`.

    Every user can read the copy. Nothing outside of `path` is copied.

    Args:
        beneath: A directory above `path` that no link may leave on the way there.
        max_bytes: Limit of the total size; None for no limit.

    Raises:
        InvalidArgumentError: It holds no file, an unsupported entry, or more than `max_bytes`.
        OSError: Reading or writing fails.
    """
    left = max_bytes
    with Tree.open(path, beneath=beneath) as tree:
        for name in tree.names():
            copy = target / name if name else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            with tree.open_file(name) as stream, copy.open("xb") as file:
                while chunk := stream.read(_CHUNK_BYTES):
                    if left is not None and (left := left - len(chunk)) < 0:
                        _refuse(path, f"is larger than {max_bytes} bytes")
                    file.write(chunk)
            copy.chmod(0o644)
    if target.is_dir():
        for directory in (target, *target.rglob("*/")):
            directory.chmod(0o755)
    return target


@contextlib.contextmanager
def _opened(path: Path | str, flags: int = 0, directory: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FLAGS | os.O_DIRECTORY | flags, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_beneath(root: int, name: str, shown: Path) -> int:
    """Return a descriptor of the path `name` below the directory `root`, of any type.

    Raises:
        InvalidArgumentError: A link leaves the root.
        OSError: It does not exist, or cannot be opened.
    """
    parts, links = name.split("/")[::-1], 0
    with ExitStack() as stack:
        directories = [root]
        while True:
            part = parts.pop()
            if part == "..":
                if len(directories) == 1:
                    _refuse(shown, _LEAVES)
                directories.pop()
                part = "."
            if parts and part in {"", "."}:
                continue
            try:
                opened = os.open(part or ".", _FLAGS | os.O_NOFOLLOW, dir_fd=directories[-1])
            except OSError as error:
                links += 1
                if error.errno != errno.ELOOP or links > _MAX_LINKS:
                    raise
                target = os.readlink(part, dir_fd=directories[-1])
                if target.startswith("/"):
                    _refuse(shown, _LEAVES)
                parts += target.split("/")[::-1]
                continue
            if not parts:
                return opened
            stack.callback(os.close, opened)
            directories.append(opened)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise InvalidArgumentError(f"{path}: {reason}")


Progress = Callable[[int, int], None]
"""Called with the bytes done and the total bytes."""
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

    `target` must not exist. Copies are flushed to disk, so that a published copy survives a
    power failure. Nothing outside of `path` is copied, even if it changes meanwhile.

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
    """Return the differences between `path` and `files`; empty if they match."""
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


def check_content(
    path: Path, files: tuple[StoredFile, ...], digest: Digest, *, location: str
) -> None:
    """Check `path` against `files`, and `files` against their digest.

    Raises:
        ArtifactCorruptError: They differ; the message names `where`, each file and both digests.
    """
    problems = differences(path, files)
    if not problems and digest_of(files) != digest:
        problems = [f"expected digest {digest}, found {digest_of(files)}"]
    if problems:
        msg = f"{location} is damaged: {'; '.join(problems)}"
        raise ArtifactCorruptError(msg)


def digest_of(files: Sequence[StoredFile]) -> Digest:
    """Return the digest of files sorted by path; that of a single file is its own SHA-256."""
    if len(files) == 1 and not files[0].path:
        return Digest(f"sha256:{files[0].sha256}")
    tree = hashlib.sha256(_TREE_MARK)
    for file in files:
        # The path comes last and ends with a byte that paths cannot hold, so encodings are unique.
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
    """Read a stream, pass its chunks to `write`, and return its size and SHA-256."""
    sha256 = hashlib.sha256()
    size = 0
    while chunk := stream.read(_CHUNK_BYTES):
        sha256.update(chunk)
        write(chunk)
        size += len(chunk)
    return size, sha256.hexdigest()
