"""Search journal, and what a million requests cost."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.optimize.search.journal import (
    FILE_NAME,
    JournalReader,
    ProgressNote,
    SearchJournal,
    cost_note,
    cost_per_million,
    decode,
    read_journal,
)
from headrace.optimize.search.process import SearchRequest, SearchTarget
from tests.unit.optimize.search.made import BASE, SCORED, built, judged, started, timed


def test_what_was_written_is_read(tmp_path: Path) -> None:
    events = [started("a"), *built(BASE), SCORED, *timed("a", ("a", 0.5)), judged("a", passes=True)]
    journal = SearchJournal(tmp_path)
    for event in events:
        journal.write(event)
    journal.close()

    assert read_journal(tmp_path) == events


def test_a_verdict_of_an_older_version_was_after_all_examples() -> None:
    line = msgspec.json.encode(judged("a", passes=True))
    older = line.replace(b',"is_part":false', b"")

    assert older != line
    assert decode(older) == judged("a", passes=True)


def test_a_line_that_was_torn_costs_only_itself(tmp_path: Path) -> None:
    journal = SearchJournal(tmp_path)
    journal.write(SCORED)
    journal.close()
    with (tmp_path / FILE_NAME).open("ab") as stream:
        stream.write(b'{"type":"said","te')
    journal = SearchJournal(tmp_path)
    journal.write(ProgressNote(at_s=1.0, text="on"))
    journal.close()

    assert read_journal(tmp_path) == [SCORED, ProgressNote(at_s=1.0, text="on")]


def test_a_reader_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path)
    assert list(reader.read()) == []
    file = tmp_path / FILE_NAME
    file.write_bytes(b'{"type":"said","at_s":1.0,')
    assert list(reader.read()) == []
    with file.open("ab") as stream:
        stream.write(b'"text":"on"}\n')

    assert list(reader.read()) == [ProgressNote(at_s=1.0, text="on")]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b'{"type":"said","at_s":1.0,"text":"secret"}\n')
    (tmp_path / FILE_NAME).symlink_to(secret)

    assert read_journal(tmp_path) == []


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)

    assert read_journal(tmp_path) == []


@pytest.mark.parametrize("line", [b"", b"null", b"[]", b'{"type":"unheard-of"}', b"\xff\xfe"])
def test_a_line_that_is_no_event_is_passed_over(line: bytes) -> None:
    assert decode(line) is None


@given(line=st.binary(max_size=200))
def test_no_bytes_break_the_reader(line: bytes) -> None:
    decode(line)


@pytest.mark.parametrize("spoil", ["link", "pipe", "directory"])
def test_what_candidates_put_in_its_place_is_not_written_to(tmp_path: Path, spoil: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"half a line")
    file = tmp_path / FILE_NAME
    match spoil:
        case "link":
            file.symlink_to(secret)
        case "pipe":
            os.mkfifo(file)
        case _:
            file.mkdir()

    with pytest.raises(OSError):  # noqa: PT011  # each kind has its own
        SearchJournal(tmp_path)
    assert secret.read_bytes() == b"half a line"


STARTED = started()
ONE = SearchRequest(source="m")
ALL = SearchRequest(source="m", target=SearchTarget.COST)


def test_all_cores_cost_the_whole_price() -> None:
    assert cost_per_million(3.6, 1000.0, STARTED, ALL) == pytest.approx(1.0)


def test_a_run_at_a_time_costs_the_cores_that_it_takes() -> None:
    two_threads = SearchRequest(source="m", threads=2)
    more_than_there_are = SearchRequest(source="m", threads=8)

    assert cost_per_million(3.6, 1000.0, STARTED, ONE) == pytest.approx(0.5)
    assert cost_per_million(3.6, 1000.0, STARTED, two_threads) == pytest.approx(1.0)
    assert cost_per_million(3.6, 1000.0, STARTED, more_than_there_are) == pytest.approx(1.0)


def test_without_a_price_nothing_is_known() -> None:
    assert cost_per_million(None, 1000.0, STARTED, ALL) is None
    assert cost_per_million(3.6, 0.0, STARTED, ALL) is None


def test_what_the_cost_is_of_is_told() -> None:
    assert "3.6 per hour for 2 cores, all of which" in cost_note(3.6, STARTED, ALL)
    assert "of which one run takes 1" in cost_note(3.6, STARTED, ONE)
    one_core = replace(STARTED, cores=1)
    assert "which one run at a time takes" in cost_note(3.6, one_core, ONE)


def test_without_a_price_only_who_asked_for_costs_is_told_why_there_are_none() -> None:
    assert "--cost-per-hour" in cost_note(None, STARTED, ALL)
    assert not cost_note(None, STARTED, ONE)
