"""What is in force in a home is what was applied last, whole."""

from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError
from headrace.features import (
    applied_definitions,
    apply_definitions,
    default_online_store,
    read_definitions,
)
from tests.unit.features.test_spec import FULL


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "project" / "features.yaml"
    made.parent.mkdir()
    made.write_text(FULL)
    return made


def test_what_is_applied_is_what_the_file_says(path: Path, tmp_path: Path) -> None:
    apply_definitions(path, tmp_path / "home")

    assert applied_definitions(tmp_path / "home") == read_definitions(path)


def test_a_damaged_copy_is_told_and_can_be_mended(path: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    apply_definitions(path, home)
    copy = home / "features" / "definitions.json"
    copy.write_bytes(copy.read_bytes()[:100])

    with pytest.raises(FailedPreconditionError, match="damaged; run `headrace features apply`"):
        applied_definitions(home)
    assert len(apply_definitions(path, home)) == 4
    assert applied_definitions(home) == read_definitions(path)


def test_values_stand_in_a_folder_of_their_own_unless_they_stood_elsewhere_before(
    tmp_path: Path,
) -> None:
    before = default_online_store(tmp_path)
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "online.db").touch()

    assert before == f"sqlite:///{tmp_path}/features/online/online.db"
    assert default_online_store(tmp_path) == f"sqlite:///{tmp_path}/features/online.db"


def test_a_home_that_cannot_be_written_is_told(path: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")

    with pytest.raises(FailedPreconditionError, match="cannot write"):
        apply_definitions(path, tmp_path / "home")


def test_a_home_that_is_made_is_private(path: Path, tmp_path: Path) -> None:
    apply_definitions(path, tmp_path / "above" / "home")

    home = tmp_path / "above" / "home"
    folders = (home, *(one for one in home.rglob("*") if one.is_dir()))
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


def test_nothing_is_left_behind(path: Path, tmp_path: Path) -> None:
    apply_definitions(path, tmp_path / "home")

    left, online = sorted((tmp_path / "home" / "features").iterdir())
    assert left.name == "definitions.json"
    assert list(online.iterdir()) == []
