"""Commands show who they are with what they were given, and to nobody else."""

import json
from pathlib import Path

import pytest
import typer

from headrace.cli.access.credentials import id_of
from headrace.cli.app import _in_front, app
from headrace.cli.base import connection, contexts
from headrace.cli.base.contexts import (
    DEFAULT_HOME,
    ContextCredentials,
    Contexts,
    read_contexts,
    write_contexts,
)
from headrace.cli.base.options import span_s
from headrace.cli.up.settings import oidc_settings
from headrace.control.base.settings import OidcSettings
from headrace.core import FailedPreconditionError
from tests.unit.cli.conftest import Command

TOKEN = "hrt_aaaaaaaaaaaa_secret"  # noqa: S105  # none
PROGRAM = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["status"], ["status"]),
        (["status", "--token", "t"], ["--token", "t", "status"]),
        (["--ca-file", "c", "status"], ["--ca-file", "c", "status"]),
        (
            ["users", "list", "--token-file=f", "--json", "--ca-file", "c"],
            ["--token-file=f", "--ca-file", "c", "users", "list", "--json"],
        ),
        (["status", "--token"], ["--token", "status"]),
        (["infer", "m", "--", "--token", "t"], ["infer", "m", "--", "--token", "t"]),
        (
            ["context", "add", "a", "u", "--token-file", "f"],
            ["context", "add", "a", "u", "--token-file", "f"],
        ),
        (
            ["context", "add", "a", "u", "--token", "t"],
            ["--token", "t", "context", "add", "a", "u"],
        ),
    ],
)
def test_the_program_s_options_may_stand_anywhere(given: list[str], meant: list[str]) -> None:
    assert _in_front(given, PROGRAM) == meant


