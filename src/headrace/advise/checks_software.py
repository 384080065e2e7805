"""Checks of installed software: too old, or with a published vulnerability.

`https://osv.dev` has them for download; a file may hold one document, a list, `{"vulns": [...]}`,
or one document a line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.advise.check import Check, Hit
from headrace.advise.facts import Advisory, Affected, Facts, Need, Severity
from headrace.core import InvalidArgumentError

_VERSION: Final = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_n>\d*))?"
    r"(?:-(?P<post_short>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_n>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?"
)
_STAGES: Final = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_MOST_DIGITS: Final = 18
VersionKey = tuple[int, tuple[int, ...], tuple[int, int], int, tuple[int, int]]


def version_key(version: str) -> VersionKey | None:
    """What orders versions; None for a text that is no version."""
    text = version.strip().lower()
    found = _VERSION.fullmatch(text)
    if found is None or any(len(digits) > _MOST_DIGITS for digits in re.findall(r"\d+", text)):
        return None
    release = tuple(int(part) for part in found["release"].split("."))
    while len(release) > 1 and release[-1] == 0:
        release = release[:-1]
    is_dev, is_post = found["dev"] is not None, bool(found["post"] or found["post_short"])
    if found["pre"]:
        stage = (_STAGES[found["pre"]], int(found["pre_n"] or 0))
    else:
        # 1.0.dev1 comes before 1.0a1, and that before 1.0.
        stage = (-1, 0) if is_dev and not is_post else (3, 0)
    post = int(found["post_short"] or found["post_n"] or 0) if is_post else -1
    dev = (0, int(found["dev_n"] or 0)) if is_dev else (1, 0)
    return int(found["epoch"] or 0), release, stage, post, dev


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """The oldest version of something that is still to be used. `line`: only of versions so."""

    name: str
    version: str
    reason: str
    line: str = ""


MINIMUMS: Final = (
    Minimum(
        name="python",
        line="3.11",
        version="3.11.13",
        reason="unpacking an archive could write outside its directory (CVE-2025-4517)",
    ),
    Minimum(
        name="python",
        line="3.12",
        version="3.12.11",
        reason="unpacking an archive could write outside its directory (CVE-2025-4517)",
    ),
    Minimum(
        name="python",
        line="3.13",
        version="3.13.4",
        reason="unpacking an archive could write outside its directory (CVE-2025-4517)",
    ),
    Minimum(
        name="openssl",
        version="3.0.0",
        reason="older lines get no fixes any more (1.1.1 since September 2023)",
    ),
    Minimum(
        name="envoy",
        version="1.40.0",
        reason="the gateway's configuration is checked against 1.40, and Envoy mends its newest "
        "four lines only",
    ),
    Minimum(
        name="onnxruntime",
        version="1.20.0",
        reason="it is what this version is tested with; older ones miss opsets and fixes of "
        "parsing",
    ),
)
"""What `headrace audit` compares with; the advisories of the day come by `--advisories`."""


def _old(facts: Facts) -> Iterator[Hit]:
    for minimum in MINIMUMS:
        have = facts.software.get(minimum.name)
        key, least = version_key(have or ""), version_key(minimum.version)
        if have is None or key is None or least is None or key >= least:
            continue
        if minimum.line and not f"{have}.".startswith(f"{minimum.line}."):
            continue
        yield Hit(
            where=minimum.name,
            seen=f"{minimum.name} {have} is older than {minimum.version}: {minimum.reason}",
            fix=f"Install {minimum.name} {minimum.version} or newer.",
        )


def _vulnerable(facts: Facts) -> Iterator[Hit]:
    installed = {_canonical(name): (name, have) for name, have in facts.packages.items()}
    for advisory in sorted(facts.advisories, key=lambda one: one.id):
        for affected in advisory.affected:
            name, have = installed.get(_canonical(affected.package), ("", ""))
            if name and is_affected(affected, have):
                yield _vulnerability(advisory, affected, name, have)
                break


def _vulnerability(advisory: Advisory, affected: Affected, name: str, have: str) -> Hit:
    have_key = version_key(have)
    fixes = [
        fixed
        for _, fixed, _ in affected.ranges
        if (key := version_key(fixed)) is not None and have_key is not None and key > have_key
    ]
    first = min(fixes, key=_sortable, default="")
    return Hit(
        where=name,
        seen=f"{name} {have}: {advisory.id}, {advisory.summary}",
        fix=f"pip install '{name}>={first}'" if first else f"No fix is known; replace {name}.",
        severity=advisory.severity,
    )


def _sortable(version: str) -> VersionKey:
    key = version_key(version)
    assert key is not None, "only versions that can be read are compared"
    return key


def is_affected(affected: Affected, have: str) -> bool:
    """Whether the version `have` is among those that an advisory speaks of."""
    key = version_key(have)
    if have in affected.versions:
        return True
    if key is None:
        return False
    if any(version_key(version) == key for version in affected.versions):
        return True
    return any(_is_in(key, *bounds) for bounds in affected.ranges)


def _is_in(key: VersionKey, introduced: str, fixed: str, last: str) -> bool:
    begin = version_key(introduced)
    if introduced != "0" and (begin is None or key < begin):
        return False
    end = version_key(fixed)
    if end is not None:
        return key < end
    until = version_key(last)
    return until is None or key <= until


def _canonical(name: str) -> str:
    """A package's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


CHECKS: Final = (
    Check(
        id="HR601",
        title="Software is too old",
        severity=Severity.MEDIUM,
        why="What was mended since then can be used against it.",
        fix="Install a newer one.",
        needs=(Need.SOFTWARE,),
        find=_old,
    ),
    Check(
        id="HR602",
        title="A package has a known vulnerability",
        severity=Severity.HIGH,
        why="How to use it is published.",
        fix="Install the version that mends it.",
        needs=(Need.ADVISORIES,),
        find=_vulnerable,
    ),
)
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
