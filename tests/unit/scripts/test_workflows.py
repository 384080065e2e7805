"""Workflows of the public CI: pinned actions, least permissions, targets that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from tests.kube import ROOT, needs, run_program

FOLDER: Final = ROOT / ".github" / "workflows"
FILES: Final = sorted(FOLDER.glob("*.yml"))
LOCAL: Final = "uses: ./"
PINNED: Final = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
WRITES: Final = {
    ("release.yml", "pypi"): {"id-token", "attestations"},
    ("release.yml", "images"): {"packages", "id-token"},
    ("release.yml", "release"): {"contents"},
}
"""Rights beyond reading that a job has."""


def _jobs() -> Iterator[tuple[Path, str, dict[str, Any]]]:
    for path in FILES:
        workflow = YAML(typ="safe").load(path)
        assert workflow["permissions"] == {}, path
        for name, job in workflow["jobs"].items():
            yield path, name, job


def test_every_action_is_pinned_by_commit_with_its_version() -> None:
    lines = [line.strip(" -") for path in FILES for line in path.read_text().splitlines()]
    uses = [line for line in lines if line.startswith("uses:") and not line.startswith(LOCAL)]

    assert uses
    assert [line for line in uses if PINNED.fullmatch(line) is None] == []
    actions = dict(line.removeprefix("uses: ").split("@", 1) for line in uses)
    assert {f"uses: {name}@{commit}" for name, commit in actions.items()} == set(uses)


def test_only_the_jobs_that_publish_may_write() -> None:
    writes = {
        (path.name, name): {
            right for right, level in job["permissions"].items() if level == "write"
        }
        for path, name, job in _jobs()
    }

    assert {job: rights for job, rights in writes.items() if rights} == WRITES


def test_every_target_and_script_of_a_workflow_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(path.read_text() for path in FILES)

    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    assert all((ROOT / path).exists() for path in re.findall(r"-r (\S+\.txt)", text))


@pytest.mark.kube
@needs("zizmor")
def test_zizmor_finds_nothing() -> None:
    status, output, _ = run_program("zizmor", "--offline", "--no-progress", FOLDER)

    assert status == 0, output


@pytest.mark.kube
@needs("actionlint")
def test_actionlint_finds_nothing() -> None:
    status, output, _ = run_program("actionlint", *FILES)

    assert status == 0, output
