"""Index of model versions: one file per version, replaced atomically.

Signatures, which are added later, are in `VERSION.signatures`. A removed version leaves
`VERSION.removed`, so that its number is never reused.
"""

import shutil
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    Digest,
    FirstRun,
    ModelName,
    ModelNotFoundError,
    ModelSignature,
    check_name,
    check_version,
    error_kind,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import TEMPORARY, move, sync_directory, write_atomic

SCHEMA: Final = 1


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact; `path` is relative to it, with `/`, and empty for a lone file."""

    path: str
    size_bytes: int
    sha256: str


class VersionSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature of a version: raw Ed25519, `key` and `signature` in base64.

    `signed_at` (seconds since 1970) and `by` are unverified claims of the signer.
    """

    key: str
    signature: str
    signed_at: float = msgspec.field(name="at", default=0.0)
    by: str = ""


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version of a model.

    `digest` covers the content: a file's SHA-256, or that of a directory's list of files.
    `filename` is the file or directory inside the artifact that a runtime loads.
    """

    name: ModelName
    version: str
    digest: Digest
    size_bytes: int
    files: tuple[StoredFile, ...]
    filename: str
    runtime: str
    signature: ModelSignature
    created_at: datetime
    created_by: str = ""
    owner: str = ""
    """Principal who pushed it over the management API; empty if pushed on the machine."""
    source: str = ""
    labels: Mapping[str, tuple[str, ...]] = {}
    """Class names by output."""
    metadata: Mapping[str, str] = {}
    """Free-form metadata from the push."""
    runs_code: bool | None = None
    """Whether its format runs its author's code; None if pushed by an older Headrace."""
    first_run: FirstRun | None = None
    """Result of a first inference at the push; None if not tried."""
    schema: int = SCHEMA

    @property
    def reference(self) -> str:
        """Return `NAME:VERSION`, as used in the spec file and by the commands."""
        return f"{self.name}:{self.version}"

    @property
    def executes_code(self) -> bool:
        """Whether loading the version runs its author's code."""
        # Versions without the field are from releases where onnx was the only runtime that ran no
        # code.
        return self.runtime != "onnx" if self.runs_code is None else self.runs_code


class VersionNotFoundError(ModelNotFoundError):
    """Raised if the registry does not hold the model or version."""

    def __init__(self, name: str, version: str, available: Collection[object]) -> None:
        super().__init__(name, version)
        description = f"version {version} of model '{name}'" if version else f"model '{name}'"
        listed = ", ".join(str(item) for item in available) or "none"
        self.args = (f"the registry holds no {description}; there are: {listed}",)


class _Schema(msgspec.Struct):
    schema: int


def encode_version(version: ModelVersion) -> bytes:
    """Encode the version as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(version), indent=2) + b"\n"


def decode_version(data: bytes, *, location: str) -> ModelVersion:
    """Decode a version.

    Args:
        where: File or object name for error messages.

    Raises:
        ArtifactCorruptError: The data is not an index file, or a newer Headrace wrote it.
    """
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema > SCHEMA:
            msg = f"{location} was written by a newer Headrace (schema {schema}); upgrade this one"
            raise ArtifactCorruptError(msg)
        return msgspec.json.decode(data, type=ModelVersion)
    except UNDECODABLE as error:
        msg = f"{location} is damaged and cannot be read: {error_kind(error)}"
        raise ArtifactCorruptError(msg) from None


def encode_signatures(signatures: Collection[VersionSignature]) -> bytes:
    """Encode signatures as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(signatures)) + b"\n"


def decode_signatures(data: bytes, *, location: str) -> tuple[VersionSignature, ...]:
    """Decode signatures, oldest first.

    Raises:
        ArtifactCorruptError: They cannot be read.
    """
    try:
        return msgspec.json.decode(data, type=tuple[VersionSignature, ...])
    except UNDECODABLE as error:
        msg = f"{location} is damaged and cannot be read: {error_kind(error)}"
        raise ArtifactCorruptError(msg) from None


READ_ONLY: Final = 0o444
"""Mode of the files of a registry."""
_LIVE: Final = ".json"
_REMOVED: Final = ".removed"
_SIGNATURES: Final = ".signatures"


