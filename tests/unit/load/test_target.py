import pytest

from headrace.core import InvalidArgumentError
from headrace.load.target import open_target, parse_url

SECRET = "abc.def"  # noqa: S105  # opens nothing


@pytest.mark.parametrize(
    ("url", "base", "model", "version"),
    [
        ("http://h:8000", "http://h:8000", "", ""),
        ("h:8000", "http://h:8000", "", ""),
        ("http://h:8000/", "http://h:8000", "", ""),
        ("http://h/v2/models/m/infer", "http://h", "m", ""),
        ("http://h/v2/models/m", "http://h", "m", ""),
        ("https://h/v2/models/m/versions/3/infer", "https://h", "m", "3"),
        ("https://h/front/v2/models/m/infer", "https://h/front", "m", ""),
        ("http://[::1]:80/v2/models/a%2Eb/infer", "http://[::1]:80", "a.b", ""),
        ("unix:/run/m.sock", "http://localhost", "", ""),
    ],
)
def test_a_url_names_a_server_and_perhaps_a_model(
    url: str, base: str, model: str, version: str
) -> None:
    server, named, numbered = parse_url(url)

    assert (server.base_url, named, numbered) == (base, model, version)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "ftp://h",
        "grpc://h:1",
        "http://h:99999",
        "http://h?x=1",
        "http://h/v2/models/m/infer#x",
        "http://u:p@h",
        "unix:relative.sock",
        "http://h/v2/models/a%2Fb/infer",
        "http://h/v2/models/a%0d%0ab/infer",
        "http://[::1",
    ],
)
def test_what_is_no_url_of_such_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_url(url)


def test_two_names_for_the_model_have_to_agree() -> None:
    assert parse_url("http://h/v2/models/m/infer", model="m")[1] == "m"
    with pytest.raises(InvalidArgumentError, match="the URL names the model 'm', --model 'n'"):
        parse_url("http://h/v2/models/m/infer", model="n")


def test_credentials_do_not_travel_unencrypted_to_another_machine() -> None:
    with pytest.raises(InvalidArgumentError, match="unencrypted"):
        open_target("http://models.example", model="m", api_key="k")
    with pytest.raises(InvalidArgumentError, match="unencrypted"):
        open_target("http://models.example", model="m", headers={"authorization": "Bearer x"})


def test_credentials_are_in_the_requests_and_in_no_text_about_them() -> None:
    target = open_target(
        "http://127.0.0.1:1/front", model="m", token=SECRET, headers={"x-a": "b"}
    ).with_messages([({"content-type": "x/y"}, b"{}")])

    (request,) = target.requests
    assert request.startswith(b"POST /front/v2/models/m/infer HTTP/1.1\r\n")
    assert f"\r\nauthorization: Bearer {SECRET}\r\n".encode() in request
    assert b"\r\nx-a: b\r\n" in request
    assert SECRET not in repr(target)
