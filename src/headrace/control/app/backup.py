"""Backups of a home: one tar file with everything that another home needs to serve the same models.

    home/...         files, laid out as in the home
    manifest.json    written last: size and SHA-256 of each file, and what is not contained

A backup is taken while the home runs. SQLite copies databases as of one moment, the registry is
copied at the same moment, and other files are replaced atomically by the processes that write them.
Files of processes, of the home's identity and files that can be recreated are excluded.
"""

import collections
import contextlib
import hashlib
import io
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

import headrace
from headrace.control.base.home import RESTORING
from headrace.control.state import STATE_FILE, home_url, sqlite_path
from headrace.control.state.encoding import decoded
from headrace.core import (
    AlreadyExistsError,
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PayloadTooLargeError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import sync_directory
from headrace.core.untar import MAX_MEMBERS, content_of, plain_files, write_file
from headrace.registry import Registry

FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
_ROOT: Final = "home"
_MAX_MANIFEST_BYTES: Final = 64 << 20
_PAYLOADS: Final = "payloads"
_OF_THIS_HOME: Final = ("run", "identity.json", "planner-id")
"""Process files and identity: a restored home has its own."""
_LEFT_OUT: Final = ("logs", "optimize", "features/served")
"""Files that can be recreated, or are not needed after a restore."""
_AUDIT_END: Final = "trail-checkpoint.json"
_CONSISTENT: Final = frozenset({STATE_FILE, _AUDIT_END, "registry", "artifacts"})
_INDEXED: Final = re.compile(r"registry/([^/]+)/([^/]+)\.json")
"""The file that describes a model version."""
_SHARED_STORE: Final = "registry/.artifacts"
"""File that names the shared store of the home's models."""
_SQLITE_HEADER: Final = b"SQLite format 3\0"
_SQLITE_SUFFIXES: Final = ("-wal", "-shm", "-journal")
_SQLITE_WAIT_S: Final = 30.0

Progress = Callable[[str, int, int], None]
"""Receives the current step, the processed bytes and the total bytes."""


class BackupFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a backup."""

    size: int
    sha256: str


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Manifest of a backup."""

    format: int
    created: float
    """Seconds since 1970."""
    headrace: str
    """The release that wrote it."""
    home: str
    state: str
    """`sqlite`; `postgres` if the state is in that database and not contained; `none`."""
    generation: int
    models: tuple[str, ...]
    """References of all contained model versions."""
    files: dict[str, BackupFile]
    left_out: tuple[str, ...]
    """Files of the home that the backup excludes."""
    outside: tuple[str, ...]
    """Files outside the home that the spec names, and links in the home; not contained."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup file that was written or checked."""

    path: str
    size: int
    sha256: str
    manifest: BackupManifest


def write_backup(
    home: Path, out: Path, *, state_url: str, payloads: bool, now: float, progress: Progress
) -> Backup:
    """Write a backup of `home` to `out` atomically, with mode 0600. Blocking.

    Args:
        state_url: URL of the desired state's database; empty for a file in the home.
        payloads: Whether payload logs are included.
        now: Seconds since 1970.

    Raises:
        NotFoundError: `home` is not a home.
        FailedPreconditionError: The home belongs to another user, or a database cannot be copied.
        AlreadyExistsError: `out` exists.
    """
    home, out = home.resolve(), out.absolute()
    _check_source(home, out)
    left_out = (*_LEFT_OUT, *(() if payloads else (_PAYLOADS,)))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".headrace-backup-") as folder:
        copies = Path(folder)
        state = sqlite_path(state_url or home_url(home))

        def copy_state() -> None:
            # The checkpoint is copied before the audit log: a longer log is valid.
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(home / _AUDIT_END, copies / _AUDIT_END)
            if state is not None and state.exists():
                progress("copying the state", 0, state.stat().st_size)
                _copy_database(state, copies / STATE_FILE)

        with Registry(home).snapshot(copy_state) as registry:
            sources, links = _files_below(home, {*left_out, *_OF_THIS_HOME, *_CONSISTENT})
            # In order of names: window states, which contain offsets, come before their logs.
            for number, (name, source) in enumerate(sorted(sources.items())):
                if _is_database(source):
                    sources[name] = copies / f"{number}.db"
                    _copy_database(source, sources[name])
            sources |= _files_below(registry)[0]
            for name in (STATE_FILE, _AUDIT_END):
                if (copies / name).exists():
                    sources[name] = copies / name
            if len(sources) >= MAX_MEMBERS:
                message = f"{home} holds {len(sources)} files; a backup takes {MAX_MEMBERS - 1}"
                raise FailedPreconditionError(message)
            spec, generation = _read_state(copies / STATE_FILE)
            described = (_INDEXED.fullmatch(name) for name in sources)
            models = [f"{match[1]}:{match[2]}" for match in described if match is not None]
            manifest = BackupManifest(
                format=FORMAT,
                created=now,
                headrace=headrace.__version__,
                home=str(home),
                state="postgres"
                if state is None
                else ("sqlite" if (copies / STATE_FILE).exists() else "none"),
                generation=generation,
                models=tuple(sorted(models)),
                files={},
                left_out=tuple(path for path in left_out if (home / path).exists()),
                outside=tuple(sorted({*_outside_files(spec, home), *links})),
            )
            partial = copies / "backup.tar"
            manifest, digest = _write_tar(partial, sources, manifest, progress)
        _publish(partial, out)
    return Backup(path=str(out), size=out.stat().st_size, sha256=digest, manifest=manifest)


