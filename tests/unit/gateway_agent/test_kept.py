import gzip
import stat
from pathlib import Path

import msgspec
import pytest

from headrace.gateway_agent.applier import BundleStore, checked
from tests.unit.control.agents.test_messages import BUNDLE


def test_what_is_kept_comes_back_and_is_for_its_user_only(tmp_path: Path) -> None:
    kept = BundleStore(tmp_path / "bundle.json")

    kept.write(BUNDLE)

    assert kept.read() == BUNDLE
    assert checked(BUNDLE) == BUNDLE
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", [0, 1, 70, 500, -1])
def test_a_file_that_is_not_whole_is_nothing(tmp_path: Path, cut: int) -> None:
    kept = BundleStore(tmp_path / "bundle.json")
    kept.write(BUNDLE)
    kept.path.write_bytes(kept.path.read_bytes()[:cut])

    assert kept.read() is None


def test_a_changed_file_is_nothing(tmp_path: Path) -> None:
    kept = BundleStore(tmp_path / "bundle.json")
    kept.write(BUNDLE)
    kept.path.write_bytes(kept.path.read_bytes().replace(b'"weight":100', b'"weight":101'))

    assert kept.read() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        gzip.compress(b"{}", mtime=0),
        gzip.compress(msgspec.json.encode(BUNDLE), mtime=0)[:-9],
    ],
    ids=["empty", "text", "another", "cut"],
)
def test_a_copy_that_is_not_whole_is_nothing(tmp_path: Path, content: bytes) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(content)

    assert BundleStore(tmp_path / "bundle.json", copy).read_fallback() is None


def test_nothing_was_kept_yet(tmp_path: Path) -> None:
    assert BundleStore(tmp_path / "bundle.json").read() is None
    assert BundleStore(tmp_path / "bundle.json").read_fallback() is None
    assert BundleStore(tmp_path / "bundle.json", tmp_path / "no").read_fallback() is None
