"""Index of versions: a file each, `registry/NAME/VERSION.json`, replaced atomically.

Its signatures, which come later, stand beside it in `VERSION.signatures`.
A version that was removed leaves `VERSION.removed`, so that its number is never given again.
"""

import shutil
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import ArtifactCorruptError, ModelName, check_name, check_version, error_kind
from headrace.core.files import TEMPORARY, move, sync_directory, write_atomic
from headrace.registry.version import (
    ModelVersion,
    VersionSignature,
    decode_version,
    encode_version,
)

READ_ONLY: Final = 0o444
"""Mode of the files of a registry."""
_LIVE: Final = ".json"
_REMOVED: Final = ".removed"
_SIGNATURES: Final = ".signatures"


class Index:
    """The index files under one directory.

    Reading needs no lock; whoever writes holds the registry's.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[ModelName]:
        """Names with at least one version that was not removed, sorted."""
        if not self._root.is_dir():
            return []
        found = sorted(entry.name for entry in self._root.iterdir() if entry.is_dir())
        return [ModelName(name) for name in found if self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """The version numbers of `name`, oldest first."""
        return sorted(self._numbers(name, _LIVE))

    def next_number(self, name: str) -> int:
        """The number after every one that was ever given."""
        used = [*self._numbers(name, _LIVE), *self._numbers(name, _REMOVED)]
        return max(used, default=0) + 1

    def copy_to(self, target: Path) -> None:
        """Copy all index files; `target` must not exist."""

        def temporary(_: str, names: list[str]) -> set[str]:
            return {name for name in names if name == ".lock" or name.endswith(TEMPORARY)}

        shutil.copytree(self._root, target, ignore=temporary)

    def read(self, name: str, number: int | str) -> ModelVersion | None:
        """The version, or None if there is none.

        Raises:
            ArtifactCorruptError: Its file cannot be read.
        """
        file = self._file(name, number, _LIVE)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        version = decode_version(data, where=str(file))
        if (version.name, version.version) != (name, str(number)):
            msg = f"{file} is damaged: it describes {version.reference}"
            raise ArtifactCorruptError(msg)
        return version

    def write(self, version: ModelVersion) -> None:
        """Publish a version; readers see all of it or nothing."""
        file = self._file(version.name, version.version, _LIVE)
        file.parent.mkdir(parents=True, exist_ok=True)
        sync_directory(self._root)
        write_atomic(file, encode_version(version), mode=READ_ONLY)

    def remove(self, version: ModelVersion) -> None:
        """Take a version out; its number stays taken."""
        file = self._file(version.name, version.version, _LIVE)
        file.with_suffix(_SIGNATURES).unlink(missing_ok=True)
        move(file, file.with_suffix(_REMOVED))

    def has(self, name: str, number: int | str) -> bool:
        """Whether there is such a version."""
        return self._file(name, number, _LIVE).exists()

    def forget(self, name: str, number: int | str) -> None:
        """Delete a version that is a copy; what its number is for is decided elsewhere."""
        file = self._file(name, number, _LIVE)
        file.with_suffix(_SIGNATURES).unlink(missing_ok=True)
        file.unlink(missing_ok=True)

    def signatures(self, name: str, number: int | str) -> tuple[VersionSignature, ...]:
        """The signatures of a version, oldest first.

        Raises:
            ArtifactCorruptError: Their file cannot be read.
        """
        file = self._file(name, number, _SIGNATURES)
        try:
            return msgspec.json.decode(file.read_bytes(), type=tuple[VersionSignature, ...])
        except FileNotFoundError:
            return ()
        except msgspec.MsgspecError as error:
            msg = f"{file} is damaged and cannot be read: {error_kind(error)}"
            raise ArtifactCorruptError(msg) from None

    def write_signatures(
        self, name: str, number: int | str, signatures: tuple[VersionSignature, ...]
    ) -> None:
        """Replace the signatures of a version."""
        file = self._file(name, number, _SIGNATURES)
        data = msgspec.json.format(msgspec.json.encode(signatures)) + b"\n"
        write_atomic(file, data, mode=READ_ONLY)

    def _numbers(self, name: str, suffix: str) -> list[int]:
        directory = self._root / check_name(name)
        if not directory.is_dir():
            return []
        stems = [entry.stem for entry in directory.iterdir() if entry.suffix == suffix]
        return [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]

    def _file(self, name: str, number: int | str, suffix: str) -> Path:
        # Both are checked here, where they become a path: nothing else can reach outside the root.
        return self._root / check_name(name) / f"{check_version(str(number))}{suffix}"