def check_backup(path: Path, *, progress: Progress) -> Backup:
    """Read a complete backup file, and compare each file with the manifest. Blocking.

    Raises:
        NotFoundError: The file does not exist.
        ArtifactCorruptError, InvalidArgumentError: The file is damaged, altered, or not a backup.
    """
    manifest = _read_archive(path, None, progress)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Backup(path=str(path), size=_size_of(path), sha256=digest, manifest=manifest)


def restore_backup(path: Path, home: Path, *, progress: Progress) -> BackupManifest:
    """Restore a backup file to `home`, which must be new or empty. Blocking.

    Every file is compared with the manifest before any is moved into place.

    Raises:
        NotFoundError: The file does not exist.
        FailedPreconditionError: `home` is not empty, or the disk is too small.
        ArtifactCorruptError, InvalidArgumentError: The file is damaged, altered, or not a
            backup.
    """
    size = _size_of(path)
    home = home.absolute()
    is_new = not home.exists()
    staging = home / RESTORING
    disk = next(path for path in (home, *home.parents) if path.is_dir())
    if (free := shutil.disk_usage(disk).free) < size:
        raise FailedPreconditionError(f"{path} needs {size} bytes, and {free} are free in {disk}")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(home.iterdir()):
            message = f"{home} is not empty; restore into a new home (--home), or remove this one"
            raise FailedPreconditionError(message)
        home.chmod(0o700)
        staging.mkdir(mode=0o700)
        (staging / _ROOT).mkdir()
    except OSError as error:
        message = f"cannot create the home {home}: {error.strerror or error}"
        raise FailedPreconditionError(message) from error
    try:
        manifest = _read_archive(path, staging, progress)
        _set_modes(staging / _ROOT)
    except BaseException:
        shutil.rmtree(home if is_new else staging, ignore_errors=True)
        raise
    for source in sorted((staging / _ROOT).iterdir()):
        shutil.move(source, home / source.name)
    (staging / _ROOT).rmdir()
    staging.rmdir()
    sync_directory(home)
    return manifest


def _check_source(home: Path, out: Path) -> None:
    if not any((home / name).exists() for name in (STATE_FILE, "admin-token", "registry")):
        raise NotFoundError(f"{home} is not a Headrace home; `headrace up` creates one")
    owner = home.stat().st_uid
    if owner != os.geteuid():
        # Otherwise SQLite would leave files that the owner cannot write.
        message = f"{home} belongs to user {owner}; back it up as that user"
        raise FailedPreconditionError(message)
    if out.resolve().is_relative_to(home):
        raise InvalidArgumentError(f"{out} lies in the home; write the backup elsewhere")
    if not out.parent.is_dir():
        raise NotFoundError(f"the backup directory {out.parent} does not exist")
    if out.exists() or out.is_symlink():
        raise _exists(out)


def _publish(partial: Path, out: Path) -> None:
    """Rename a complete file, unless the name is taken."""
    try:
        out.hardlink_to(partial)  # unlike a rename, this replaces nothing
    except FileExistsError:
        raise _exists(out) from None
    except OSError:  # the file system does not support hard links
        if out.exists():
            raise _exists(out) from None
        shutil.move(partial, out)
    sync_directory(out.parent)


