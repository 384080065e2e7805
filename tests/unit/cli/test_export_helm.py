"""`headrace export helm`: where the chart goes, and what is refused before anything is written."""

import hashlib
import json
from pathlib import Path

import pytest

from headrace.cli import main

SPEC = """
version: 1
endpoints:
  - {name: fraud, model: "fraud:3", access: public}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "headrace.yaml"
    file.write_text(SPEC)
    return file


@pytest.mark.parametrize("flags", [["-f"], ["--file"], []])
def test_the_spec_is_named_as_for_the_other_exports(
    tmp_path: Path, spec: Path, flags: list[str]
) -> None:
    out = tmp_path / "chart"

    assert main(["export", "helm", *flags, str(spec), "-o", str(out)]) == 0

    assert "fraud:3" in (out / "values.yaml").read_text()


def test_a_spec_that_is_named_twice_is_refused(
    tmp_path: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(spec), "-f", str(spec), "-o", str(tmp_path / "chart")]

    assert main(["export", "helm", *arguments]) == 2

    assert "--file: pass the spec file only once" in capsys.readouterr().err


@pytest.mark.parametrize(
    "chart", ["", "name: another", "- headrace", "name: [", "name: headrace-of-others"]
)
def test_files_of_somebody_else_are_not_written_over(
    tmp_path: Path, spec: Path, chart: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("mine")
    if chart:
        (tmp_path / "Chart.yaml").write_text(chart)

    assert main(["export", "helm", "-f", str(spec), "-o", str(tmp_path)]) == 1

    assert "contains files and is not Headrace's chart" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "templates").exists()


def test_a_chart_is_written_again_where_it_was(tmp_path: Path, spec: Path) -> None:
    out = tmp_path / "chart"
    arguments = ["export", "helm", "-f", str(spec), "-o", str(out)]
    assert main(arguments) == 0
    spec.write_text(SPEC.replace("fraud:3", "fraud:4"))

    assert main(arguments) == 0

    assert "fraud:4" in (out / "values.yaml").read_text()


def test_an_unknown_mode_is_a_wrong_command_line(
    tmp_path: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-f", str(spec), "-o", str(tmp_path / "chart"), "--mode", "both"]

    assert main(["export", "helm", *arguments]) == 2

    assert "'--mode': 'both' is not one of 'driver', 'static'" in capsys.readouterr().err


def test_a_template_that_a_newer_chart_has_no_more_is_gone_after_the_next_export(
    tmp_path: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chart"
    arguments = ["export", "helm", "-f", str(spec), "-o", str(out)]
    assert main(arguments) == 0
    old = out / "templates" / "older.yaml"
    old.write_text("kind: Older")
    record = out / ".headrace-export.json"
    told = json.loads(record.read_text())
    told["files"]["templates/older.yaml"] = hashlib.sha256(old.read_bytes()).hexdigest()
    record.write_text(json.dumps(told))
    (out / "templates" / "mine.yaml").write_text("kind: Mine")

    assert main(arguments) == 0

    assert not old.exists()
    assert (out / "templates" / "mine.yaml").read_text() == "kind: Mine"
    assert "templates/older.yaml" in capsys.readouterr().err
