"""Wheel with compiled modules, as users install it, unpacked into a folder for PYTHONPATH.

`python -m scripts.compiled` prints the folder. It builds the wheel, in a minute, if the sources
changed; the wheel stays in `dist/`.
"""

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SITE: Final = ROOT / "build" / "site"
DIST: Final = ROOT / "dist"
STAMP: Final = ".built-from"
LIMIT_S: Final = 900.0


class BuildError(RuntimeError):
    """The wheel cannot be built here; the message ends with what the compiler said."""


def ensure() -> Path:
    """Return the folder, rebuilt if the sources changed.

    Raises:
        BuildError: There is no C compiler, or it failed.
    """
    digest = _digest()
    stamp = SITE / STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return SITE
    if shutil.which(os.environ.get("CC", "cc")) is None:
        msg = "no C compiler: install one (Debian: apt-get install gcc libc6-dev), or name it in CC"
        raise BuildError(msg)
    print("compiling Headrace's wheel, a minute ...", file=sys.stderr, flush=True)
    shutil.rmtree(SITE, ignore_errors=True)
    with zipfile.ZipFile(build(DIST)) as wheel:
        wheel.extractall(SITE)
    compileall.compile_dir(SITE, quiet=1, workers=0)
    stamp.write_text(digest)
    return SITE


def build(into: Path) -> Path:
    """The wheel of the sources as they are.

    Raises:
        BuildError: mypy or the compiler failed.
    """
    into.mkdir(exist_ok=True)
    for old in into.glob("headrace-*.whl"):
        old.unlink()
    done = subprocess.run(  # noqa: S603  # our own words
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(into)],
        cwd=ROOT,
        env={**os.environ, "HATCH_BUILD_HOOK_ENABLE_CUSTOM": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()
        msg = "the wheel could not be compiled:\n" + "\n".join(output[-20:])
        raise BuildError(msg)
    (wheel,) = into.glob("headrace-*.whl")
    return wheel


def _digest() -> str:
    """What the wheel depends on, in 64 letters."""
    digest = hashlib.sha256(sys.version.encode())
    files = [ROOT / "pyproject.toml", ROOT / "scripts" / "hatch_build.py"]
    for folder in ("src", "charts"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        if "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        print(ensure())
    except BuildError as error:
        sys.exit(f"compiled: {error}")
