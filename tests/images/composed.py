"""Projects of Docker Compose: all containers of `deploy/compose` under a name of a test's own."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.images.containers import ROOT, Docker
from tests.ports import free_port

COMPOSE: Final = ROOT / "deploy" / "compose"
WITHIN_S: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One project of Compose: where it listens, and as what its containers are known."""

    docker: Docker
    name: str
    environ: Mapping[str, str]

    def __call__(self, *arguments: str, given: str = "") -> str:
        """What a command prints, with `given` as its input; fails the test where it fails."""
        done = self._run(*arguments, given=given)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        return self._run("--profile", "*", "logs", "--no-color").stdout[-4000:]

    def _run(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", "--project-name", self.name, *arguments],
            cwd=COMPOSE,
            input=given,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
            env={**self.docker.environ, **self.environ},
        )


@contextmanager
def composed(docker: Docker, image: str, models: Path, **environ: str) -> Iterator[Project]:
    """A project that serves what is in a folder, on free ports; removed at the end."""
    if docker.run("compose", "version").returncode != 0:
        pytest.skip("there is no Docker Compose; Debian has it as docker-compose")
    for path in (models, models.parent, models.parent.parent):
        path.chmod(0o755)
    name, _, tag = image.rpartition(":")
    ports = {f"HEADRACE_{port}_PORT": str(free_port()) for port in ("HTTP", "GRPC", "ADMIN")}
    told = {"HEADRACE_IMAGE": name, "HEADRACE_VERSION": tag, "HEADRACE_MODELS": str(models)}
    project = Project(
        docker=docker,
        name=f"headrace-test-{os.getpid()}-{models.name}",
        environ={**told, **ports, **environ},
    )
    try:
        yield project
    finally:
        project("--profile", "*", "down", "--volumes", "--timeout", "20")
