"""A home is its user's alone, whoever made the directory, and however."""

import os
import stat
from pathlib import Path

import pytest

from headrace.control.base.home import Home
from headrace.control.local.sandbox import FIRST_UID, SandboxPurpose, user_of
from headrace.core import FailedPreconditionError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", ["", "registry", "state.db"])
def test_a_home_that_others_could_read_is_closed(tmp_path: Path, content: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    if content:
        (home / content).mkdir()

    assert mode(Home.at(home).root) == 0o700


def test_a_directory_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    home.chmod(0o755)

    with pytest.raises(FailedPreconditionError, match=r"holds other files: `chmod 700` it"):
        Home.at(home)
    assert mode(home) == 0o755
    assert [path.name for path in home.iterdir()] == ["photos"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_home_of_somebody_else_that_others_can_read_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    os.chown(home, 12345, 12345)

    with pytest.raises(FailedPreconditionError, match="another user owns it"):
        Home.at(home)
    assert mode(home) == 0o755


def test_no_replica_is_the_user_of_another_part() -> None:
    others = {user_of(occasion) for occasion in SandboxPurpose}
    replicas = {user_of(serial) for serial in range(2000)}

    assert len(others) == len(SandboxPurpose)
    assert not others & replicas
    assert min(replicas) == FIRST_UID
