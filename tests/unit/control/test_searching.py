"""A search that goes on as another user: what the first one left is opened, and nothing else."""

from pathlib import Path

from headrace.control.sandboxed.search import _let_anybody_write


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_another_user_left_is_opened_and_links_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    secret, twice = outside / "secret", outside / "twice"
    for file in (secret, twice):
        file.write_text("theirs")
        file.chmod(0o600)
    own = tmp_path / "own"
    inner = own / "candidates"
    inner.mkdir(parents=True)
    inner.chmod(0o700)
    journal = own / "journal.jsonl"
    journal.write_text("{}")
    journal.chmod(0o600)
    (own / "link").symlink_to(secret)
    (own / "folder").symlink_to(outside)
    (inner / "twice").hardlink_to(twice)

    _let_anybody_write(own)

    assert (mode(journal), mode(inner)) == (0o666, 0o777)
    assert [mode(path) for path in (secret, twice, outside)] == [0o600, 0o600, 0o700]