def _exists(out: Path) -> AlreadyExistsError:
    return AlreadyExistsError(f"{out} exists, and is not replaced; choose another name")


def _files_below(root: Path, left_out: Collection[str] = ()) -> tuple[dict[str, Path], list[str]]:
    """Return the plain files below `root` by relative path, without temporary ones, and links."""
    files: dict[str, Path] = {}
    links: list[str] = []
    for folder, directories, names in os.walk(root):
        above = Path(folder).relative_to(root)
        below = [root / above / name for name in directories]
        links += [str(path) for path in below if path.is_symlink()]
        directories[:] = [
            name
            for name in directories
            if (above / name).as_posix() not in left_out and not name.startswith(".")
        ]
        for name in names:
            path = (above / name).as_posix()
            source = root / path
            is_temporary = name.startswith(".") and path != _SHARED_STORE
            is_part = path.endswith(_SQLITE_SUFFIXES) and (root / path.rpartition("-")[0]).exists()
            if is_temporary or is_part or path in left_out:
                continue
            if source.is_symlink():
                links.append(str(source))
            elif source.is_file():
                files[path] = source
    return files, links


def _is_database(source: Path) -> bool:
    try:
        with source.open("rb") as stream:
            return stream.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER
    except OSError:
        return False


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database as of one moment, while others write to it."""
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=_SQLITE_WAIT_S)) as before,
            contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            copy.execute("PRAGMA synchronous = OFF")
            before.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            ((verdict,), *_) = copy.execute("PRAGMA quick_check").fetchall()
    except sqlite3.Error as error:
        message = f"cannot copy {source}: {error}"
        raise FailedPreconditionError(message) from error
    if verdict != "ok":
        raise FailedPreconditionError(f"{source} is damaged: {verdict}")


def _read_state(state: Path) -> tuple[list[Any], int]:
    """Return the documents of the stored spec, and the generation; empty and 0 without state."""
    if not state.exists():
        return [], 0
    with contextlib.closing(sqlite3.connect(state)) as connection:
        try:
            rows = connection.execute("SELECT spec, generation FROM state").fetchall()
            documents = connection.execute("SELECT document FROM endpoints").fetchall()
        except sqlite3.Error as error:
            raise FailedPreconditionError(f"cannot read the state: {error}") from error
    texts = [rows[0][0], *(text for (text,) in documents if text)] if rows else []
    return [decoded(text, Any, description="the spec") for text in texts], rows[0][1] if rows else 0


def _outside_files(document: Any, home: Path) -> Iterator[str]:  # noqa: ANN401  # of JSON
    """Yield the files on this machine that a spec names, except those in the home."""
    match document:
        case dict():
            for key, value in document.items():
                if key != "model":  # its content is in the registry
                    yield from _outside_files(value, home)
        case list():
            for value in document:
                yield from _outside_files(value, home)
        case str() if document.removeprefix("file:").startswith("/"):
            path = Path(document.removeprefix("file:"))
            with contextlib.suppress(OSError, ValueError):
                if path.exists() and not path.is_relative_to(home):
                    yield str(path)
        case _:
            return


class _Hashing:
    """File content that is hashed while it is read."""

    def __init__(self, content: Iterable[bytes] = (), file: BinaryIO | None = None) -> None:
        self._content = content
        self._file = file
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for data in self._content:
            self.digest.update(data)
            yield data

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        assert self._file is not None
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _write_tar(
    target: Path, sources: dict[str, Path], manifest: BackupManifest, progress: Progress
) -> tuple[BackupManifest, str]:
    """Write the archive; return the manifest with all files, and the archive's SHA-256."""
    total = done = 0
    for source in sources.values():
        with contextlib.suppress(FileNotFoundError):
            total += source.stat().st_size
    files: dict[str, BackupFile] = {}
    with target.open("xb+") as stream:
        target.chmod(0o600)
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, source in sorted(sources.items()):
                try:
                    content = os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb")
                except FileNotFoundError:
                    continue  # the running home created and deleted this file
                with content:
                    member = tarfile.TarInfo(f"{_ROOT}/{name}")
                    member.size = os.fstat(content.fileno()).st_size
                    member.mode = 0o600
                    member.mtime = int(manifest.created)
                    reading = _Hashing(file=content)
                    archive.addfile(member, reading)
                digest = reading.digest.hexdigest()
                files[member.name] = BackupFile(size=member.size, sha256=digest)
                done += member.size
                progress("writing the backup", done, total)
            manifest = msgspec.structs.replace(manifest, files=files)
            data = msgspec.json.format(msgspec.json.encode(manifest))
            member = tarfile.TarInfo(_MANIFEST)
            member.size, member.mode, member.mtime = len(data), 0o600, int(manifest.created)
            archive.addfile(member, io.BytesIO(data))
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return manifest, digest


