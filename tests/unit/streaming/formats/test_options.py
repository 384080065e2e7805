"""What options of formats with schemas may say."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.formats.options import (
    SchemaOptions,
    authorization,
    read_file,
    read_options,
    tls,
)

URL = "http://registry:8081"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"registery": URL}, "registery"),
        ({"timeout_s": 0, "registry": URL}, "timeout_s is more than 0"),
        ({"registry": URL, "user": "me", "password": "hunter2"}, "password is a secret"),
        ({"registry": URL, "token": "abc"}, "token is a secret"),
        ({"registry": "http://me:pw@registry"}, "registry holds a password"),
        ({"registry": "registry:8081"}, "registry is no URL"),
        ({"registry": "ftp://registry"}, "registry is no URL"),
        ({"registry": "http://[bad"}, "registry is no URL"),
        ({"subject": "out-value"}, "subject is of a registry"),
        ({"token_file": "t"}, "token_file is of a registry"),
        ({"registry": URL, "register": True}, "register needs options.subject"),
        ({"registry": URL, "user": "a", "token_file": "t"}, "token and user are two ways"),
        ({"message": "a.B"}, "message is not for this format"),
        ({"types": {"id": "INT65"}}, "INT65"),
        ({"register": "yes"}, "bool"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(
    given: Mapping[str, object], why: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        read_options("avro", given, frozenset({"message"}))


def test_message_never_shows_the_secret() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_options("avro", {"registry": "http://me:hunter2@registry", "password": "hunter2"})

    assert "hunter2" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE_SET", raising=False)
    options = read_options("avro", {"registry": "http://r", "token": "${NOWHERE_SET}"})

    with pytest.raises(FailedPreconditionError, match="no variable NOWHERE_SET"):
        authorization(options)


def test_secrets_are_read_from_their_files_each_time(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("first\n")
    basic = SchemaOptions(user="me", password_file=str(file))
    bearer = SchemaOptions(token_file=str(file))

    assert authorization(SchemaOptions()) is None
    before = (authorization(basic), authorization(bearer))
    file.write_text("second\n")

    assert before == (("me", "first"), "first")
    assert (authorization(basic), authorization(bearer)) == (("me", "second"), "second")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")

    with pytest.raises(FailedPreconditionError, match=r"schema_file: '.*gone' cannot be read"):
        read_file(str(tmp_path / "gone"), "schema_file")
    with pytest.raises(FailedPreconditionError, match=r"token_file: .* something else"):
        authorization(SchemaOptions(token_file=str(tmp_path / "binary")))
    with pytest.raises(FailedPreconditionError, match="ca_file"):
        tls(SchemaOptions(ca_file=str(tmp_path / "binary")))


def test_file_larger_than_any_schema_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((16 << 20) + 1)

    with pytest.raises(FailedPreconditionError, match="larger than"):
        read_file(str(tmp_path / "huge"), "schema_file")
