"""`headrace audit` and `headrace audit models` as a shell runs them."""

import json
import os
import runpy
import shutil
from pathlib import Path

import pytest

from headrace.advise.audit.checks import CHECKS
from tests.unit.advise import assets
from tests.unit.cli.conftest import Command

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "hardened"
OPEN = "endpoints:\n  - name: a\n    model: a:1\n    access: public\n"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "headrace.yaml"
    file.write_text(OPEN)
    file.chmod(0o644)
    return file


def test_a_spec_is_audited_without_anything_running(headrace: Command, spec: Path) -> None:
    done = headrace("audit", "-f", spec)

    assert done.status == 0
    assert f"{spec}:4 endpoints[0].access" in done.out
    assert "MEDIUM   HR002" in done.out
    assert "could not run" in done.out


@pytest.mark.parametrize(
    ("fail_on", "status"), [("low", 3), ("medium", 3), ("high", 0), ("critical", 0)]
)
def test_it_fails_from_the_severity_that_was_asked_for(
    fail_on: str, status: int, headrace: Command, spec: Path
) -> None:
    assert headrace("audit", "-f", spec, "--fail-on", fail_on).status == status


def test_the_hardened_example_does_not_fail_even_for_low_findings(
    headrace: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "x", ignore=shutil.ignore_patterns("pki"))
    (folder / "headrace.yaml").chmod(0o644)
    runpy.run_path(str(folder / "make.py"))["main"](folder)

    done = headrace("audit", "-f", folder / "headrace.yaml", "--fail-on", "low", "--json")

    assert done.status == 0
    # `make.py` says what it wrote before the audit does.
    assert json.loads(done.out[done.out.index("{") :])["findings"] == []


def test_every_form_is_written_where_it_was_asked_for(
    headrace: Command, spec: Path, tmp_path: Path
) -> None:
    for form, beginning in {"json": "{", "sarif": "{", "html": "<!doctype html>"}.items():
        file = tmp_path / f"audit.{form}"

        done = headrace("audit", "-f", spec, "--format", form, "-o", file)

        assert done.out == ""
        assert f"see {file}" in done.err
        assert file.read_text().startswith(beginning)


def test_json_stands_alone_on_standard_output(headrace: Command, spec: Path) -> None:
    short = headrace("audit", "-f", spec, "--json")
    long = headrace("audit", "-f", spec, "--format", "json")
    wrong = headrace("audit", "-f", spec, "--format", "html", "--json")

    assert json.loads(short.out)["findings"] == json.loads(long.out)["findings"]
    assert short.err == ""
    assert wrong.status == 2
    assert "exclude each other" in wrong.err


def test_the_list_of_checks_is_published(headrace: Command) -> None:
    text = headrace("audit", "--list")
    document = json.loads(headrace("audit", "--list", "--json").out)
    wrong = headrace("audit", "--list", "--format", "html")

    assert len(text.out.splitlines()) == len(CHECKS) == len(document["checks"])
    assert document["checks"][0]["id"] == "HR001"
    assert set(document["checks"][0]) == {"id", "title", "severity", "why", "fix", "needs"}
    assert wrong.status == 2


def test_a_spec_with_mistakes_is_no_audit(headrace: Command, spec: Path) -> None:
    spec.write_text("endpoints: [{nam: a}]\n")

    done = headrace("audit", "-f", spec)

    assert done.status == 1
    assert "is not a setting" in done.err


def test_without_a_spec_something_has_to_run(headrace: Command) -> None:
    done = headrace("audit")

    assert done.status == 3
    assert "no system runs in" in done.err


def test_advisories_are_compared_with_what_is_installed(
    headrace: Command, spec: Path, tmp_path: Path
) -> None:
    affected = {
        "package": {"ecosystem": "PyPI", "name": "httptools"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
    }
    file = tmp_path / "osv.json"
    file.write_text(json.dumps({"id": "GHSA-1", "affected": [affected]}))

    done = headrace("audit", "-f", spec, "--advisories", file, "--json")

    found = {one["id"]: one for one in json.loads(done.out)["findings"]}
    assert found["HR602"]["where"] == "httptools"
    assert "GHSA-1" in found["HR602"]["evidence"]


@pytest.mark.slow  # loads ONNX Runtime
def test_a_folder_of_models_is_shown_as_a_table_and_as_json(
    headrace: Command, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "mlp.onnx").write_bytes(assets.onnx())
    (folder / "evil\x1b.pkl").write_bytes(assets.evil_pickle())
    (folder / "new.onnx").write_bytes(assets.onnx_of_opset(99))
    (folder / os.fsdecode(b"\xff.onnx")).write_bytes(assets.onnx(seed=9))
    headrace("models", "push", "fraud", folder / "mlp.onnx", "--home", home)

    table = headrace("audit", "models", folder)
    document = json.loads(headrace("audit", "models", folder, "--json").out)

    assert table.status == 0
    lines = table.out.splitlines()
    assert lines[0].split() == [
        *("path", "format", "size", "opset", "precision", "runtime", "inputs", "problems")
    ]
    assert "evil\\x1b.pkl" in table.out
    assert "posix.system" in table.err
    assert "\x1b" not in table.out + table.err
    found = {one["path"]: one for one in document["assets"]}
    assert "?.onnx" in found
    assert found["mlp.onnx"]["reference"] == "fraud:1"
    assert found["new.onnx"]["problems"][0]["code"] == "opset-too-new"


@pytest.mark.slow  # loads ONNX Runtime
def test_a_folder_without_models_says_so(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    done = headrace("audit", "models", tmp_path / "empty")

    assert (done.status, done.out) == (0, "")
    assert "no model in" in done.err