def _size_of(path: Path) -> int:
    if not path.is_file():
        raise NotFoundError(f"file {path} does not exist")
    return path.stat().st_size


def _read_archive(path: Path, target: Path | None, progress: Progress) -> BackupManifest:
    """Compare every file of a backup with its manifest; return the manifest.

    Args:
        target: Directory to which the files are written; None writes nothing.
    """
    size = _size_of(path)
    files: dict[str, BackupFile] = {}
    manifest = bytearray()
    try:
        with path.open("rb") as stream:
            for parts, member in plain_files(stream, max_bytes=size, ignores_case=False):
                name = "/".join(parts)
                if name in files:
                    raise InvalidArgumentError(f"{path} holds {name!r} twice")
                reading = _Hashing(content_of(stream, member))
                if name == _MANIFEST:
                    if member.size > _MAX_MANIFEST_BYTES:
                        raise InvalidArgumentError(f"{path} has a manifest of {member.size} bytes")
                    manifest += b"".join(reading)
                elif target is None:
                    collections.deque(reading, maxlen=0)
                else:
                    write_file(target.joinpath(*parts), reading, name=member.name)
                files[name] = BackupFile(size=member.size, sha256=reading.digest.hexdigest())
                progress(
                    "checking the backup" if target is None else "restoring",
                    stream.tell(),
                    size,
                )
    except PayloadTooLargeError as error:  # a file that is larger than the archive
        raise InvalidArgumentError(
            f"{path} is an incomplete tar archive: its end is missing"
        ) from error
    return _checked_manifest(path, bytes(manifest), files)


def _checked_manifest(path: Path, data: bytes, files: dict[str, BackupFile]) -> BackupManifest:
    """Return the manifest of a backup with the files `files`.

    Raises:
        InvalidArgumentError: The manifest is missing, has a later format, or names files that are
            not allowed.
        ArtifactCorruptError: The files differ from the manifest.
    """
    try:
        manifest = msgspec.json.decode(data, type=BackupManifest)
    except UNDECODABLE:
        message = f"{path} is not a Headrace backup: it has no readable {_MANIFEST}"
        raise InvalidArgumentError(message) from None
    if manifest.format != FORMAT:
        message = (
            f"{path} has format {manifest.format}, which Headrace {manifest.headrace} wrote; this "
            f"release reads format {FORMAT}: restore it with that release"
        )
        raise InvalidArgumentError(message)
    present = {name: file for name, file in files.items() if name != _MANIFEST}
    for name in sorted({*present, *manifest.files}):
        if present.get(name) != manifest.files.get(name):
            description = "is missing" if name not in present else "is not what was backed up"
            raise ArtifactCorruptError(f"{path} is damaged or altered: {name!r} {description}")
        inside = name.removeprefix(f"{_ROOT}/")
        is_own = any(inside == own or inside.startswith(f"{own}/") for own in _OF_THIS_HOME)
        if inside == name or is_own:
            raise InvalidArgumentError(f"{path} is not a Headrace backup: it contains {name!r}")
    return manifest


def _set_modes(root: Path) -> None:
    """Set the file modes of a home, and sync the files to disk."""
    for folder, directories, names in os.walk(root, topdown=False):
        above = Path(folder).relative_to(root).parts
        is_content = above[:1] == ("artifacts",)
        for name in names:
            path = Path(folder, name)
            path.chmod(0o444 if is_content or above[:1] == ("registry",) else 0o600)
            with path.open("rb") as content:
                os.fsync(content.fileno())
        for name in directories:
            is_model = is_content or (not above and name == "artifacts")
            is_frozen = above[:2] == ("artifacts", "sha256")
            Path(folder, name).chmod(0o555 if is_frozen else 0o755 if is_model else 0o700)


__all__ = ["Backup", "BackupManifest", "check_backup", "restore_backup", "write_backup"]
