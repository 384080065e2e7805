"""Manifest `optimized.json`: the engines that run an optimized model, and its strict parser."""

import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from headrace.core import HeadraceError, UnsupportedModelError, error_kind
from headrace.core.error_kind import UNDECODABLE
from headrace.runtimes.base import UNTUNED, Tuning, check_tuning
from headrace.runtimes.file_bytes import BrokenFileError, FileReader
from headrace.runtimes.plugins import check_libraries, get_runtime, runs_code

FILE_NAME: Final = "optimized.json"
SCHEMA: Final = 1


class OtherProcessor(StrEnum):
    """Policy if the processor's features differ from those that the model was verified with.

    Either way round: see `headrace.runtimes.optimized.processor.ProcessorDifference`.
    """

    VERIFY = "verify"
    """Repeat the recorded requests at load, and refuse the model if the outputs differ."""
    REFUSE = "refuse"
    ALLOW = "allow"
    """Serve it and log the difference."""


class EngineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine with its file.

    `path` is relative to the manifest's directory.
    """

    runtime: str
    path: str
    tuning: Tuning = UNTUNED
    up_to_rows: int | None = None
    """Largest batch that this engine takes, if no earlier member takes it; None for no limit."""


class VerificationRequests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests with the outputs that were recorded when the model was verified."""

    path: str
    """A `.npz` file with `in/NUMBER/NAME` and `out/NUMBER/NAME`."""
    tolerance: float
    """Largest deviation, relative to the largest magnitude of its output. 0 to 1."""
    max_changed_ratio: float
    """Share of the rows that may get another class. 0 to 1."""


class Processor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Processor; `features`: those that affect speed or rounding, as Linux names them."""

    name: str
    features: tuple[str, ...]


class OptimizedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An optimized model."""

    schema: int = SCHEMA
    members: tuple[EngineFile, ...]
    processor: Processor
    on_other_processor: OtherProcessor = OtherProcessor.VERIFY
    check: VerificationRequests | None = None
    source_digest: str = ""
    """Digest of the source model."""
    calibration_sha256: str = ""
    """Digest of the calibration examples; empty if there were none."""
    recipe: Mapping[str, str] = {}
    """Applied optimizations, in words and figures."""
    versions: Mapping[str, str] = {}
    """Versions of the packages that made it, for display."""
    figures: Mapping[str, float] = {}
    """Measured figures, for people and programs: `p50_s`, `cut_ratio` and so on."""


MAX_BYTES: Final = 1 << 20
MAX_MEMBERS: Final = 16
_MAX_FILES: Final = 20_000
_MAX_PATH: Final = 500
_MAX_SHOWN: Final = 100
_MAX_FEATURES: Final = 256
_FEATURE: Final = re.compile(r"[a-z0-9_.]{1,40}")


class _Versioned(msgspec.Struct):
    """Schema version, decoded first: other fields of an unknown schema are not interpreted."""

    schema: int = SCHEMA


def read_manifest(directory: Path) -> OptimizedManifest:
    """Return the manifest in `directory`; its members exist, are inside it, and run no code.

    Raises:
        UnsupportedModelError: It is damaged, declares impossible values, or leaves the directory.
        FailedPreconditionError: A member's library is not installed.
    """
    manifest = decode_manifest(directory / FILE_NAME)
    members = manifest.members
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise refuse(directory, f"has {len(members)} members; allowed are 1 to {MAX_MEMBERS}")
    features = manifest.processor.features
    if len(features) > _MAX_FEATURES or not all(map(_FEATURE.fullmatch, features)):
        raise refuse(directory, "lists processor features that do not exist")
    _check_rows(directory, members)
    _check_links(directory)
    for member in members:
        path = path_in(directory, member.path)
        _check_member(directory, member, path)
    if manifest.check is not None:
        check = manifest.check
        if not 0 <= check.tolerance <= 1 or not 0 <= check.max_changed_ratio <= 1:
            raise refuse(directory, "its check has a tolerance or ratio outside 0 to 1")
        if not path_in(directory, check.path).is_file():
            raise refuse(directory, f"its check '{check.path}' is not a file")
    return manifest


