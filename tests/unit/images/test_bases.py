"""Base images of the container images are pinned by digest."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from scripts.images.requirements import ROOT

DOCKERFILE: Final = Path(ROOT, "deploy/images/Dockerfile")
PINNED: Final = re.compile(r"[a-z0-9./-]+:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}")
DIGEST: Final = f"python@sha256:{'a' * 64}"


def _arguments(text: str) -> dict[str, str]:
    return dict(re.findall(r"^ARG ([A-Z_]*BASE)=(.*)$", text, re.MULTILINE))


def test_every_stage_is_from_a_digest_or_another_stage() -> None:
    text = DOCKERFILE.read_text()
    arguments = _arguments(text)
    stages = {"scratch", *re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)}
    images = set(re.findall(r"^FROM (?:--\S+ )*(\S+)", text, re.MULTILINE)) - stages

    assert images == {"${BASE}", "${BUILD_BASE}", "${COMPILE_BASE}"}
    assert arguments.pop("BUILD_BASE") == "${BASE}"
    assert set(arguments) == {"BASE", "COMPILE_BASE"}
    assert all(PINNED.fullmatch(image) for image in arguments.values())


def _run(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], **settings}
    command = [str(Path(ROOT, "scripts", script)), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  # ours


def _refusal(**settings: str) -> str:
    """What the build says before it reaches for Docker; empty if it gets there."""
    done = _run("images.sh", "replica", DOCKER_HOST="unix:///nobody", **settings)
    assert done.returncode != 0
    return "" if re.search("there is no docker|no Docker daemon", done.stderr) else done.stderr


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"BASE": "python:3.12-slim"}, "BASE is the tag python:3.12-slim"),
        ({"BASE": "python@sha256:aaaa"}, "BASE is the tag"),
        ({"BASE": DIGEST, "BUILD_BASE": "python:3.12"}, "BUILD_BASE is the tag"),
        ({"BASE": DIGEST, "COMPILE_BASE": "python:3.12"}, "COMPILE_BASE is the tag"),
        ({"COMPILE_BASE": "python:3.12"}, "COMPILE_BASE is the tag"),
        ({"BASE": DIGEST}, "BASE needs COMPILE_BASE"),
    ],
)
def test_a_base_by_tag_is_refused(settings: dict[str, str], text: str) -> None:
    assert text in _refusal(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"BASE": "debian"},
        {"BASE": "python:3.12-slim", "UNPINNED": "1"},
        {"BASE": DIGEST, "COMPILE_BASE": DIGEST},
    ],
)
def test_a_base_by_digest_is_taken(settings: dict[str, str]) -> None:
    assert _refusal(**settings) == ""


def test_digests_are_renewed_from_the_registry(tmp_path: Path) -> None:
    file = Path(shutil.copy(DOCKERFILE, tmp_path))
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho sha256:{'b' * 64}\n")
    docker.chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DOCKERFILE": str(file)}

    renewed = _run("images.sh", "--pin", **settings)
    after = _arguments(file.read_text())
    docker.write_text("#!/bin/sh\necho latest\n")
    refused = _run("images.sh", "--pin", **settings)

    assert renewed.returncode == 0, renewed.stderr
    assert refused.returncode != 0
    assert after == _arguments(file.read_text())
    before = _arguments(DOCKERFILE.read_text())
    for name in ("BASE", "COMPILE_BASE"):
        assert after[name] == f"{before[name].partition('@')[0]}@sha256:{'b' * 64}"
    assert after["BUILD_BASE"] == "${BASE}"
