"""Packaging of the chosen candidates as a directory that can be pushed and served."""

import math
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import AlreadyExistsError, InvalidArgumentError
from headrace.core.files import move
from headrace.optimize.candidate import Candidate
from headrace.registry import copy_content
from headrace.runtimes.check_file import Asked, write_check
from headrace.runtimes.onnx.file import external_files
from headrace.runtimes.optimized.file import (
    FILE_NAME,
    EngineFile,
    OptimizedManifest,
    OtherProcessor,
    Processor,
    VerificationRequests,
)
from headrace.runtimes.optimized.runtime import CANDIDATE, prove

# A step of eight bits is about 0.008 of the largest value. The error of a small INT8 network of
# OpenVINO's was 0 on any processor with VNNI, and 0.05 without it, where sums saturate.
_CHECK: Final = VerificationRequests(path="check.npz", tolerance=0.02, max_changed_ratio=0.02)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def write_artifact(
    target: Path,
    members: Sequence[tuple[Candidate, int | None]],
    *,
    processor: Processor,
    check: Sequence[Asked] = (),
    policy: OtherProcessor = OtherProcessor.VERIFY,
    source_digest: str = "",
    calibration_sha256: str = "",
    versions: Mapping[str, str] | None = None,
    figures: Mapping[str, float] | None = None,
) -> Path:
    """Write the directory, check that it loads and passes its own check, and publish it.

    Args:
        target: Destination; must not exist, or be an empty directory.
        members: Candidates, each with the largest batch, in rows, that it runs; the last with None.
        processor: Processor on which the candidates were verified.
        check: Requests with the chosen candidate's answers, for verification on other hosts.
        figures: Measured figures; finite.

    Returns:
        `target`.

    Raises:
        AlreadyExistsError: `target` exists and is not empty.
        InvalidArgumentError: The members, the check or the figures are invalid.
        FailedPreconditionError: The written model does not reproduce `check`.
        OSError: Reading or writing fails.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AlreadyExistsError(f"{target}: exists already; choose a new directory")
    if policy is OtherProcessor.VERIFY and not check:
        msg = "verification on another processor needs check requests"
        raise InvalidArgumentError(f"{msg}; pass some, or use the policy 'refuse' or 'allow'")
    for name, value in (figures or {}).items():
        if not math.isfinite(value):
            raise InvalidArgumentError(f"the figure '{name}' is {value}, which is not finite")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        manifest = OptimizedManifest(
            members=_copied(members, partial),
            processor=processor,
            on_other_processor=policy,
            check=_CHECK if check else None,
            source_digest=source_digest,
            calibration_sha256=calibration_sha256,
            recipe=_recipes(members),
            versions=dict(versions or {}),
            figures=dict(figures or {}),
        )
        if check:
            write_check(partial / _CHECK.path, check)
        encoded = msgspec.json.encode(manifest)
        (partial / FILE_NAME).write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
        prove(partial)
        move(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _copied(
    members: Sequence[tuple[Candidate, int | None]], directory: Path
) -> tuple[EngineFile, ...]:
    """Copy each candidate's files to a directory of its name; shared files once."""
    directory.mkdir()
    paths: dict[Path, str] = {}
    engine_files = []
    for candidate, up_to_rows in members:
        if candidate.path not in paths:
            paths[candidate.path] = _copy(candidate, directory)
        engine_files.append(
            EngineFile(
                runtime=candidate.runtime,
                path=paths[candidate.path],
                tuning=candidate.tuning,
                up_to_rows=up_to_rows,
            )
        )
    return tuple(engine_files)


def _copy(candidate: Candidate, directory: Path) -> str:
    """Copy a candidate's files; return its path within the directory."""
    if _NAME.fullmatch(candidate.name) is None or candidate.name in {FILE_NAME, _CHECK.path}:
        msg = f"the candidate name {candidate.name[:100]!r} is not a valid directory name"
        raise InvalidArgumentError(msg)
    folder = directory / candidate.name
    if folder.exists():
        raise InvalidArgumentError(f"two candidates have the name '{candidate.name}'")
    if candidate.path.is_dir():
        copy_content(candidate.path, folder)
        return candidate.name
    for file in files_of(candidate.path):
        destination = folder / file.relative_to(candidate.path.parent)
        destination.parent.mkdir(parents=True, exist_ok=True)
        copy_content(file, destination)
    return f"{candidate.name}/{candidate.path.name}"


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a candidate's files: its directory's, or its file and the weights beside it."""
    if path.is_dir():
        return tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return (path, *external_files(path))
    weights_file = path.with_suffix({".xml": ".bin", ".pdmodel": ".pdiparams"}.get(suffix, suffix))
    return (path, weights_file) if weights_file != path and weights_file.exists() else (path,)


def _recipes(members: Sequence[tuple[Candidate, int | None]]) -> dict[str, str]:
    """Merge the candidates' recipe entries, prefixed by name if there are several."""
    names = list(dict.fromkeys(candidate.name for candidate, _ in members))
    recipes = {CANDIDATE: " and ".join(names)}
    for candidate, _ in members:
        prefix = f"{candidate.name}: " if len(names) > 1 else ""
        recipes |= {f"{prefix}{key}": text for key, text in candidate.recipe.items()}
    return recipes
