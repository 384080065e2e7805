"""Debian's real `promtool` and `amtool`: what is installed, else fetched into the user's cache."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_FETCH_WITHIN_S: Final = 120.0
_PACKAGES: Final = {"promtool": "promtool", "amtool": "prometheus-alertmanager"}


class NoToolError(Exception):
    """It is not here, and cannot be fetched; the message says why."""


def find_tool(name: str) -> Path:
    """The program of this name.

    Raises:
        NoToolError: There is none.
    """
    installed = shutil.which(name)
    if installed is not None:
        return Path(installed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "headrace-tests" / "prometheus-tools" / name
    if not kept.exists():
        _fetch(name, kept)
    return kept


def run_tool(name: str, *arguments: str | Path) -> tuple[int, str]:
    """A run's exit status, and all that it printed."""
    command = [str(find_tool(name)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def _fetch(name: str, kept: Path) -> None:
    apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt_get is None or dpkg is None:
        raise NoToolError(f"no {name} here, and no apt-get to fetch it with")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
        try:
            command = [apt_get, "download", "-qq", _PACKAGES[name]]
            subprocess.run(
                command, cwd=directory, capture_output=True, timeout=_FETCH_WITHIN_S, check=False
            )
            (package,) = Path(directory).glob("*.deb")
            unpacked = Path(directory) / "root"
            subprocess.run([dpkg, "-x", package, unpacked], check=True, capture_output=True)
        except (ValueError, subprocess.SubprocessError) as error:
            raise NoToolError(f"{name} cannot be fetched: {error}") from error
        # Several test processes may fetch at once: each brings its own there in one step.
        (unpacked / "usr" / "bin" / name).replace(kept)
