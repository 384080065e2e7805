"""What somebody sees while a search goes on, where it is no terminal."""

import pytest

from headrace.cli.optimize import SearchNotes, lines_of, search_progress
from headrace.optimize.search.journal import Begun, Event, SearchState
from headrace.optimize.search.plan import StepKind
from tests.unit.optimize.search.made import SCORED, failed, judged, screened


def told(*events: Event) -> list[str]:
    given_up = SearchNotes()
    found = [line for event in events for line in lines_of(event, given_up)]
    return [line.strip() for line in [*found, given_up.flush()] if line]


def begun(name: str) -> Event:
    return Begun(at_s=1.0, step=StepKind.BUILD, name=name)


def test_those_that_are_given_up_for_one_reason_share_a_line() -> None:
    events = [failed("fp16", "no GPU"), begun("int8"), failed("int8", "no GPU")]

    assert told(*events) == ["fp16, int8: skipped: no GPU"]


def test_another_reason_and_another_result_have_lines_of_their_own() -> None:
    events = [failed("a", "no GPU"), failed("b", "no time"), SCORED, failed("c", "no time")]

    assert told(*events, judged("d", passes=True)) == [
        "a: skipped: no GPU",
        "b: skipped: no time",
        "c: skipped: no time",
        "d: good: no significant loss",
    ]


def test_one_that_was_screened_is_neither_good_nor_rejected_yet() -> None:
    assert told(screened("a")) == ["a: so far: on the first 512 of 5,000"]


def test_the_last_ones_are_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with search_progress("model", 10.0) as on_event:
        on_event(failed("a", "no GPU"), SearchState())
        before = capsys.readouterr().err

    assert not before
    assert "a: skipped: no GPU" in capsys.readouterr().err
