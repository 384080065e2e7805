"""An environment for each peer, with pinned requirements and nothing of ours in it.

Everything is byte-compiled: where PYTHONDONTWRITEBYTECODE is set, a server would else parse its own
code at every start.
"""

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import wheel

ROOT: Final = Path(__file__).parents[2]
REQUIREMENTS: Final = Path(__file__).parent / "requirements"
FOLDER: Final = ROOT / ".venv-peers"
STAMP: Final = ".installed"
LIMIT_S: Final = 900.0
MB: Final = 1_000_000


class InstallError(RuntimeError):
    """A peer cannot be installed here; the message ends with what pip said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A filled environment."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def script(self, name: str) -> Path:
        """A command that was installed into it."""
        return self.folder / "bin" / name

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        return next((self.folder / "lib").glob("python3*")) / "site-packages"

    def size_mb(self) -> float:
        """What it takes on the disk, bytecode included."""
        files = (path for path in self.folder.rglob("*") if not path.is_symlink())
        return sum(path.stat().st_blocks * 512 for path in files) / MB

    def versions(self) -> dict[str, str]:
        """What is installed, by `pip freeze`."""
        code = (
            "import importlib.metadata as m;"
            "print(*sorted({f'{d.name}=={d.version}' for d in m.distributions()}), sep='\\n')"
        )
        done = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        return dict(line.split("==", 1) for line in done.stdout.splitlines())


def headrace_size_mb() -> float:
    """What Headrace and its requirements take, with Envoy and without what only its makers need.

    Raises:
        InstallError: pip failed.
    """
    requirements = ensure("headrace", ROOT / "requirements" / "base.txt")
    return requirements.size_mb() + wheel.size_bytes() / MB


def ensure(name: str, requirements: Path | None = None) -> Environment:
    """The environment of one requirements file, made now if it is missing or another was meant.

    Args:
        requirements: The file; by default the peer's own.

    Raises:
        InstallError: pip failed.
    """
    wanted = requirements or REQUIREMENTS / f"{name}.txt"
    environment = Environment(folder=FOLDER / name)
    mark = f"{sys.version}\n{stamp(wanted.read_bytes())}\n"
    stamped = environment.folder / STAMP
    if stamped.exists() and stamped.read_text() == mark:
        return environment
    print(f"installing {name} into {environment.folder.relative_to(ROOT)} ...", end=" ", flush=True)
    started = time.monotonic()
    _create(environment)
    _install(environment, wanted)
    stamped.write_text(mark)
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return environment


def stamp(requirements: bytes) -> str:
    """What an environment is remembered by."""
    return hashlib.sha256(requirements).hexdigest()


def pinned(requirements: str) -> list[str]:
    """The names of the packages that a requirements file pins, without extras."""
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    return [line.split("==")[0].partition("[")[0] for line in lines if "==" in line]


def last_words(output: str, lines: int = 3) -> str:
    """Why pip failed: the end of what it printed."""
    return " | ".join(line.strip() for line in output.strip().splitlines()[-lines:])


def _create(environment: Environment) -> None:
    argv = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment.folder)]
    _run(argv, "python -m venv failed (Debian ships it as python3-venv)")


def _install(environment: Environment, wanted: Path) -> None:
    # pip and not uv: it reads the settings of whoever keeps builds of PyTorch for the CPU.
    argv = [sys.executable, "-m", "pip", "--python", str(environment.python)]
    argv += ["install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    _run([*argv, "-r", str(wanted)], f"pip install -r {wanted.relative_to(ROOT)} failed")
    # Some packages carry files for other Pythons, which do not compile and need not.
    subprocess.run(
        [environment.python, "-m", "compileall", "-q", "-j", "0", environment.packages],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
    )


def _run(argv: list[str], why: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        msg = f"{why}: not done within {LIMIT_S:g} s"
        raise InstallError(msg) from error
    if done.returncode:
        msg = f"{why}: {last_words(done.stderr or done.stdout)}"
        raise InstallError(msg)
