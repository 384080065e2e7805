"""Target of load and its requests as bytes."""

import numpy as np
import orjson
import pytest

from headrace.core import InvalidArgumentError
from headrace.load.target import (
    binary_message,
    http_request,
    json_message,
    open_target,
    parse_headers,
    parse_url,
)

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
    with pytest.raises(
        InvalidArgumentError, match="the URL names the model 'm', but --model names 'n'"
    ):
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


def test_tensors_become_json_of_the_protocol() -> None:
    words = np.empty((1, 2), np.object_)
    words[0] = [b"a", "é".encode()]

    headers, body = json_message("m", "", {"x": np.ones((2, 2), np.float32), "w": words})

    assert headers == {"content-type": "application/json"}
    assert orjson.loads(body) == {
        "inputs": [
            {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.0, 1.0, 1.0, 1.0]},
            {"name": "w", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "é"]},
        ]
    }


def test_binary_requests_carry_raw_bytes_and_ask_for_such() -> None:
    array = np.arange(3, dtype=np.int32)[None]

    headers, body = binary_message("m", "1", {"x": array})

    at = int(headers["inference-header-content-length"])
    assert body[at:] == array.tobytes()
    assert orjson.loads(body[:at])["parameters"]["binary_data_output"] is True


def test_what_json_cannot_carry_names_the_way_out() -> None:
    raw = np.empty(1, np.object_)
    raw[0] = b"\xff"

    with pytest.raises(InvalidArgumentError, match="use --binary"):
        json_message("m", "", {"x": raw})
    with pytest.raises(InvalidArgumentError, match="'x' is FP16"):
        json_message("m", "", {"x": np.ones(1, np.float16)})


def test_a_request_is_whole_and_framed_by_its_body() -> None:
    request = http_request("/v2/models/m/infer", "h:1", {"content-type": "a/b"}, b"12345")

    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v2/models/m/infer HTTP/1.1"
    assert {b"host: h:1", b"content-type: a/b", b"content-length: 5"} <= set(lines)
    assert body == b"12345"


def test_a_given_host_wins() -> None:
    assert b"\r\nhost: model.example\r\n" in http_request(
        "/", "h:1", {"host": "model.example"}, b""
    )


def test_headers_are_read_by_name() -> None:
    assert parse_headers(["Host: a.example", "x-b:  c: d "]) == {"host": "a.example", "x-b": "c: d"}


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        ": y",
        "x y: z",
        "x: a\r\nb: c",
        "x: \x00",
        "x\n: y",
        "Content-Length: 3",
        "Expect: 1",
    ],
)
def test_headers_that_would_break_the_framing_are_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_headers([wrong])
