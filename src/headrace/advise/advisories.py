"""Known vulnerabilities, read from files of OSV documents; nothing is fetched.

`https://osv.dev` has them for download; a file may hold one document, a list, `{"vulns": [...]}`,
or one document a line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from headrace.advise.facts import Advisory, Affected, Severity
from headrace.core import InvalidArgumentError

_MOST_BYTES: Final = 256 << 20
_MOST_FILES: Final = 200_000
_SEVERITIES: Final = {
    "LOW": Severity.LOW,
    "MODERATE": Severity.MEDIUM,
    "MEDIUM": Severity.MEDIUM,
    "HIGH": Severity.HIGH,
    "CRITICAL": Severity.CRITICAL,
}
_MOST_SUMMARY: Final = 300


class _Package(msgspec.Struct):
    ecosystem: str = ""
    name: str = ""


class _Event(msgspec.Struct):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None


class _Range(msgspec.Struct):
    type: str = ""
    events: list[_Event] = []


class _Affected(msgspec.Struct):
    package: _Package | None = None
    ranges: list[_Range] = []
    versions: list[str] = []


class _Specific(msgspec.Struct):
    severity: str | None = None


class _Osv(msgspec.Struct):
    id: str
    summary: str = ""
    details: str = ""
    withdrawn: str | None = None
    affected: list[_Affected] = []
    database_specific: _Specific | None = None


class _Answer(msgspec.Struct):
    vulns: list[_Osv]


def read_advisories(path: Path) -> tuple[Advisory, ...]:
    """The advisories on Python packages in a file, or in all `.json` files of a directory.

    Raises:
        InvalidArgumentError: One cannot be read; the message names it.
    """
    files = sorted(path.rglob("*.json"))[:_MOST_FILES] if path.is_dir() else [path]
    return tuple(advisory for file in files for advisory in _read(file))


def _read(file: Path) -> Iterator[Advisory]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InvalidArgumentError(f"{file} is larger than {_MOST_BYTES} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {file}: {error.strerror or error}") from error
    for document in _documents(file, data):
        advisory = _advisory(document)
        if advisory is not None:
            yield advisory


def _documents(file: Path, data: bytes) -> list[_Osv]:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        try:
            found = [msgspec.json.decode(line) for line in data.splitlines() if line.strip()]
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{file} is no JSON: {error}") from error
    try:
        if isinstance(found, dict) and "vulns" in found:
            return msgspec.convert(found, _Answer).vulns
        return msgspec.convert(found if isinstance(found, list) else [found], list[_Osv])
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"{file} holds no OSV documents: {error}") from error


def _advisory(document: _Osv) -> Advisory | None:
    if document.withdrawn:
        return None
    affected = tuple(
        Affected(
            package=one.package.name,
            versions=tuple(one.versions),
            ranges=tuple(bounds for found in one.ranges for bounds in _bounds(found)),
        )
        for one in document.affected
        if one.package is not None and one.package.ecosystem == "PyPI"
    )
    if not affected:
        return None
    specific = document.database_specific
    named = (specific.severity or "").upper() if specific is not None else ""
    summary = document.summary or document.details.partition("\n")[0] or "no summary"
    return Advisory(
        id=document.id,
        summary=summary[:_MOST_SUMMARY],
        severity=_SEVERITIES.get(named, Severity.HIGH),
        affected=affected,
    )


def _bounds(found: _Range) -> Iterator[tuple[str, str, str]]:
    """A range's events as `(introduced, fixed, last affected)`, in the order they stand."""
    if found.type == "GIT":
        return
    introduced: str | None = None
    for event in found.events:
        if event.introduced is not None:
            if introduced is not None:
                yield introduced, "", ""
            introduced = event.introduced
        elif introduced is not None and (event.fixed or event.last_affected):
            yield introduced, event.fixed or "", event.last_affected or ""
            introduced = None
    if introduced is not None:
        yield introduced, "", ""