def path_in(directory: Path, name: str) -> Path:
    """Return the path of a manifest entry, which exists beneath the directory.

    Raises:
        UnsupportedModelError: It is outside of the directory, or does not exist.
    """
    pure = PurePosixPath(name)
    shown = repr(name[:_MAX_SHOWN])
    if not pure.parts or len(name) > _MAX_PATH or "\0" in name:
        raise refuse(directory, f"names {shown}, which is not a path of a file or directory in it")
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise refuse(directory, f"names {shown}, which is outside its directory")
    path = directory / pure
    try:
        there = path.resolve(strict=True)
    except (OSError, RuntimeError):  # it does not exist, or links form a cycle
        raise refuse(directory, f"names {shown}, which does not exist") from None
    root = directory.resolve()
    if there == root or not there.is_relative_to(root):
        raise refuse(directory, f"names {shown}, a link that leads out of its directory")
    return path


def refuse(directory: Path, reason: str) -> UnsupportedModelError:
    """Return the error for an optimized model that cannot be served."""
    return UnsupportedModelError(f"{directory}: the optimized model {reason}")


def decode_manifest(file: Path) -> OptimizedManifest:
    """Return the content of an `optimized.json`, not yet validated.

    Raises:
        UnsupportedModelError: It is not a manifest.
    """
    try:
        with FileReader(file) as source:
            if source.size > MAX_BYTES:
                raise UnsupportedModelError(f"{file}: is larger than {MAX_BYTES} bytes")
            data = source.head(MAX_BYTES)
    except (OSError, BrokenFileError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnsupportedModelError(f"{file}: cannot be read: {reason}") from error
    try:
        schema = msgspec.json.decode(data, type=_Versioned).schema
        if schema == SCHEMA:
            return msgspec.json.decode(data, type=OptimizedManifest)
    except UNDECODABLE as error:
        msg = f"{file}: is not a valid description of an optimized model: {error_kind(error)}"
        raise UnsupportedModelError(f"{msg}; `headrace optimize` writes one") from None
    if schema > SCHEMA:
        msg = f"{file}: was written by a newer Headrace (schema {schema}, here {SCHEMA})"
        raise UnsupportedModelError(f"{msg}; upgrade Headrace, or optimize the model again here")
    raise UnsupportedModelError(f"{file}: has the schema {schema}; only {SCHEMA} is supported")


def _check_rows(directory: Path, members: tuple[EngineFile, ...]) -> None:
    bounds = [member.up_to_rows for member in members]
    if bounds[-1] is not None:
        raise refuse(directory, "has no member for many rows: the last one needs no `up_to_rows`")
    before = 0
    for bound in bounds[:-1]:
        if bound is None or bound <= before:
            msg = f"has members for up to {', '.join(map(str, bounds[:-1]))} rows"
            raise refuse(directory, f"{msg}; each must take more than the one before")
        before = bound


def _check_member(directory: Path, member: EngineFile, path: Path) -> None:
    shown = repr(member.runtime[:_MAX_SHOWN])
    try:
        check_tuning(member.tuning)
        plugin = get_runtime(member.runtime)
    except HeadraceError as error:
        raise refuse(directory, f"has an invalid member '{member.path}': {error}") from error
    if getattr(plugin, "has_manifest", False):
        msg = (
            f"has a member '{member.path}' of the runtime {shown}, which combines other models "
            "itself"
        )
        raise refuse(directory, f"{msg}; a member is one engine with its file")
    if runs_code(plugin, path):
        msg = f"has a member '{member.path}' of the runtime {shown}, which runs code of its author"
        raise refuse(directory, f"{msg}; serve such a model directly, with that runtime")
    check_libraries(plugin, path)


def _check_links(directory: Path) -> None:
    """Refuse links beneath a member's directory that leave the model."""
    root = directory.resolve()
    for count, entry in enumerate(_walk(directory)):
        if count >= _MAX_FILES:
            raise refuse(directory, f"holds more than {_MAX_FILES} files")
        if not entry.is_symlink():
            continue
        if not Path(os.path.realpath(entry.path)).is_relative_to(root):
            name = Path(entry.path).relative_to(directory)
            raise refuse(directory, f"holds '{name}', a link that leads out of its directory")


def _walk(directory: Path) -> Iterator["os.DirEntry[str]"]:
    waiting = [str(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError as error:
            raise refuse(directory, f"cannot be read: {error}") from error
