"""Redirects and credentials of downloads, with addresses that need no name server."""

import httpx
import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.sources.http import SourceClient

PUBLIC = "https://192.0.2.1"
OTHER = "https://192.0.2.2"
Answers = dict[str, str | None]
"""Location by URL; None for the file itself."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def client(
    answers: Answers, seen: list[httpx.Request], *, allow_loopback_http: bool = False
) -> SourceClient:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        location = answers[str(request.url)]
        if location is None:
            return httpx.Response(200, content=b"model")
        return httpx.Response(302, headers={"location": location})

    return SourceClient(
        transport=httpx.MockTransport(answer), allow_loopback_http=allow_loopback_http
    )


def test_credentials_stay_with_their_origin() -> None:
    seen: list[httpx.Request] = []
    answers: Answers = {
        f"{PUBLIC}/a": f"{PUBLIC}/b",
        f"{PUBLIC}/b": f"{PUBLIC}:8443/c",
        f"{PUBLIC}:8443/c": f"{OTHER}/d",
        f"{OTHER}/d": f"{PUBLIC}/e",
        f"{PUBLIC}/e": None,
    }
    source = client(answers, seen)
    source.authorize(PUBLIC, "Bearer secret")

    with source.get(f"{PUBLIC}/a") as response:
        assert response.status_code == 200

    tokens = [request.headers.get("authorization") for request in seen]
    assert tokens == ["Bearer secret", "Bearer secret", None, None, "Bearer secret"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://192.0.2.1/b", "only https"),
        ("ftp://192.0.2.1/b", "only https"),
        ("https://127.0.0.1/b", "another host redirects to this machine"),
        ("https://[::1]/b", "another host redirects to this machine"),
        ("https://[::ffff:127.0.0.1]/b", "another host redirects to this machine"),
        ("https://169.254.169.254/latest", "not fetched from 169.254.169.254"),
        ("https://[fe80::1]/b", "not fetched from fe80::1"),
        ("https://0.0.0.0/b", "not fetched from 0.0.0.0"),
        ("https://100.100.100.200/b", "not fetched from 100.100.100.200"),
        ("https://user:pw@192.0.2.1/b", "is not a URL of a model"),
    ],
)
def test_redirect_to_an_internal_address_is_refused(location: str, message: str) -> None:
    seen: list[httpx.Request] = []
    source = client({f"{PUBLIC}/a": location}, seen, allow_loopback_http=True)

    with pytest.raises(InvalidArgumentError, match=message), source.get(f"{PUBLIC}/a"):
        pass
    assert len(seen) == 1


@pytest.mark.parametrize("url", ["https://127.0.0.1/a", "https://localhost/a"])
def test_this_machine_may_be_named_and_may_redirect_to_itself(url: str) -> None:
    seen: list[httpx.Request] = []

    with client({url: "https://127.0.0.1/b", "https://127.0.0.1/b": None}, seen).get(url):
        pass

    assert len(seen) == 2


@pytest.mark.parametrize("url", ["https://169.254.169.254/a", "http://192.0.2.1/a"])
def test_url_that_is_not_allowed_is_never_requested(url: str) -> None:
    seen: list[httpx.Request] = []

    with pytest.raises(InvalidArgumentError), client({url: None}, seen).get(url):
        pass
    assert seen == []


def test_redirect_loop_ends() -> None:
    seen: list[httpx.Request] = []
    source = client({f"{PUBLIC}/a": f"{PUBLIC}/a"}, seen)

    with pytest.raises(FailedPreconditionError, match="redirects"), source.get(f"{PUBLIC}/a"):
        pass
    assert len(seen) == 11


def resolved(host: str, *_: object, **__: object) -> list[tuple[int, int, int, str, object]]:
    """A name server by which every name is this machine."""
    address = host if host[0].isdigit() else "127.0.1.1"
    return [(2, 1, 6, "", (address, 443))]


def test_name_of_this_machine_in_the_first_url_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolved)
    seen: list[httpx.Request] = []
    url = "https://models.intranet.example/a"

    with client({url: None}, seen).get(url):
        pass
    with (
        pytest.raises(InvalidArgumentError, match="redirects to this machine"),
        client({f"{PUBLIC}/a": url}, seen).get(f"{PUBLIC}/a"),
    ):
        pass
    assert len(seen) == 2
