"""Files that this process may not read are told before anything is loaded."""

import os
from pathlib import Path

import pytest

from headrace.core import UnsupportedModelError
from headrace.scoring.loading import check_readable


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a file and a directory in it."""
    (tmp_path / "m" / "variables").mkdir(parents=True)
    (tmp_path / "m" / "saved_model.pb").touch()
    return tmp_path / "m"


@pytest.mark.parametrize("forbidden", ["m", "m/saved_model.pb", "m/variables"])
def test_what_may_not_be_read_is_named_with_the_user(model: Path, forbidden: str) -> None:
    def allows(path: Path, bits: int) -> bool:
        assert bits & os.R_OK
        return path != model.parent / forbidden

    told = f"{forbidden}: user {os.getuid()}, which runs this"
    with pytest.raises(UnsupportedModelError, match=told):
        check_readable(model, allows)


def test_a_directory_has_to_be_entered_too(model: Path) -> None:
    def allows(path: Path, bits: int) -> bool:
        return not (path.is_dir() and bits & os.X_OK)

    with pytest.raises(UnsupportedModelError, match="chmod -R a"):
        check_readable(model, allows)


def test_what_may_be_read_is_and_what_is_not_there_is_for_others_to_tell(model: Path) -> None:
    check_readable(model)
    check_readable(model / "saved_model.pb")
    check_readable(model / "nowhere", lambda _path, _bits: False)
