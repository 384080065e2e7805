"""Checks of installed software: outdated versions and published vulnerabilities.

Advisories can be downloaded from `https://osv.dev`; a file may contain one document, a list,
`{"vulns": [...]}`, or one document per line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from packaging.utils import canonicalize_name
from packaging.version import Version

from headrace.advise.audit.check import Hit, check
from headrace.advise.audit.facts import Advisory, Affected, AuditFacts, FindingSeverity, Need
from headrace.core import InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE

_UNPACKING: Final = "unpacking an archive could write outside its directory (CVE-2025-4517)"
_MAX_BYTES: Final = 256 << 20
_MAX_FILES: Final = 200_000
_MAX_SUMMARY: Final = 300
_SEVERITIES: Final = {
    "LOW": FindingSeverity.LOW,
    "MODERATE": FindingSeverity.MEDIUM,
    "MEDIUM": FindingSeverity.MEDIUM,
    "HIGH": FindingSeverity.HIGH,
    "CRITICAL": FindingSeverity.CRITICAL,
}


def version_key(version: str) -> Version | None:
    """Return the sort key of a version (PEP 440); None if it is not a version."""
    try:
        return Version(version)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Minimum:
    """The oldest acceptable version of a component."""

    name: str

    line: str
    """The release line it applies to; empty for all versions."""

    version: str

    reason: str


MINIMUMS: Final = (
    Minimum("python", "3.11", "3.11.13", _UNPACKING),
    Minimum("python", "3.12", "3.12.11", _UNPACKING),
    Minimum("python", "3.13", "3.13.4", _UNPACKING),
    Minimum("openssl", "", "3.0.0", "older lines no longer get fixes (1.1.1 since September 2023)"),
    Minimum(
        "envoy",
        "",
        "1.40.0",
        "the gateway's configuration is tested with 1.40, and Envoy maintains its newest "
        "four lines only",
    ),
    Minimum(
        "onnxruntime",
        "",
        "1.20.0",
        "Headrace is tested with it; older versions lack opsets and parser fixes",
    ),
)
"""Minimums of `headrace audit`; current advisories are passed with `--advisories`."""


@check(
    "HR601",
    FindingSeverity.MEDIUM,
    "Software is outdated",
    reason="Issues fixed since then can be exploited.",
    fix="Install a newer version.",
    needs=(Need.SOFTWARE,),
)
def _old(facts: AuditFacts) -> Iterator[Hit]:
    for minimum in MINIMUMS:
        installed = facts.software.get(minimum.name)
        key, lower = version_key(installed or ""), version_key(minimum.version)
        if installed is None or key is None or lower is None or key >= lower:
            continue
        if minimum.line and not f"{installed}.".startswith(f"{minimum.line}."):
            continue
        yield Hit(
            minimum.name,
            f"{minimum.name} {installed} is older than {minimum.version}: {minimum.reason}",
            fix=f"Install {minimum.name} {minimum.version} or newer.",
        )


@check(
    "HR602",
    FindingSeverity.HIGH,
    "A package has a known vulnerability",
    reason="Exploits are public.",
    fix="Install the fixed version.",
    needs=(Need.ADVISORIES,),
)
def _vulnerable(facts: AuditFacts) -> Iterator[Hit]:
    installed = {canonicalize_name(name): (name, have) for name, have in facts.packages.items()}
    for advisory in sorted(facts.advisories, key=lambda one: one.id):
        for affected in advisory.affected:
            name, have = installed.get(canonicalize_name(affected.package), ("", ""))
            if not name or not is_affected(affected, have):
                continue
            key = version_key(have)
            fixes = [
                fixed
                for _, end, _ in affected.ranges
                if key is not None and (fixed := version_key(end)) is not None and fixed > key
            ]
            fix = f"No fix is known; replace {name}."
            yield Hit(
                name,
                f"{name} {have}: {advisory.id}, {advisory.summary}",
                fix=f"pip install '{name}>={min(fixes)}'" if fixes else fix,
                severity=advisory.severity,
            )
            break


def is_affected(affected: Affected, have: str) -> bool:
    """Whether an advisory lists the version `have`."""
    key = version_key(have)
    if have in affected.versions:
        return True
    if key is None:
        return False
    if any(version_key(version) == key for version in affected.versions):
        return True
    for introduced, fixed, last in affected.ranges:
        begin, end, until = map(version_key, (introduced, fixed, last))
        if introduced != "0" and (begin is None or key < begin):
            continue
        if key < end if end is not None else until is None or key <= until:
            return True
    return False


class _Range(msgspec.Struct):
    type: str = ""
    events: list[dict[str, str | None]] = []


class _Affected(msgspec.Struct):
    package: dict[str, str] | None = None
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


def read_advisories(path: Path) -> tuple[Advisory, ...]:
    """Read the advisories on Python packages in a file, or in all `.json` files of a directory.

    Raises:
        InvalidArgumentError: A file cannot be read; the message names it.
    """
    files = sorted(path.rglob("*.json"))[:_MAX_FILES] if path.is_dir() else [path]
    read = (_advisory(document) for file in files for document in _documents(file))
    return tuple(advisory for advisory in read if advisory is not None)


def _documents(file: Path) -> list[_Osv]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InvalidArgumentError(f"{file} is larger than {_MAX_BYTES} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        document = msgspec.json.decode(data)
    except UNDECODABLE:
        try:
            document = [msgspec.json.decode(line) for line in data.splitlines() if line.strip()]
        except UNDECODABLE as error:
            raise InvalidArgumentError(f"{file} is not JSON: {error}") from error
    if isinstance(document, dict):
        document = document.get("vulns", [document])
    try:
        return msgspec.convert(document, list[_Osv])
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"{file} contains no OSV documents: {error}") from error


def _advisory(document: _Osv) -> Advisory | None:
    """Return the advisory of a document; None if it names no Python package, or was withdrawn."""
    affected = tuple(
        Affected(
            package=affected.package.get("name", ""),
            versions=tuple(affected.versions),
            ranges=tuple(
                bounds for affected_range in affected.ranges for bounds in _bounds(affected_range)
            ),
        )
        for affected in document.affected
        if affected.package is not None and affected.package.get("ecosystem") == "PyPI"
    )
    if not affected or document.withdrawn:
        return None
    specific = document.database_specific
    named = (specific.severity or "").upper() if specific is not None else ""
    summary = document.summary or document.details.partition("\n")[0] or "no summary"
    return Advisory(
        id=document.id,
        summary=summary[:_MAX_SUMMARY],
        severity=_SEVERITIES.get(named, FindingSeverity.HIGH),
        affected=affected,
    )


def _bounds(affected_range: _Range) -> Iterator[tuple[str, str, str]]:
    """Yield a range's events as `(introduced, fixed, last affected)`, in order."""
    if affected_range.type == "GIT":
        return
    introduced: str | None = None
    for event in affected_range.events:
        begin, fixed, last = map(event.get, ("introduced", "fixed", "last_affected"))
        if begin is not None:
            if introduced is not None:
                yield introduced, "", ""
            introduced = begin
        elif introduced is not None and (fixed or last):
            yield introduced, fixed or "", last or ""
            introduced = None
    if introduced is not None:
        yield introduced, "", ""
