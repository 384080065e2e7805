"""Redaction of documents, texts, errors and log lines."""

import json
import logging
import os
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.auth.credentials import new_secret
from headrace.core import FailedPreconditionError
from headrace.core.redact import RESOLVED, literal_secret, redact, redact_text, remember_resolved
from headrace.core.variables import filled_in, url_filled_in
from headrace.observe.logs import JsonFormatter, TextFormatter

SECRET = "pl4nted-s3cret"  # noqa: S105  # that is the point


@pytest.mark.parametrize(
    "key",
    [
        *("password", "db_password", "client_secret", "api_key", "api-key", "apikey", "token"),
        *("X-Token", "authorization", "PRIVATE_KEY", "credentials", "passphrase", "smtp.password"),
    ],
)
def test_text_under_the_name_of_a_secret_is_hidden(key: str) -> None:
    assert redact({"a": [{key: SECRET}]}) == {"a": [{key: "***"}]}


@pytest.mark.parametrize(
    "document",
    [
        {"tokenizer": "bert", "max_tokens": 5, "secret_file": "/run/x", "keys": ["a"], "pass": ""},
        {"client_secret": "${OIDC}", "password": "file:/run/secrets/db"},
        {"url": "https://ops.example/a@b", "n": [1, 2.5, None, True]},
    ],
)
def test_what_is_no_secret_stays(document: dict[str, Any]) -> None:
    assert redact(document) == document


def test_passwords_in_urls_and_our_own_tokens_are_hidden_anywhere() -> None:
    _, token = new_secret("hrt")
    text = f"see postgresql://ann:{SECRET}@db/x and {token}."

    assert SECRET not in redact_text(text)
    assert token not in redact_text(text)
    assert redact_text(text).startswith("see postgresql://ann:***@db/x and hrt_")
    assert redact({"note": [text]}) == {"note": [redact_text(text)]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@given(json_values)
def test_what_is_redacted_stays_so(document: object) -> None:
    assert redact(redact(document)) == redact(document)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:pw@h/0", "redis://ann:***@h/0"),
        ("redis://:p@ss@h/0", "redis://:***@h/0"),
        ("postgresql://[me:pw@db", "postgresql://[me:***@db"),
        ("postgresql://me@db/x?sslpassword=pw", "postgresql://me@db/x?sslpassword=***"),
        ("redis://:p/w@h/0", "redis://:***@h/0"),
        ("redis://:pre${PW}@h/0", "redis://:***@h/0"),
        (
            "kafka://h:9092,g:9092?sasl.username=a@b&sasl.password=pw",
            "kafka://h:9092,g:9092?sasl.username=a@b&sasl.password=***",
        ),
        ("s3://b/k?secret_key=pw&region=eu", "s3://b/k?secret_key=***&region=eu"),
        ("https://h/x?access_key=pw", "https://h/x?access_key=***"),
        ("https://b/k?X-Amz-Signature=pw", "https://b/k?X-Amz-Signature=***"),
    ],
)
def test_a_literal_secret_of_a_url_is_detected_and_hidden(url: str, shown: str) -> None:
    assert literal_secret(url) is not None
    assert redact_text(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:${PW}@h/0",
        "redis://ann@h:6379/0",
        "kafka://h:9092?sasl.password=${PW}&sasl.username=a@b",
        "https://[::1]:80/a@b",
        "https://h:80/?mail=a@b&monkey=5",
        '{"url":"http://localhost:8000","mail":"a@b"}',
        "kafka://h:9092,g:9092?sasl.username=a@b",
    ],
)
def test_a_url_without_a_literal_secret_is_shown_as_written(url: str) -> None:
    assert literal_secret(url) is None
    assert redact_text(url) == url


@given(st.text(min_size=1).filter(lambda text: "${" not in text))
def test_a_quoted_password_is_always_detected(password: str) -> None:
    url = f"redis://u:{quote(password, safe='')}@h/0"

    assert literal_secret(url) == "a password"
    assert redact_text(url) == "redis://u:***@h/0"


secrets = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="${}"), min_size=8
)


def _texts_with(value: str) -> list[str]:
    """Forms in which drivers and the log show a value."""
    url = url_filled_in("x://u:${V}@h", environment={"V": value})
    return [value, url, repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False)]


@given(secrets)
def test_a_resolved_value_is_in_no_error_and_no_log_line(value: str) -> None:
    RESOLVED.clear()
    filled_in("${V}", environment={"V": value})
    for text in _texts_with(value):
        told = str(FailedPreconditionError(f"cannot open {text} now"))
        assert value not in told
        assert quote(value, safe="") not in told
        error = OSError(text)
        trace = (OSError, error, None)
        record = logging.LogRecord("x", 40, "f", 1, "no %s", (text,), trace)
        record.extra_of_it = text
        for line in (TextFormatter().format(record), JsonFormatter().format(record)):
            assert value not in line
            assert quote(value, safe="") not in line


@given(secrets, st.integers(min_value=8))
def test_a_resolved_value_that_a_message_cuts_off_is_hidden(value: str, length: int) -> None:
    RESOLVED.clear()
    remember_resolved(value, "${V}")
    cut = value[:length]

    assert redact_text(f"it is {cut}") == "it is ${V}"
    assert redact_text(f"it is {cut}…") == "it is ${V}…"


def test_a_resolved_url_hides_its_password_alone_as_well() -> None:
    remember_resolved("redis://ann:hunter2@host/0", "${URL}")

    assert redact_text("redis://ann:hunter2@host/0 is away") == "${URL} is away"
    assert redact_text("no user with hunter2") == "no user with ${URL}"


def test_a_short_resolved_value_is_hidden_as_a_whole_word_only() -> None:
    remember_resolved("test", "${V}")

    assert redact_text("the latest test") == "the latest ${V}"


def test_an_exception_that_nobody_handles_shows_no_resolved_value() -> None:
    program = (
        "from headrace.core.variables import filled_in; from headrace.observe import logs;"
        "logs.configure_logging(); raise KeyError(filled_in('${V}'))"
    )
    environment = {**os.environ, "V": "pl4nted-s3cret"}
    ended = subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("KeyError: '${V}'")
    assert SECRET not in ended.stderr
