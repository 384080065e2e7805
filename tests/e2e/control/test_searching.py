"""A candidate that spoils the process of a search is given up, and the search goes on."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.local.sandbox import KernelProbe, Sandbox
from headrace.control.sandboxed.search import SandboxedSearch, SearchArguments
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.optimize.search.journal import Event, RecipeEnded, SearchState, Wrote
from headrace.optimize.search.process import SearchRequest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROGRAM = """
import ctypes, os, sys, time
from pathlib import Path
from headrace.optimize.search.journal import Begun, RecipeEnded, SearchJournal, read_journal
from headrace.optimize.search.process import ERROR, SearchError
import msgspec

def leave(code, message):
    Path(ERROR).write_bytes(msgspec.json.encode(SearchError(code=code, message=message)))
    sys.exit(1)

events = read_journal(Path())
journal = SearchJournal(Path())
if not any(type(event).__name__ == "CandidateFailed" for event in events):
    journal.write(Begun(at_s=1.0, step={step!r}, name="deadly"))
    {what}
journal.write(RecipeEnded(at_s=2.0, name="write"))
"""


@pytest.fixture
def search() -> Iterator[SandboxedSearch]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        home = Path(directory)
        sandbox = Sandbox(hide=(), reports=home, kernel_features=KernelProbe().result)
        yield SandboxedSearch(
            folder=home / "optimize" / "key", sandbox=sandbox, step_limit_s=3.0, program="program"
        )


def searched(
    search: SandboxedSearch, what: str, *, step: str = "build"
) -> tuple[SearchState, list[Event]]:
    model = search.folder.parent.parent / "model.onnx"
    model.write_bytes(b"a model")
    search.own.mkdir(parents=True)
    (search.own / "program.py").write_text(
        PROGRAM.replace("{what}", what).replace("{step!r}", repr(step))
    )
    heard: list[Event] = []
    request = SearchRequest(source="", budget_s=10.0)
    state = search.run(
        request, SearchArguments(model=model), on_event=lambda event, _: heard.append(event)
    )
    return state, heard


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("ctypes.string_at(0)", "its process was ended by SIGSEGV"),
        ("os._exit(7)", "ended with status 7"),
        ("time.sleep(60)", "it took longer than 3 s"),
        ("raise ValueError('a bug')", "ValueError: a bug"),
        ("leave('INVALID_ARGUMENT', 'it cannot be')", "it cannot be"),
    ],
)
def test_what_ends_the_process_is_tried_no_more(
    search: SandboxedSearch, what: str, reason: str
) -> None:
    state, heard = searched(search, what)

    assert reason in state.candidates["deadly"].failed
    assert heard[-1] == RecipeEnded(at_s=2.0, name="write")


def test_without_the_baselines_answers_there_is_no_search(search: SandboxedSearch) -> None:
    with pytest.raises(InvalidArgumentError, match="labels fit no output"):
        searched(search, "leave('INVALID_ARGUMENT', 'the labels fit no output')", step="score")


def test_a_process_that_begins_nothing_is_not_started_again(search: SandboxedSearch) -> None:
    with pytest.raises(HeadraceError, match="ended with status 9"):
        searched(search, "pass\nos._exit(9)", step="")


@pytest.mark.parametrize("spoil", ["link", "pipe"])
def test_only_plain_files_are_taken_of_what_it_leaves(search: SandboxedSearch, spoil: str) -> None:
    result = search.own / "result"
    result.mkdir(parents=True)
    (result / "optimized.json").write_text("{}")
    if spoil == "link":
        (result / "secret").symlink_to("/etc/passwd")
    else:
        os.mkfifo(result / "secret")
    state = SearchState(wrote=Wrote(at_s=1.0, name="x", path="result"))

    with pytest.raises(InvalidArgumentError, match=r"leaves the directory|not a regular file"):
        search.artifact(state, search.folder / "taken")
