import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.gateway import UnsafeDirectoryError, make_private, runtime_dir

PRIVATE = 0o2750 if os.geteuid() == 0 else 0o700
"""Root lets the group of its Envoy in, which no user is in."""


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def short() -> Iterator[Path]:
    """Unlike pytest's directories, one with room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


def test_a_short_home_keeps_its_sockets_itself(short: Path) -> None:
    home = Path(os.path.relpath(short / "h"))

    assert runtime_dir(home) == home.resolve() / "run"
    assert _mode(home / "run") == PRIVATE


def test_a_long_home_gets_a_short_private_directory_always_the_same(
    short: Path, tmp_path: Path
) -> None:
    home = tmp_path / ("h" * 100)
    session = short / "session"
    session.mkdir()
    environ = {"XDG_RUNTIME_DIR": str(session)}

    first = runtime_dir(home, environ=environ)

    assert first.parent == session / "headrace"
    assert _mode(first) == _mode(first.parent) == PRIVATE
    assert runtime_dir(home, environ=environ) == first
    assert runtime_dir(tmp_path / ("i" * 100), environ=environ) != first


def test_without_a_session_directory_it_stands_under_tmp_by_user(tmp_path: Path) -> None:
    found = runtime_dir(tmp_path / ("h" * 100), environ={"XDG_RUNTIME_DIR": "not/absolute"})

    try:
        assert found.parent == Path(f"/tmp/headrace-{os.getuid()}")  # noqa: S108  # what we test
        assert _mode(found) == PRIVATE
    finally:
        found.rmdir()


def test_a_directory_open_to_others_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o755)

    assert _mode(make_private(path)) == PRIVATE


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    with pytest.raises(UnsafeDirectoryError, match="not a directory"):
        make_private(tmp_path / "link")


def test_a_dangling_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    with pytest.raises(UnsafeDirectoryError, match="not a directory"):
        make_private(tmp_path / "link")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)

    with pytest.raises(UnsafeDirectoryError, match="user 12345 owns it"):
        make_private(path)
