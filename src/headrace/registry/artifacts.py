"""Artifact files of the local registry, and checks on models before they are stored."""

import errno
import filecmp
import getpass
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.core import (
    VARIABLE,
    CodeNotAllowedError,
    Digest,
    FailedPreconditionError,
    Inspect,
    Inspected,
    InvalidArgumentError,
    ModelSignature,
    UnsupportedModelError,
)
from headrace.core.files import TEMPORARY, move, sync_directory
from headrace.registry.index import ModelVersion, StoredFile


class ArtifactStore:
    """Artifacts under one directory. Publishing and deleting require the registry's lock."""

    def __init__(self, root: Path) -> None:
        self._temporary = root / "tmp"
        self._stored = root / "sha256"

    def path(self, digest: Digest) -> Path:
        """Return the directory of an artifact, whether it exists or not."""
        return self._stored / digest.removeprefix("sha256:")

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield an empty directory on the same disk and delete it afterwards."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=self._temporary))
        directory.chmod(
            0o755
        )  # the inspecting process may run as another user; the home is private
        try:
            yield directory
        finally:
            _delete(directory)

    def share(
        self, staged: Path, files: Sequence[StoredFile], versions: Sequence[ModelVersion]
    ) -> None:
        """Replace staged files by hard links to equal files of versions, if they can be linked."""
        stored = {
            file.sha256: self.path(version.digest) / version.filename / file.path
            for version in versions
            for file in version.files
        }
        for file in files:
            copy = staged / file.path
            source, link = stored.get(file.sha256), copy.with_name(f"{copy.name}{TEMPORARY}")
            with suppress(OSError):
                # The bytes differ if the stored file is damaged.
                if source is not None and filecmp.cmp(source, copy, shallow=False):
                    link.hardlink_to(source)
                    link.replace(copy)

    def publish(self, staged: Path, digest: Digest) -> None:
        """Move a staged directory into place atomically, replacing a damaged artifact."""
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        for directory, _, files in os.walk(staged, topdown=False):
            for name in files:
                Path(directory, name).chmod(0o444)
            if Path(directory) != staged:
                Path(directory).chmod(0o555)
            sync_directory(Path(directory))
        if target.exists():
            target.chmod(0o755)  # a read-only directory cannot be moved
            damaged = Path(tempfile.mkdtemp(dir=self._temporary)) / "damaged"
            move(target, damaged, durable=False)
        move(staged, target)
        target.chmod(0o555)

    def link(self, digest: Digest, target: Path) -> None:
        """Make `target` a directory of hard links to an artifact, which outlive its deletion."""
        source = self.path(digest)
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(file)

    def digests(self) -> list[Digest]:
        """Return the digests of the stored artifacts, sorted."""
        if not self._stored.is_dir():
            return []
        return sorted(Digest(f"sha256:{entry.name}") for entry in self._stored.iterdir())

    def delete(self, digests: Collection[Digest]) -> int:
        """Delete artifacts and return the bytes freed. A crash leaves no partial artifact."""
        freed = 0
        for digest in digests:
            with self.staging() as bin_directory:
                folder = self.path(digest)
                freed += _size_bytes(folder)
                folder.chmod(0o755)
                move(folder, bin_directory / "doomed", durable=False)
        return freed

    def delete_temporary(self, *, before: float) -> tuple[int, int]:
        """Delete leftovers of crashed pushes; return the numbers of directories and bytes.

        Args:
            before: Seconds since 1970; directories with newer content may be in use and stay.
        """
        if not self._temporary.is_dir():
            return 0, 0
        old = [entry for entry in self._temporary.iterdir() if _newest(entry) < before]
        freed = sum(_size_bytes(entry) for entry in old)
        for entry in old:
            _delete(entry)
        return len(old), freed


def _newest(directory: Path) -> float:
    try:
        newest = directory.lstat().st_mtime
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                newest = max(newest, Path(parent, name).lstat().st_mtime)
    except FileNotFoundError:  # its push just ended
        return float("inf")
    return newest


def _size_bytes(directory: Path) -> int:
    """Return the bytes that are free once a directory is deleted."""
    files = [file.stat() for file in directory.rglob("*") if file.is_file()]
    return sum(file.st_size for file in files if file.st_nlink == 1)


def _delete(directory: Path) -> None:
    """Delete a directory whose content may be read-only, if it exists."""
    for parent, directories, _ in os.walk(directory):
        for name in directories:
            Path(parent, name).chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)


def inspect_staged(
    inspect: Inspect, staged: Path, path: Path, runtime: str, *, allow_code: bool
) -> Inspected:
    """Inspect the staged copy of `path`; error messages name `path` instead of the copy."""
    try:
        return inspect(staged, runtime, allow_code=allow_code)
    except CodeNotAllowedError as error:
        raise CodeNotAllowedError(str(path), error.runtime, error.reason) from error
    except (UnsupportedModelError, FailedPreconditionError) as error:
        # The inspecting process may have been given the absolute path.
        message = str(error).replace(str(staged.absolute()), str(path))
        raise type(error)(message.replace(str(staged), str(path))) from error


def check_labels(signature: ModelSignature, labels: Mapping[str, tuple[str, ...]]) -> None:
    """Check class names against the outputs that they belong to.

    Raises:
        InvalidArgumentError: The output does not exist, or has another number of classes.
    """
    for name, names in labels.items():
        spec = signature.output(name)
        if spec is None:
            outputs = ", ".join(f"'{spec.name}'" for spec in signature.outputs)
            msg = f"labels name the output '{name}', but the model has {outputs}"
            raise InvalidArgumentError(msg)
        size = spec.shape[-1] if spec.shape else VARIABLE
        if size not in (VARIABLE, len(names)):
            msg = f"output '{name}' has {size} classes, but the labels have {len(names)} names"
            raise InvalidArgumentError(msg)


def stored_name(path: Path) -> str:
    """Return the stored file name; runtimes may detect the format by its suffix."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    return name.lstrip(".") or "model"


def user_name() -> str:
    """Return the name of the user that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return f"uid {os.getuid()}"


@contextmanager
def storage_errors(description: str, home: Path) -> Iterator[None]:
    """Convert an OSError of the block into a FailedPreconditionError with a remedy."""
    try:
        yield
    except OSError as error:
        msg = f"{description}: {error.strerror or error}"
        if error.filename is not None:
            msg += f" ({error.filename})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            directory = next(d for d in (home, *home.absolute().parents) if d.is_dir())
            free = shutil.disk_usage(directory).free
            msg += f"; {free} bytes are free, `headrace models gc` may free more"
        raise FailedPreconditionError(msg) from error
