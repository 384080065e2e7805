from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.client import AsyncClient, Client
from headrace.client.credentials import (
    ConnectionOptions,
    Credentials,
    KeyFile,
    Trust,
    connection_options,
    parse_target,
    tls_context,
)
from headrace.core import FailedPreconditionError, InvalidArgumentError

KEY = "hr_abc_0123456789"


def _manner(url: str, environ: dict[str, str] | None = None, **changes: Any) -> ConnectionOptions:  # noqa: ANN401  # of many types
    arguments: dict[str, Any] = {
        "headers": None,
        "api_key": None,
        "token": None,
        "trust": Trust(),
        "allow_insecure": False,
        "environ": environ or {},
        **changes,
    }
    return connection_options(parse_target(url), **arguments)


@pytest.mark.parametrize("url", ["https://models", "grpcs://models:443", "http://127.0.0.1:1"])
def test_a_key_and_a_token_are_headers_of_their_own(url: str) -> None:
    found = _manner(url, api_key=KEY, token="a.b.c")  # noqa: S106  # no secret

    assert found.credentials.headers == {"x-api-key": KEY, "authorization": "Bearer a.b.c"}
    assert found.headers == {}


@pytest.mark.parametrize("url", ["http://models:8000", "grpc://10.0.0.1:8001"])
@pytest.mark.parametrize(
    "shown", [{"api_key": KEY}, {"token": KEY}, {"headers": {"Authorization": f"Bearer {KEY}"}}]
)
def test_credentials_do_not_travel_unencrypted_and_are_not_repeated(
    url: str, shown: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match="unencrypted") as caught:
        _manner(url, **shown)

    assert KEY not in str(caught.value)
    assert "s://" in str(caught.value)


@pytest.mark.parametrize("host", ["127.evil.example", "localhost.evil.example", "10.0.0.1"])
def test_a_name_that_begins_like_loopback_is_another_machine(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match="unencrypted"):
        _manner(f"http://{host}:8000", api_key=KEY)


@pytest.mark.parametrize("url", ["http://localhost:1", "grpc://[::1]:1", "unix:/run/a.sock"])
def test_nobody_listens_between_here_and_here(url: str) -> None:
    assert _manner(url, api_key=KEY).credentials.headers == {"x-api-key": KEY}


def test_whoever_insists_may_send_a_key_unencrypted() -> None:
    assert _manner("http://models", api_key=KEY, allow_insecure=True).credentials.headers


def test_a_key_of_the_environment_counts_where_nothing_else_is_said() -> None:
    environ = {"HEADRACE_API_KEY": KEY}

    assert _manner("https://m", environ).credentials.headers == {"x-api-key": KEY}
    assert _manner("https://m", environ, token="t").credentials.headers == {  # noqa: S106
        "authorization": "Bearer t"
    }
    assert _manner("https://m", environ, api_key="").credentials.headers == {}
    with pytest.raises(InvalidArgumentError, match="unencrypted"):
        _manner("http://m", environ)


@pytest.mark.parametrize("key", ["a b", "a\n", "ä", "x" * 20_000])
def test_a_key_that_no_header_can_hold_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        _manner("https://m", api_key=key)

    assert key not in str(caught.value)


def test_no_text_of_a_client_shows_the_key() -> None:
    with Client("http://127.0.0.1:1", api_key=KEY, headers={"x-team": "a"}) as client:
        transport = client._transport
        inner = transport._client  # type: ignore[attr-defined]  # behind a protocol
        texts = [repr(one) for one in (client, transport, inner, inner.headers, inner.auth)]

    assert KEY not in " ".join(texts)
    assert KEY not in repr(ConnectionOptions(credentials=Credentials({"x-api-key": KEY})))


def test_every_request_carries_the_credentials() -> None:
    request = httpx.Request("GET", "https://m/v2")
    flow = Credentials({"x-api-key": KEY}).auth_flow(request)

    assert next(flow).headers["x-api-key"] == KEY


def _sent_keys(file: KeyFile, *statuses: int) -> list[str]:
    """Keys of one request that a server answers with these statuses, one after the other."""
    options = _manner("https://m", api_key=file)
    flow = options.credentials.auth_flow(request := httpx.Request("GET", "https://m/v2"))
    keys = [next(flow).headers["x-api-key"]]
    for status in statuses:
        try:
            flow.send(httpx.Response(status, request=request))
        except StopIteration:
            break
        keys.append(request.headers["x-api-key"])
    return keys


def test_a_refused_key_is_read_again_once_per_second_and_sent_if_it_changed(
    tmp_path: Path,
) -> None:
    path, now = tmp_path / "key", [0.0]
    path.write_text("first\n")
    file = KeyFile(path, clock=lambda: now[0])

    assert _sent_keys(file, 403) == ["first"]
    path.write_text("hr_second")
    assert _sent_keys(file, 200) == ["first"]
    assert _sent_keys(file, 401) == ["first"]
    now[0] += 1.0
    assert _sent_keys(file, 401, 401) == ["first", "hr_second"]
    path.unlink()
    now[0] += 1.0
    assert _sent_keys(file, 401) == ["hr_second"]
    assert "hr_second" not in repr(file)


def test_a_key_file_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    with pytest.raises(FailedPreconditionError, match="none"):
        KeyFile(tmp_path / "none")
    with pytest.raises(InvalidArgumentError, match="empty"):
        KeyFile(tmp_path / "empty")


def test_another_address_that_a_server_names_is_not_followed() -> None:
    with Client("http://127.0.0.1:1", api_key=KEY) as client:
        inner = client._transport._client  # type: ignore[attr-defined]  # behind a protocol

    assert not inner.follow_redirects


def test_certificates_are_for_tls() -> None:
    with pytest.raises(InvalidArgumentError, match="use https://"):
        Client("http://127.0.0.1:1", ca_file="ca.pem")
    with pytest.raises(InvalidArgumentError, match="use grpcs://"):
        AsyncClient("grpc://127.0.0.1:1", server_name="m")


@pytest.mark.parametrize("url", ["https://m", "grpcs://m:443"])
def test_a_file_that_cannot_be_read_is_named(url: str, tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"

    with pytest.raises(InvalidArgumentError, match=r"none\.pem"):
        Client(url, ca_file=missing)
    with pytest.raises(InvalidArgumentError, match=r"none\.pem"):
        Client(url, client_certificate=(missing, missing))


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("hello")

    with pytest.raises(InvalidArgumentError, match=r"wrong\.pem"):
        tls_context(Trust(ca_file=wrong))
    with pytest.raises(InvalidArgumentError, match=r"wrong\.pem"):
        tls_context(Trust(certificate_file=wrong, key_file=wrong))