def test_a_token_file_holds_one_word(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text(f"  {TOKEN}\n")
    found = contexts.read_token(file)
    for text in ("", "a b", "ü"):
        file.write_text(text)
        with pytest.raises(FailedPreconditionError, match="token"):
            contexts.read_token(file)

    assert found == TOKEN
    with pytest.raises(FailedPreconditionError, match="cannot read a token"):
        contexts.read_token(tmp_path / "nothing")


def test_a_token_stays_with_its_url() -> None:
    access = ContextCredentials(token=TOKEN)
    contexts = Contexts(contexts={}).with_server("a", "https://a.example", use=True, access=access)
    same = contexts.with_server("a", "https://a.example", use=False)
    moved = contexts.with_server("a", "https://evil.example", use=False)
    gone = contexts.without("a")

    assert same.access_of("https://a.example").token == TOKEN
    assert contexts.access_of("https://evil.example") == ContextCredentials()
    assert moved.access_of("https://evil.example") == ContextCredentials()
    assert gone.contexts == {}


def test_of_two_contexts_for_one_url_the_current_one_counts() -> None:
    contexts = (
        Contexts(contexts={})
        .with_server("a", "https://x.example", use=True, access=ContextCredentials(token="a"))  # noqa: S106
        .with_server("b", "https://x.example", use=True, access=ContextCredentials(token="b"))  # noqa: S106
    )

    assert contexts.access_of("https://x.example").token == "b"  # noqa: S105  # none
    assert contexts.using("a").access_of("https://x.example").token == "a"  # noqa: S105  # none


def test_contexts_are_kept_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "c" / "contexts.json"
    access = ContextCredentials(token=TOKEN, ca_file=str(tmp_path / "ca.pem"))
    kept = Contexts(contexts={}).with_server("a", "https://a.example", use=True, access=access)
    write_contexts(path, kept)

    assert read_contexts(path) == kept
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_context_s_token_is_shown_to_its_server_and_never_listed(
    headrace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_text(TOKEN)
    added = headrace("context", "add", "a", "http://a.example:1", "--token-file", "t")
    listed = headrace("context", "list")
    told = headrace("context", "list", "--json")
    monkeypatch.delenv("HEADRACE_HOME")
    mine = connection.find_target(None, DEFAULT_HOME)
    named = connection.find_target("http://a.example:1", DEFAULT_HOME)
    other = connection.find_target("http://b.example:1", DEFAULT_HOME)

    assert "the token is sent unencrypted" in added.err
    assert TOKEN not in added.out + added.err + listed.out + told.out
    assert (mine.token, named.token, other.token) == (TOKEN, TOKEN, "")


def test_a_context_names_its_url_once(headrace: Command) -> None:
    by_option = headrace("context", "add", "a", "--server", "https://a.example")
    none = headrace("context", "add", "b")
    twice = headrace("context", "add", "c", "https://c.example", "--server", "https://c.example")

    assert [by_option.status, none.status, twice.status] == [0, 2, 2]


def test_the_token_of_a_home_is_read_from_its_file(headrace: Command, home: Path) -> None:
    missing = headrace("token", "show")
    home.mkdir()
    (home / "admin-token").write_text(f"{TOKEN}\n")
    shown = headrace("tokens", "show")

    assert (missing.status, "`headrace up` creates it" in missing.err) == (1, True)
    assert shown.out == f"{TOKEN}\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("15m", 900.0), ("12h", 43_200.0), ("30d", 2_592_000.0), ("2w", 1_209_600.0)],
)
def test_a_span_of_time_is_read(text: str, seconds: float) -> None:
    assert span_s(text, "--x") == seconds
    assert span_s("never", "--x") is None


@pytest.mark.parametrize("text", ["", "d", "0d", "-1d", "3", "3y"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a duration"):
        span_s(text, "--x")


def test_an_id_is_taken_out_of_a_whole_token() -> None:
    kinds = ("hrt", "hrs")
    assert id_of("abc", kinds) == id_of("hrt_abc_x_y", kinds) == id_of("hrs_abc_x", kinds) == "abc"
    assert id_of("a/../b", kinds) == "a%2F..%2Fb"
    assert id_of("my_key", kinds) == "my_key"


@pytest.mark.parametrize("text", ["12", "x:ab", "12:"])
def test_a_checkpoint_is_a_count_and_a_hash(headrace: Command, text: str) -> None:
    wrong = headrace("trail", "verify", "--checkpoint", text)

    assert (wrong.status, f"'{text}' is not a checkpoint" in wrong.err) == (2, True)


# How people log in.


def settings(file: Path | None = None, **given: str) -> OidcSettings | None:
    told = {"issuer": "", "client_id": "", "client_secret": "", "redirect_url": "", **given}
    return oidc_settings(file, roles=(), **told)


def test_nobody_logs_in_unless_somebody_says_where() -> None:
    assert settings() is None


def test_a_flag_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "oidc.yaml"
    file.write_text(
        "issuer: https://a\nclient_id: h\nredirect_url: https://m/auth/callback\n"
        "client_secret: file:secret\nroles: [ml=operator]\nsession_s: 60\n"
    )
    found = settings(file, issuer="https://b")

    assert found is not None
    assert (found.issuer, found.client_id) == ("https://b", "h")
    assert (found.roles, found.session_s) == (("ml=operator",), 60.0)
    assert found.client_secret == f"file:{tmp_path}/secret"


def test_what_is_missing_is_told_by_its_flag() -> None:
    with pytest.raises(typer.BadParameter, match="--oidc-client-id, --oidc-redirect-url"):
        settings(issuer="https://a")


@pytest.mark.parametrize("text", ["[1]", "issuer: [", "issuer: 5\nclient_id: a\nredirect_url: b"])
def test_a_file_that_says_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text(text)

    with pytest.raises(typer.BadParameter):
        settings(file)


def test_an_unknown_setting_of_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text(json.dumps({"isuer": "https://a"}))

    with pytest.raises(typer.BadParameter):
        settings(file, issuer="https://a", client_id="h", redirect_url="https://m/auth/callback")
    with pytest.raises(FailedPreconditionError, match="cannot read"):
        settings(tmp_path / "nothing")
