"""What a spec may say about callers."""

import pytest
from pydantic import ValidationError

from headrace.core.spec.access import JwtSpec
from headrace.core.spec.base import parsed


def _provider(url: str) -> JwtSpec:
    values = {"name": "corp", "issuer": "corp", "audiences": ("a",)}
    return parsed(JwtSpec, {**values, "jwks_url": url})


@pytest.mark.parametrize(
    "url",
    ["https://id.example/keys", "http://127.0.0.1:8/keys", "http://[::1]/k", "http://localhost/k"],
)
def test_keys_of_a_provider_come_by_https_or_from_this_machine(url: str) -> None:
    assert _provider(url).jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://id.example/keys", "http://127.0.0.1.example/", "http://localhost@id.example/"),
        *(
            "ftp://id.example/keys",
            "https://",
            "file:///etc/keys",
            "//id.example",
            "x",
            "http://[::1",
        ),
    ],
)
def test_keys_that_others_on_the_way_could_answer_with_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="has to begin with https://"):
        _provider(url)
