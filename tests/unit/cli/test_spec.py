import json
from pathlib import Path

import pytest
import typer

from headrace.cli.spec import changes_text, not_ready_text
from headrace.cli.up_document import document_for
from headrace.core.spec import parse_spec
from tests.unit.cli.conftest import Command

SPEC = "version: 1\nendpoints: [{name: m, model: './m.onnx', replicas: 2}]\n"


def test_a_good_spec_is_counted(headrace: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(SPEC)

    outcome = headrace("check", file)

    assert outcome.status == 0
    assert outcome.err == f"{file}: no mistakes, 1 endpoint\n"


def test_every_mistake_is_told_with_its_line(headrace: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nendpoints:\n  - name: a b\n    model: m:1\n    replica: 2\n")

    outcome = headrace("check", file)

    assert outcome.status == 1
    assert "endpoints[0].name (line 3)" in outcome.err
    assert "did you mean 'replicas'?" in outcome.err


def test_a_spec_that_is_no_text_is_told(headrace: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe")

    assert "no UTF-8 text" in headrace("check", file).err


def test_the_schema_is_json(headrace: Command) -> None:
    assert json.loads(headrace("schema").out)["title"]


def test_changes_are_a_line_each() -> None:
    assert changes_text({"changes": ["a", "b"]}) == ["a", "b"]
    assert changes_text({"changes": []}) == ["nothing to change"]
    assert changes_text({"changes": ["a"], "warnings": ["b"]}) == ["a", "warning: b"]
    assert not_ready_text({"not_ready": {"m": "loading"}}) == ["not ready: m: loading"]
    assert not_ready_text({}) == []


def document(target: Path | None, home: Path, name: str | None = None) -> object:
    return document_for(target, name=name, replicas=None, home=home)


def test_a_model_file_is_an_endpoint_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "my model.onnx"
    file.touch()

    assert document_for(file, name=None, replicas=3, home=tmp_path) == {
        "version": 1,
        "endpoints": [{"name": "my-model", "model": str(file), "replicas": 3}],
    }
    assert document(file, tmp_path, name="x") == {
        "version": 1,
        "endpoints": [{"name": "x", "model": str(file)}],
    }


def test_a_spec_file_keeps_its_meaning(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(SPEC)
    expected = parse_spec(SPEC, base_dir=tmp_path)

    for target in (file, tmp_path):
        found = document(target, tmp_path)
        assert isinstance(found, dict)
        assert parse_spec(found) == expected


def test_a_directory_without_a_spec_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()

    assert document(folder, tmp_path) == {
        "version": 1,
        "endpoints": [{"name": "repository", "model": str(folder)}],
    }


def test_without_a_target_the_spec_here_comes_first_then_what_ran(
    tmp_path: Path, home: Path
) -> None:
    with pytest.raises(typer.BadParameter, match="nothing to serve"):
        document(None, home)
    home.mkdir()
    (home / "state.json").write_text("{}")
    assert document(None, home) is None
    (tmp_path / "headrace.yaml").write_text(SPEC)
    assert document(None, home) is not None


def test_flags_that_the_spec_answers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(SPEC)

    with pytest.raises(typer.BadParameter, match="a spec file says this itself"):
        document(file, tmp_path, name="x")
