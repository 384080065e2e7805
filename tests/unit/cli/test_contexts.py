"""Names for control planes elsewhere, and which one a command goes to."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.base import connection
from headrace.cli.base.contexts import (
    DEFAULT_HOME,
    Contexts,
    contexts_file,
    read_contexts,
    server_url,
    write_contexts,
)
from headrace.core import FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.unit.cli.conftest import Command

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
    lambda name: name != "local"
)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("gpu-box", "http://gpu-box:8080"),
        ("gpu-box:9000", "http://gpu-box:9000"),
        ("http://gpu-box", "http://gpu-box"),
        ("https://models.example/headrace/", "https://models.example/headrace"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("127.0.0.1", "http://127.0.0.1:8080"),
    ],
)
def test_a_server_may_be_written_short(text: str, url: str) -> None:
    assert server_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://u:p@h",
        "http://h?q=1",
        "[::",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a server URL"):
        server_url(text)


def test_the_first_context_becomes_the_current_one_and_others_on_wish() -> None:
    one = Contexts(contexts={}).with_server("a", "a.example", use=False)
    two = one.with_server("b", "https://b.example", use=False)
    three = two.with_server("c", "c:1", use=True)

    assert (one.current, two.current, three.current) == ("a", "a", "c")
    assert three.server == "http://c:1"
    assert three.using("local").server == ""
    assert three.using("b").server == "https://b.example"


def test_forgetting_the_current_context_leads_back_to_this_machine() -> None:
    contexts = (
        Contexts(contexts={}).with_server("a", "a", use=False).with_server("b", "b", use=False)
    )

    assert contexts.without("a").current == ""
    assert contexts.without("b").current == "a"


@pytest.mark.parametrize("name", ["", "local", "a/b", ".a", "x" * 65])
def test_names_that_could_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="invalid context name"):
        Contexts(contexts={}).with_server(name, "h", use=False)


def test_an_unknown_context_is_answered_with_those_there_are() -> None:
    contexts = Contexts(contexts={}).with_server("a", "a", use=False)

    with pytest.raises(NotFoundError, match="there are: local, a"):
        contexts.using("b")
    with pytest.raises(NotFoundError, match="there are: local, a"):
        contexts.without("b")


@given(st.dictionaries(NAMES, st.integers(1, 65535), max_size=5))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]
) -> None:
    contexts = Contexts(contexts={})
    for name, port in ports.items():
        contexts = contexts.with_server(name, f"{name}.example:{port}", use=port % 2 == 0)
    path = tmp_path_factory.mktemp("c") / "headrace" / "contexts.json"
    write_contexts(path, contexts)

    assert read_contexts(path) == contexts
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"contexts": {"a": {}}}', '{"contexts": []}'])
def test_a_damaged_file_is_told_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contexts.json"
    path.write_text(text)

    with pytest.raises(FailedPreconditionError, match="is damaged"):
        read_contexts(path)
    assert path.read_text() == text


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "contexts.json").mkdir()
    (tmp_path / "file").write_text("")

    with pytest.raises(FailedPreconditionError, match="cannot read"):
        read_contexts(tmp_path / "contexts.json")
    with pytest.raises(FailedPreconditionError, match="cannot write"):
        write_contexts(tmp_path / "file" / "contexts.json", Contexts(contexts={}))


def test_the_file_lies_where_the_desktop_convention_says() -> None:
    assert contexts_file({"XDG_CONFIG_HOME": "/c"}) == Path("/c/headrace/contexts.json")
    assert contexts_file({"HOME": "/h"}) == Path("/h/.config/headrace/contexts.json")


def test_contexts_are_added_used_listed_and_forgotten(
    headrace: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    overruled = headrace("context", "add", "prod", "https://p.example")
    headrace("context", "rm", "prod")
    monkeypatch.delenv("HEADRACE_HOME")
    assert "HEADRACE_HOME is set and takes precedence: unset it" in overruled.err
    assert (
        "commands now use this context"
        in headrace("context", "add", "prod", "https://p.example").err
    )
    assert "`headrace context use lab`" in headrace("context", "add", "lab", "lab").err
    table = headrace("context", "list").out.splitlines()
    headrace("context", "use", "lab")
    as_json = json.loads(headrace("context", "list", "--json").out)
    gone = headrace("context", "rm", "lab")
    unknown = headrace("context", "use", "lab")

    assert table == [
        "   context  server",
        "   local    the home on this machine",
        "*  prod     https://p.example",
        "   lab      http://lab:8080",
    ]
    assert as_json == {
        "current": "lab",
        "contexts": {"prod": "https://p.example", "lab": "http://lab:8080"},
    }
    assert "commands now use the home on this machine" in gone.err
    assert (unknown.status, "there are: local, prod" in unknown.err) == (1, True)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, headrace: Command) -> "Where":
    return Where(headrace, monkeypatch)


class Where:
    """Runs `headrace status` and tells which server it asked; empty for the home's."""

    def __init__(self, headrace: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        self.headrace = headrace
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments: str, **environment: str) -> str:
        self.monkeypatch.delenv("HEADRACE_HOME", raising=False)
        with self.monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(f"HEADRACE_{name}", value)
            text = self.headrace("status", *arguments).err
        return text.partition("http://")[2].partition(" ")[0] if "http://" in text else ""


# Nobody listens on port 9: every server is refused at once, and the message names it.
def test_flag_beats_environment_beats_context_beats_home(seen: Where) -> None:
    assert seen() == ""
    seen.headrace("context", "add", "c", "127.0.0.3:9")

    assert seen() == "127.0.0.3:9"
    assert seen(SERVER="127.0.0.2:9") == "127.0.0.2:9"
    assert seen("--server", "127.0.0.1:9", SERVER="127.0.0.2:9") == "127.0.0.1:9"
    assert seen("--server", "local") == ""


def test_a_home_that_is_named_is_meant(seen: Where) -> None:
    seen.headrace("context", "add", "c", "127.0.0.3:9")

    assert seen("--home", ".headrace") == ""
    assert seen("--home", "other", SERVER="127.0.0.2:9") == ""
    assert seen(HOME="other") == ""
    assert seen(HOME="other", SERVER="127.0.0.2:9") == "127.0.0.2:9"
    assert seen("--home", "other", "--server", "127.0.0.1:9") == "127.0.0.1:9"


def test_a_server_that_does_not_answer_is_told_with_what_to_look_at(headrace: Command) -> None:
    outcome = headrace("status", "--server", "127.0.0.1:9")

    assert outcome.status == 3
    assert "check the address" in outcome.err


def test_down_never_follows_a_context(headrace: Command) -> None:
    headrace("context", "add", "c", "127.0.0.1:9")

    assert "no system runs" in headrace("down").err
    assert headrace("down", "--server", "127.0.0.1:9").status == 3


def test_whoever_asks_is_named_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("no such user")

    assert "@" in connection.actor()
    monkeypatch.setattr("getpass.getuser", nobody)
    assert connection.actor().startswith("uid ")


def test_a_target_is_what_the_options_mean(tmp_path: Path, home: Path) -> None:
    assert home != tmp_path
    assert connection.find_target("h", DEFAULT_HOME).url == "http://h:8080"
    assert connection.find_target(None, tmp_path) == connection.CommandTarget(home=tmp_path)
    assert not connection.find_target(None, DEFAULT_HOME).is_remote
