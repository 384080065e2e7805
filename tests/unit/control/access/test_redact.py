"""What is told of a document holds no secret."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.access.credentials import new_secret
from headrace.control.access.redact import redact, redact_text

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
