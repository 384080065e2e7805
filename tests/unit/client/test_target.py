import pytest

from headrace.client.credentials import parse_target
from headrace.core import InvalidArgumentError


@pytest.mark.parametrize(
    ("url", "protocol", "base_url", "authority"),
    [
        ("http://127.0.0.1:8000", "http", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://models/team-a/", "http", "http://models/team-a", "models"),
        ("https://[::1]:443", "http", "https://[::1]:443", "[::1]:443"),
        ("127.0.0.1:8000", "http", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("grpc://127.0.0.1:8001", "grpc", "", "127.0.0.1:8001"),
        ("grpcs://models:443", "grpc", "", "models:443"),
    ],
)
def test_a_url_names_protocol_security_and_address(
    url: str, protocol: str, base_url: str, authority: str
) -> None:
    target = parse_target(url)

    assert target.protocol == protocol
    assert target.tls == url.startswith(("https:", "grpcs:"))
    assert target.base_url == base_url
    assert target.authority == authority
    assert target.uds is None


@pytest.mark.parametrize("url", ["unix:/run/a.sock", "unix:///run/a.sock"])
def test_a_unix_socket_is_http(url: str) -> None:
    target = parse_target(url)

    assert target.uds == "/run/a.sock"
    assert target.base_url == "http://localhost"
    assert target.is_loopback


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://h:1",
        "http://",
        "http://h:port",
        "http://h:70000",
        "http://[::1",
        "grpc://h",
        "grpc://h:1/x",
        "unix:relative.sock",
    ],
)
def test_another_url_is_refused_with_the_forms_that_work(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"use http://HOST:PORT"):
        parse_target(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_target("http://user:secret@host:1")

    assert "secret" not in str(caught.value)


def test_loopback_is_recognised() -> None:
    assert parse_target("localhost:1").is_loopback
    assert not parse_target("http://10.0.0.1:1").is_loopback
