"""The packages that schemas are made from: their pins, and how they come to this machine.

npm's are pinned with the digest that the registry publishes, PyPI's with the wheel's.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

SCOPE: Final = "@kubernetes-models/"
CORE: Final = "kubernetes-models"
NPM: Final = {
    "kubernetes-models": (
        "5.1.0",
        "ym4Kiyr8BzGIWj4f853ytVYES1B8C1BdONRP5zodItPD1o//OEKuTwC5nFV3ZJtFGeMqOFbIYkpunSVXSlHS8g==",
    ),
    "@kubernetes-models/apimachinery": (
        "3.0.2",
        "6Vbzr/tinxPBGGdfYjXiV9WPj8PEhyiqGJiWhXrsihK7h6glPj4HKUxZ0YwYXH/5uucm/NVef/xY3vZ4Crj1Fg==",
    ),
    "@kubernetes-models/gateway-api": (
        "2.0.0",
        "e7SY7EkCGRHy5wHkaGhP32v7V1L+gBalfoqZDFDWn5k9Q7+IW6uz9jNWgOZ9R/Hv5NWyAFYaA01ET2qsysVt5A==",
    ),
    "@kubernetes-models/prometheus-operator": (
        "6.0.0",
        "ySNW4T6U6Vn86bmcJ/emmAYJ/UrzpNvzxWexWJSALwgiO4FqCgL6WoqFsOReSiMhw/LlF+MljQvoiwD3RnaGmg==",
    ),
    "@kubernetes-models/keda": (
        "2.0.0",
        "iqDohrzL51UXD6zM+Rl4RDnZ9Q7jwgikXYrDCxL0sWA5ZTFa7nMfS4Exu2uK6ohA+OUNQMUIFWORAHNpz5qlFw==",
    ),
    "@kubernetes-models/cert-manager": (
        "6.0.0",
        "PvvzvJEnlEC64NC8HUUB4PFjFaBBNeYuO875Eu/FeMZN1OKm2DOXATRpo0WVCh5D2xbfhn30eUqKL3IrnQMX7w==",
    ),
    "@kubernetes-models/argo-rollouts": (
        "2.0.0",
        "bKva0rPs0/kN7iWBmMTeNZytV7vCYHHr2/QhcBfOnp+y8daM5BJlHLd1yE+6JBkh5Z4k24QoQXbAMuZSbcwU1A==",
    ),
}
"""Package ▸ its version and the SHA-512 of its archive."""
KSERVE: Final = ("0.21.0", "df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b")
"""The version of PyPI's `kserve`, and the SHA-256 of its wheel."""
GO: Final = (
    "sigs.k8s.io/gateway-api-inference-extension@v1.3.0",
    "h1:Ng2Qs1Oum4WycuWyi3rOkAC7pZ2aDqgN2ku6Lr/mryQ=",
)
"""A module of Go's with CRDs, and its checksum."""
_WITHIN_S: Final = 120


class WrongPackageError(RuntimeError):
    """A registry sent another archive than the one that was pinned."""


def missing_programs() -> list[str]:
    """The programs that fetch the packages, and that this machine lacks."""
    return [name for name in ("npm", "go") if shutil.which(name) is None]


def fetch(folder: Path) -> None:
    """Each npm package's files in `folder/npm/NAME`, and KServe's in `folder/kserve`.

    Raises:
        CalledProcessError: A registry was not reached; its client has said why.
        WrongPackageError: An archive is not the pinned one.
    """
    archives = folder / "archives"
    archives.mkdir()
    pins = [f"{name}@{version}" for name, (version, _) in NPM.items()]
    _run("npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(archives), *pins)
    for name, (version, digest) in NPM.items():
        archive = archives / f"{name.replace('@', '').replace('/', '-')}-{version}.tgz"
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        _check(f"{name}@{version}", found, digest)
        with tarfile.open(archive) as files:
            files.extractall(folder / "npm" / name, filter="data")
    version, digest = KSERVE
    wheel = f"kserve=={version}"
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--dest", str(archives), wheel),
    )
    (archive,) = archives.glob("kserve-*.whl")
    _check(wheel, hashlib.sha256(archive.read_bytes()).hexdigest(), digest)
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder / "kserve")  # noqa: S202  # zipfile keeps files in the folder


def go_module() -> Path:
    """The folder of the Go module's files, in Go's own cache.

    Raises:
        CalledProcessError: The module proxy was not reached; Go has said why.
        WrongPackageError: The module is not the pinned one.
    """
    module, pinned = GO
    command = ("go", "mod", "download", "-json", module)
    done = subprocess.run(command, check=True, capture_output=True, timeout=_WITHIN_S)  # noqa: S603  # our own pin
    told = json.loads(done.stdout)
    _check(module, told["Sum"], pinned)
    return Path(told["Dir"])


def _check(name: str, found: str, pinned: str) -> None:
    if found != pinned:
        message = f"{name}: the registry's archive has the digest {found}, not {pinned}"
        raise WrongPackageError(message)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_WITHIN_S)  # noqa: S603  # npm and pip, with our own pins
