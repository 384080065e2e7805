"""Debian's Prometheus, its tools and a container registry: the installed one, else fetched once."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_FETCH_WITHIN_S: Final = 120.0
_PACKAGES: Final = {
    "prometheus": ("prometheus",),
    "promtool": ("promtool", "prometheus"),  # a package of its own since Debian 13
    "amtool": ("prometheus-alertmanager",),
    "docker-registry": ("docker-registry",),
}


class NoToolError(Exception):
    """It is not here, and cannot be fetched; the message says why."""


def find_tool(name: str) -> Path:
    """The program of this name; a fetched one lies in the user's cache.

    Raises:
        NoToolError: There is none.
    """
    installed = shutil.which(name)
    if installed is not None:
        return Path(installed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "headrace-tests" / "debian" / name
    if not kept.exists():
        _fetch(name, kept)
    return kept


def run_tool(name: str, *arguments: str | Path) -> tuple[int, str]:
    """A run's exit status, and all that it printed."""
    command = [str(find_tool(name)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def _fetch(name: str, kept: Path) -> None:
    apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt_get is None or dpkg is None:
        raise NoToolError(f"no {name} here, and no apt-get to fetch it with")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
        try:
            if not _downloaded(apt_get, name, directory):
                _ran(apt_get, "update", "-qq", cwd=directory)  # it needs to know the package first
                _downloaded(apt_get, name, directory)
            (package,) = Path(directory).glob("*.deb")
            unpacked = Path(directory) / "root"
            subprocess.run([dpkg, "-x", package, unpacked], check=True, capture_output=True)
        except (ValueError, subprocess.SubprocessError) as error:
            raise NoToolError(f"{name} cannot be fetched: {error}") from error
        # Several test processes may fetch at once: each brings its own there in one step.
        (unpacked / "usr" / "bin" / name).replace(kept)


def _downloaded(apt_get: str, name: str, directory: str) -> bool:
    packages = _PACKAGES[name]
    return any(_ran(apt_get, "download", "-qq", package, cwd=directory) for package in packages)


def _ran(*command: str, cwd: str) -> bool:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, timeout=_FETCH_WITHIN_S, check=False
    )
    return done.returncode == 0
