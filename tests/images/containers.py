"""Docker, and containers that are run as a strict cluster would run them."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
START_DOCKER: Final = ROOT / "scripts" / "start_docker.sh"
WITHIN_S: Final = 60.0
BUILD_WITHIN_S: Final = 1800.0

STRICT: Final = (
    "--read-only",
    *("--tmpfs", "/tmp"),  # noqa: S108  # inside the container
    *("--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)
"""As `restricted` pods are run: nothing can be written but /tmp, nothing can be gained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Docker:
    """A daemon, by the URL of its socket; empty for the one that the environment names."""

    url: str = ""

    def __call__(self, *arguments: str | Path, within_s: float = WITHIN_S) -> str:
        """What a command prints; fails the test with all of it where the command fails."""
        done = self.run(*arguments, within_s=within_s)
        assert done.returncode == 0, f"docker {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def run(
        self, *arguments: str | Path, within_s: float = WITHIN_S
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
            env=self.environ,
        )

    @property
    def environ(self) -> dict[str, str]:
        named = {"DOCKER_HOST": self.url} if self.url else {}
        return {**os.environ, **named}

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("inspect", name))
        return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One that was started, and maybe ended."""

    docker: Docker
    name: str

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.docker.inspect(self.name)["State"]
        return state

    def logs(self) -> str:
        done = self.docker.run("logs", self.name)
        return done.stdout + done.stderr

    def shell(self, script: str) -> str:
        """What a script prints inside."""
        return self.docker("exec", self.name, "sh", "-c", script)

    def wait_for_health(self, wanted: str) -> None:
        until = time.monotonic() + WITHIN_S
        while (state := self.state)["Health"]["Status"] != wanted:
            assert state["Running"], self.logs()
            assert time.monotonic() < until, f"{state['Health']}\n{self.logs()}"
            time.sleep(0.2)

    def wait_for_log(self, line: str) -> None:
        until = time.monotonic() + WITHIN_S
        while line not in (text := self.logs()):
            assert self.state["Running"], text
            assert time.monotonic() < until, f"no '{line}' in: {text}"
            time.sleep(0.1)

    def stop(self, *, grace_s: int = 30) -> float:
        """Ask it to end; how long that took, in seconds."""
        began = time.monotonic()
        self.docker("stop", "--time", str(grace_s), self.name)
        return time.monotonic() - began


def build_images(docker: Docker, sboms: Path, *names: str, **settings: str) -> dict[str, str]:
    """Names of the images, by what they are for.

    `sboms`: where the build puts bills of materials. `settings`: of `scripts/images.sh`, before
    those of the environment. With `REUSE=1` there, images of an earlier run are taken as they are,
    without a bill: for whoever works at a test.
    """
    environ = {
        "BASE": "debian",
        "NETWORK": "host",
        "PROGRESS": "plain",
        "PREFIX": "headrace-test",
        "TAG": "test",
        **docker.environ,
        "PYTHON": sys.executable,
        "SBOM_DIR": str(sboms),
        **settings,
    }
    built = {name: f"{environ['PREFIX']}/{name}:{environ['TAG']}" for name in names}
    if os.environ.get("REUSE") and docker.run("image", "inspect", *built.values()).returncode == 0:
        return built
    log = sboms / f"{names[0]}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [ROOT / "scripts" / "images.sh", *names],
            stdout=output,
            stderr=output,
            env=environ,
            timeout=BUILD_WITHIN_S,
            check=False,
        )
    text = log.read_text(errors="replace")
    assert done.returncode == 0, text[-4000:]
    print(text[text.rindex("\nimage ") :])
    return built


@contextmanager
def running(
    docker: Docker,
    image: str,
    *command: str,
    environ: Mapping[str, str] | None = None,
    mounts: Sequence[str] = (),
    network: str = "host",
    options: Sequence[str] = STRICT,
) -> Iterator[Container]:
    """A container under strict options; on the host's network, since a daemon may have no other."""
    arguments = ["--detach", "--network", network, "--health-interval", "500ms", *options]
    for key, value in (environ or {}).items():
        arguments += ["--env", f"{key}={value}"]
    for mount in mounts:
        arguments += ["--volume", mount]
    name = docker("run", *arguments, image, *command)
    try:
        yield Container(docker=docker, name=name)
    finally:
        docker("rm", "--force", "--volumes", name)


def why_no_engine() -> str:
    """Why containers cannot be run here; empty if they can."""
    if shutil.which("docker") is None:
        return "there is no docker; Debian has it as docker-cli, with docker.io and docker-buildx"
    if Docker().run("version").returncode == 0:
        return ""
    if shutil.which("dockerd") is None:
        return "no Docker daemon answers, and there is no dockerd to start one"
    if os.geteuid() != 0:
        return "no Docker daemon answers, and only root can start one"
    return ""


def start_daemon(folder: Path) -> Docker:
    """A daemon of our own, with all that it has in a folder. Ended by `stop_daemon`."""
    done = subprocess.run(
        [START_DOCKER, folder], stdout=subprocess.PIPE, text=True, timeout=180, check=True
    )
    return Docker(url=done.stdout.strip())


def stop_daemon(folder: Path) -> None:
    subprocess.run([START_DOCKER, "--stop", folder], timeout=120, check=True)
