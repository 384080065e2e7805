"""An OCI registry on loopback, and clients that push to it; Go builds them once."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from tests.contract.s3_servers import wait_for
from tests.ports import free_port

_SOURCE: Final = Path(__file__).with_name("oci_registry")
_BUILT_WITHIN_S: Final = 1800.0


class NoRegistryError(Exception):
    """There is no registry here; the message says why."""


@dataclass(frozen=True, slots=True)
class OciRegistry:
    """A running registry at `host`, such as `127.0.0.1:5000`."""

    host: str
    program: Path
    pid: int

    def push_files(self, reference: str, folder: Path, *names: str) -> None:
        """Push files and directories of a folder, as `oras push` does."""
        self._run("push-files", f"{self.host}/{reference}", str(folder), *names)

    def push_image(self, reference: str, *layers: Path) -> None:
        """Push an image with one layer for each tar file."""
        self._run("push-image", f"{self.host}/{reference}", *map(str, layers))

    def push_manifest(self, reference: str, manifest: bytes, media_type: str) -> str:
        """Push a manifest as it is, and return its digest."""
        repository, _, tag = reference.rpartition(":")
        answer = httpx.put(
            f"http://{self.host}/v2/{repository}/manifests/{tag}",
            content=manifest,
            headers={"content-type": media_type},
        )
        assert answer.status_code == 201, answer.text
        return str(answer.headers["docker-content-digest"])

    def push_blob(self, repository: str, data: bytes) -> str:
        """Push a blob and return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        begun = httpx.post(f"http://{self.host}/v2/{repository}/blobs/uploads/")
        url = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": digest})
        answer = httpx.put(url, content=data, headers={"content-type": "application/octet-stream"})
        assert answer.status_code == 201, answer.text
        return digest

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603  # ours
            [self.program, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def running_registry(folder: Path, auth: str = "") -> Iterator[OciRegistry]:
    """A registry in memory until the block ends.

    Args:
        folder: For its configuration.
        auth: The part `auth` of its configuration, in YAML; empty for none.

    Raises:
        NoRegistryError: It cannot be built here.
    """
    program = _built()
    port = free_port()
    config = folder / "registry.yaml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{inmemory: {{}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: test}}\n{auth}"
    )
    process = subprocess.Popen(  # noqa: S603  # ours
        [program, "serve", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
    )
    try:
        wait_for(port, process)
        yield OciRegistry(host=f"127.0.0.1:{port}", program=program, pid=process.pid)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _built() -> Path:
    """The program, built once for each version of its sources into the user's cache."""
    sources = sorted(_SOURCE.iterdir())
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache / "headrace-tests" / "go" / f"oci-registry-{version}"
    if built.exists():
        return built
    go = shutil.which("go")
    if go is None:
        raise NoRegistryError("no OCI registry here, and no Go to build it with")
    built.parent.mkdir(parents=True, exist_ok=True)
    temporary = built.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
    done = subprocess.run(  # noqa: S603  # Go
        [go, "build", "-mod=readonly", "-o", temporary, "."],
        cwd=_SOURCE,
        capture_output=True,
        text=True,
        check=False,
        timeout=_BUILT_WITHIN_S,
    )
    if done.returncode:
        raise NoRegistryError(f"the OCI registry cannot be built: {done.stderr[-500:]}")
    temporary.replace(built)
    return built