class Index:
    """Index files under one directory.

    Reading needs no lock; writing requires the registry's lock.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[ModelName]:
        """Return the names with at least one existing version, sorted."""
        if not self._root.is_dir():
            return []
        directories = sorted(entry.name for entry in self._root.iterdir() if entry.is_dir())
        return [ModelName(name) for name in directories if self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """Return the version numbers of `name`, oldest first."""
        return sorted(self._numbers(name, _LIVE))

    def next_number(self, name: str) -> int:
        """Return the first number that was never used."""
        used = [*self._numbers(name, _LIVE), *self._numbers(name, _REMOVED)]
        return max(used, default=0) + 1

    def copy_to(self, target: Path) -> None:
        """Copy all index files to `target`, which must not exist."""

        def temporary(_: str, names: list[str]) -> set[str]:
            return {name for name in names if name == ".lock" or name.endswith(TEMPORARY)}

        shutil.copytree(self._root, target, ignore=temporary)

    def read(self, name: str, number: int | str) -> ModelVersion | None:
        """Return the version; None if it does not exist.

        Raises:
            ArtifactCorruptError: Its file cannot be read.
        """
        file = self._file(name, number, _LIVE)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        version = decode_version(data, location=str(file))
        if (version.name, version.version) != (name, str(number)):
            raise ArtifactCorruptError(f"{file} is damaged: it describes {version.reference}")
        return version

    def read_all(
        self, name: str | None = None
    ) -> tuple[list[ModelVersion], list[ArtifactCorruptError]]:
        """Return all versions, or those of one name, and the unreadable index files."""
        versions: list[ModelVersion] = []
        problems: list[ArtifactCorruptError] = []
        for model in self.names() if name is None else [name]:
            for number in self.numbers(model):
                try:
                    version = self.read(model, number)
                except ArtifactCorruptError as error:
                    problems.append(error)
                else:
                    versions += [] if version is None else [version]
        return versions, problems

    def write(self, version: ModelVersion) -> None:
        """Publish a version atomically."""
        file = self._file(version.name, version.version, _LIVE)
        file.parent.mkdir(parents=True, exist_ok=True)
        sync_directory(self._root)
        write_atomic(file, encode_version(version), mode=READ_ONLY)

    def remove(self, version: ModelVersion) -> None:
        """Remove a version; its number is never reused."""
        file = self._file(version.name, version.version, _LIVE)
        file.with_suffix(_SIGNATURES).unlink(missing_ok=True)
        move(file, file.with_suffix(_REMOVED))

    def contains(self, name: str, number: int | str) -> bool:
        """Return whether the version exists."""
        return self._file(name, number, _LIVE).exists()

    def forget(self, name: str, number: int | str) -> None:
        """Delete a copied version; the shared store decides about its number."""
        file = self._file(name, number, _LIVE)
        file.with_suffix(_SIGNATURES).unlink(missing_ok=True)
        file.unlink(missing_ok=True)

    def signatures(self, name: str, number: int | str) -> tuple[VersionSignature, ...]:
        """Return a version's signatures, oldest first.

        Raises:
            ArtifactCorruptError: Their file cannot be read.
        """
        file = self._file(name, number, _SIGNATURES)
        try:
            return decode_signatures(file.read_bytes(), location=str(file))
        except FileNotFoundError:
            return ()

    def write_signatures(
        self, name: str, number: int | str, signatures: tuple[VersionSignature, ...]
    ) -> None:
        """Replace the signatures of a version."""
        file = self._file(name, number, _SIGNATURES)
        write_atomic(file, encode_signatures(signatures), mode=READ_ONLY)

    def _numbers(self, name: str, suffix: str) -> list[int]:
        directory = self._root / check_name(name)
        if not directory.is_dir():
            return []
        stems = [entry.stem for entry in directory.iterdir() if entry.suffix == suffix]
        return [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]

    def _file(self, name: str, number: int | str, suffix: str) -> Path:
        # Both are checked where they become a path, so no caller can reach outside the root.
        return self._root / check_name(name) / f"{check_version(str(number))}{suffix}"
