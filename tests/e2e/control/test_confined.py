"""Where a program runs once: who may read what it is given, and what is said where it is root."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.control.confined import Bounds, Confined
from headrace.control.sandbox import FIRST_UID, Abilities, Occasion, Probe, Sandbox

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or bool(Probe().result().user), reason="cannot become another user"
)
BOUNDS = Bounds(limit_s=30.0, too_long="it took too long", memory_bytes=1 << 40)
SEARCHER = FIRST_UID + Occasion.SEARCH
PROGRAM = """
import os
import sys
from pathlib import Path

print(os.getuid(), Path(sys.argv[1]).read_text(), Path("request.json").exists())
"""


class Nothing(msgspec.Struct):
    """A request that asks for nothing."""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


def place(home: Path, *, has_namespaces: bool) -> Confined:
    """A search's, in a home that is closed to others."""
    able = Abilities(files="not here", network="not here", user="")
    abilities = Probe().result if has_namespaces else lambda: able
    made = Confined(
        sandbox=Sandbox(hide=(home,), reports=home, abilities=abilities),
        folder=home / "optimize" / "key",
        occasion=Occasion.SEARCH,
    )
    made.own.mkdir(parents=True, mode=0o700)
    (made.own / "program.py").write_text(PROGRAM)
    (home / "data").write_text("secret")
    made.ask("request.json", Nothing())
    return made


def said(made: Confined) -> tuple[str, str]:
    """What it prints, and how it ended."""
    data = made.give(made.folder.parent.parent / "data", "data")
    with made.started("program", str(data), is_heard=True) as running:
        heard = b"".join(running.looks(BOUNDS))
    return heard.decode(), running.why


@needs_root
def test_with_namespaces_a_closed_home_is_no_obstacle(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if Probe().result().files:
        pytest.skip("no namespaces")

    assert said(place(home, has_namespaces=True)) == (f"{SEARCHER} secret True\n", "")
    assert not caplog.records


@needs_root
def test_without_namespaces_a_closed_home_makes_it_root_which_is_told_once(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = place(home, has_namespaces=False)

    with caplog.at_level(logging.WARNING):
        first = said(made)
        (made.given / "data" / "data").unlink()
        second = said(made)

    assert first == second == ("0 secret True\n", "")
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith(f"the search runs as root, for user {SEARCHER} may not read /")
    assert "run this as another user than root" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_that_can_be_nobody_else_is_told_why(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = place(home, has_namespaces=False)
    made.sandbox.abilities = lambda: Abilities(files="not here", user="not here either")

    with caplog.at_level(logging.WARNING):
        assert said(made) == ("0 secret True\n", "")

    (record,) = caplog.records
    why = "the search ran as root and saw all files, as not here: run this as another user"
    assert record.getMessage().startswith(why)


@needs_root
def test_what_it_is_given_is_closed_to_all_but_its_user(home: Path) -> None:
    made = place(home, has_namespaces=False)
    said(made)

    found = made.folder.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o710, 0, SEARCHER)


def test_a_request_replaces_the_link_that_a_program_left(home: Path) -> None:
    made = place(home, has_namespaces=False)
    (made.own / "request.json").unlink()
    (made.own / "request.json").symlink_to(home / "data")

    made.ask("request.json", Nothing())

    assert (home / "data").read_text() == "secret"
    assert (made.own / "request.json").read_text() == "{}"
