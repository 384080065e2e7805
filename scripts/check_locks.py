"""Offline check of the lock files against `pyproject.toml`.

Each requirement is pinned to a version it allows, every pin has a hash, shared pins agree, and no
line names a download address. Resolving again would need the network.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKS: Final = {
    "base": (),
    "dev": ("dev", "docs"),
    "demo": ("demo",),
    "bench": ("bench",),
    "clients": ("clients",),
    "mutants": ("mutants",),
    "build": ("build",),
}
"""Lock file ▸ the dependency groups in it."""
WITH_PACKAGE: Final = ("base", "demo", "dev")
"""Locks that hold the package's own dependencies too."""
SEPARATE: Final = ("clients",)
"""Locks of environments that share nothing with dev's."""
_PIN: Final = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?P<marker> ;[^\\]*)?")

Pins = dict[str, set[str]]
"""Canonical name ▸ versions; there is more than one where Python versions need different ones."""


def read_pins(text: str) -> Pins:
    """The pins of a lock file."""
    pins: Pins = {}
    for line in text.splitlines():
        if match := _PIN.match(line):
            pins.setdefault(canonicalize_name(match["name"]), set()).add(match["version"])
    return pins


def mistakes(pyproject: str, locks: dict[str, str]) -> Iterator[str]:
    """What is wrong with `locks` (texts by name) for this text of `pyproject.toml`."""
    project = tomllib.loads(pyproject)
    dev = read_pins(locks["dev"])
    for name, groups in LOCKS.items():
        pins = read_pins(locks[name])
        lines = [line for group in groups for line in project["dependency-groups"][group]]
        if name in WITH_PACKAGE:
            lines += project["project"]["dependencies"]
        yield from _unmet(name, lines, pins)
        yield from _malformed(name, locks[name])
        for package in sorted(pins.keys() & dev.keys()):
            if name not in SEPARATE and not pins[package] <= dev[package]:
                yield f"{name}.txt and dev.txt disagree on {package}"


def _unmet(lock: str, lines: list[str], pins: Pins) -> Iterator[str]:
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        versions = pins.get(canonicalize_name(requirement.name), set())
        if not versions:
            yield f"{lock}.txt has no pin for {requirement}"
        for version in versions:
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{lock}.txt pins {requirement.name} {version}, which {requirement} forbids"


def _malformed(lock: str, text: str) -> Iterator[str]:
    if "://" in text or "--index" in text or "--find-links" in text:
        yield f"{lock}.txt names a download address"
    lines = text.splitlines()
    for line, after in zip_longest(lines, lines[1:], fillvalue=""):
        if _PIN.match(line) and not after.lstrip().startswith("--hash=sha256:"):
            yield f"{lock}.txt has no hash for {line.split(' ')[0]}"


def main() -> int:
    """Print every mistake; 0 if there is none."""
    locks = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in LOCKS}
    errors = list(mistakes((ROOT / "pyproject.toml").read_text(), locks))
    for line in errors:
        print(line, file=sys.stderr)
    if errors:
        print("run `make lock` and commit requirements/", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
