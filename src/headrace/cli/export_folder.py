"""Which files of a folder did an earlier export write, and what becomes of them?

A record in the folder says so. What was written and is no more is removed; what a person changed or
added is never lost: it stays, or is put aside as NAME.orig where its place is needed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from headrace.core.files import move

RECORD: Final = ".headrace-export.json"
_ASIDE: Final = ".orig"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Digests (SHA-256) of what was written, by paths within the folder."""

    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done with files that are there.

    `removed`: as an export left them, and of nothing in this one. `kept`: the same, but somebody
    changed them. `aside`: to be renamed, for their place is needed.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    aside: tuple[str, ...]


def plan(recorded: Mapping[str, str], there: Mapping[str, str], files: Mapping[str, str]) -> Plan:
    """What becomes of the files in a folder; all arguments are digests by path.

    Args:
        recorded: What the export before wrote; empty where nobody knows.
        there: What is in the folder.
        files: What is to be written.
    """
    gone = sorted((recorded.keys() - files.keys()) & there.keys())
    removed = tuple(path for path in gone if there[path] == recorded[path])
    aside = (
        path
        for path in sorted(files.keys() & there.keys())
        if there[path] not in (files[path], recorded.get(path))
    )
    kept = tuple(path for path in gone if path not in removed)
    return Plan(removed=removed, kept=kept, aside=tuple(aside))


def write_over(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Write `files` to `folder`, which may have an earlier export; what people should know of it.

    Args:
        files: Contents by path within the folder. Other files there are left alone.
    """
    recorded = _recorded(folder)
    digests = {path: _digest(content) for path, content in files.items()}
    there = {
        path: _digest((folder / path).read_bytes())
        for path in {*(recorded or {}), *files}
        if (folder / path).is_file()
    }
    todo = plan(recorded or {}, there, digests)
    notes = [
        f"{path} was not as an export leaves it: it is {_put_aside(folder, path)} now"
        for path in todo.aside
    ]
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path in todo.removed:
        _remove(folder, path)
    if todo.removed:
        notes.append(f"removed, as they are of nothing in this export: {', '.join(todo.removed)}")
    notes += [
        f"{path} is of nothing in this export, and was changed since one wrote it: it stays; "
        "delete it if you do not want it"
        for path in todo.kept
    ]
    if recorded is None:
        notes += _unknown(folder, files)
    (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(_Record(files=digests))))
    return notes


def _recorded(folder: Path) -> dict[str, str] | None:
    """What an earlier export wrote; None if nothing says so."""
    try:
        text = (folder / RECORD).read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = msgspec.json.decode(text, type=_Record)
    except msgspec.MsgspecError:
        return None
    # Whoever wrote the record may have been somebody else: nothing outside the folder is touched.
    return {path: digest for path, digest in record.files.items() if _is_within(folder, path)}


def _is_within(folder: Path, path: str) -> bool:
    parts = PurePosixPath(path)
    if not path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
        return False
    return (folder / path).parent.resolve().is_relative_to(folder.resolve())


def _unknown(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Templates that nobody vouches for: Helm would make objects of them."""
    found = (path.relative_to(folder).as_posix() for path in folder.glob("templates/**/*"))
    found = (path for path in found if not path.endswith(_ASIDE) and (folder / path).is_file())
    others = sorted(set(found) - files.keys())
    if not others:
        return []
    return [f"not of this export, and left alone: {', '.join(others)}; delete what you did not add"]


def _put_aside(folder: Path, path: str) -> str:
    """Rename a file; the name that it has now, which none had before."""
    number = 1
    while (aside := folder / f"{path}{f'.{number}' if number > 1 else ''}{_ASIDE}").exists():
        number += 1
    move(folder / path, aside)
    return aside.relative_to(folder).as_posix()


def _remove(folder: Path, path: str) -> None:
    """Delete a file, and the folders that are empty then."""
    (folder / path).unlink()
    for parent in PurePosixPath(path).parents:
        here = folder / parent
        if str(parent) == "." or any(here.iterdir()):
            return
        here.rmdir()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
