"""The exported files are taken by each Prometheus that people run: 2.42, 2.55 and 3."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from headrace.cli import main
from headrace.monitor.prometheus import ALERTING, RECORDING, SCRAPE
from tests.e2e.alerts.rule_tests import write_rule_tests
from tests.e2e.alerts.test_exports import SPEC
from tests.e2e.debian import NoToolError, find_tool

pytestmark = [pytest.mark.e2e, pytest.mark.long]

DEBIAN: Final = "debian"
PROMTOOL: Final = "github.com/prometheus/prometheus/cmd/promtool"
VERSIONS: Final = (DEBIAN, "v0.55.1", "v0.307.3")
"""Debian 12 has 2.42. Go calls 2.55.1 v0.55.1, and 3.7.3 v0.307.3."""
BUILT_WITHIN_S: Final = 1800.0


def promtool(version: str) -> Path:
    """The program: Debian's, or one that Go builds once, into the user's cache."""
    if version == DEBIAN:
        return find_tool("promtool")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache / "headrace-tests" / "go" / f"promtool-{version}"
    go = shutil.which("go")
    if built.exists():
        return built
    if go is None:
        raise NoToolError(f"no promtool {version} here, and no Go to build it with")
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as directory:
        # As a dependency: `go install` refuses a program whose module replaces others.
        for arguments in (
            ("mod", "init", "promtool"),
            ("get", f"{PROMTOOL}@{version}"),
            ("build", "-o", "promtool", PROMTOOL),
        ):
            done = subprocess.run(
                [go, *arguments],
                cwd=directory,
                capture_output=True,
                text=True,
                check=False,
                timeout=BUILT_WITHIN_S,
            )
            if done.returncode:
                raise NoToolError(f"promtool {version} cannot be built: {done.stderr[-500:]}")
        (Path(directory) / "promtool").replace(built)
    return built


@pytest.mark.parametrize("version", VERSIONS)
def test_the_exported_files_load_and_their_tests_pass(version: str, tmp_path: Path) -> None:
    try:
        program = promtool(version)
    except NoToolError as error:
        pytest.skip(str(error))
    spec = tmp_path / "headrace.yaml"
    spec.write_text(SPEC)
    assert main(["export", "prometheus", "-o", str(tmp_path), "-f", str(spec)]) == 0

    def run(*arguments: str | Path) -> tuple[int, str]:
        command = [str(program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        return done.returncode, done.stdout + done.stderr

    loaded = run("check", "config", tmp_path / SCRAPE)
    rules = run("check", "rules", "--lint-fatal", tmp_path / RECORDING, tmp_path / ALERTING)
    tested = run("test", "rules", *write_rule_tests(tmp_path, SPEC))
    (tmp_path / "wrong.yml").write_text("scrape_configs: [{job_name: a, no_such_field: 1}]")
    wrong = run("check", "config", tmp_path / "wrong.yml")

    assert loaded[0] == 0, loaded[1]
    assert rules[0] == 0, rules[1]
    assert tested[0] == 0, tested[1]
    assert wrong[0] != 0
