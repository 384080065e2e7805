import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import core
from headrace.core import (
    Code,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    RuntimeFailedError,
    UnauthenticatedError,
    UnavailableError,
)
from headrace.protocol import (
    GRPC_STATUS,
    HTTP_STATUS,
    encode_error,
    error_from_grpc,
    error_from_http,
    grpc_status,
    http_status,
)


def all_errors() -> list[HeadraceError]:
    classes = [value for value in vars(core).values() if isinstance(value, type)]
    errors = []
    for kind in classes:
        if issubclass(kind, HeadraceError):
            error = kind.__new__(kind, "what happened")
            errors.append(error)
    return errors


def test_every_code_has_a_status() -> None:
    assert HTTP_STATUS.keys() == GRPC_STATUS.keys() == set(Code)
    assert sorted(GRPC_STATUS.values()) == list(range(1, 17))


def test_a_body_that_is_too_large_is_413_although_its_code_is_429() -> None:
    assert http_status(PayloadTooLargeError(limit_bytes=1)) == 413
    assert http_status(OverloadedError("full", retry_after_s=1)) == 429


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_an_error_comes_back_from_grpc_with_its_code(error: HeadraceError) -> None:
    back = error_from_grpc(grpc_status(error), str(error))

    assert back.code == error.code
    assert str(back) == "what happened"


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_an_error_comes_back_from_http_with_its_status(error: HeadraceError) -> None:
    back = error_from_http(http_status(error), encode_error(error))

    assert http_status(back) == http_status(error)
    assert str(back) == "what happened"


@pytest.mark.parametrize("version", ["", "7"])
def test_an_unknown_model_keeps_its_name_and_version(version: str) -> None:
    error = ModelNotFoundError("cat", version)

    for back in (error_from_http(404, encode_error(error)), error_from_grpc(5, str(error))):
        assert isinstance(back, ModelNotFoundError)
        assert (back.name, back.version, str(back)) == ("cat", version, str(error))


@pytest.mark.parametrize("got_bytes", [None, 70])
def test_a_large_body_keeps_its_sizes(got_bytes: int | None) -> None:
    error = PayloadTooLargeError(limit_bytes=64, got_bytes=got_bytes)

    for back in (error_from_http(413, encode_error(error)), error_from_grpc(8, str(error))):
        assert isinstance(back, PayloadTooLargeError)
        assert (back.limit_bytes, back.got_bytes) == (64, got_bytes)


def test_413_of_a_proxy_is_a_large_body_of_unknown_limit() -> None:
    back = error_from_http(413, b"Payload Too Large")

    assert isinstance(back, PayloadTooLargeError)
    assert (str(back), back.limit_bytes, back.got_bytes) == ("Payload Too Large", 0, None)


@pytest.mark.parametrize(("text", "seconds"), [("2.5", 2.5), ("0", 0.0), ("-1", None)])
def test_retry_after_is_read(text: str, seconds: float | None) -> None:
    assert error_from_http(429, b"", {"retry-after": text}).retry_after_s == seconds
    assert error_from_grpc(8, "", [("retry-after", text)]).retry_after_s == seconds


@pytest.mark.parametrize("text", ["Fri, 31 Dec 1999 23:59:59 GMT", "nan", "inf", ""])
def test_a_retry_after_that_is_no_duration_is_ignored(text: str) -> None:
    assert error_from_http(503, b"", {"retry-after": text}).retry_after_s is None


def test_grpc_pushback_is_in_milliseconds() -> None:
    trailing: list[tuple[str, str | bytes]] = [
        ("grpc-retry-pushback-ms", "250"),
        ("data-bin", b"\0"),
    ]

    assert error_from_grpc(14, "", trailing).retry_after_s == 0.25


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (401, UnauthenticatedError, Code.UNAUTHENTICATED),
        (418, InvalidArgumentError, Code.INVALID_ARGUMENT),
        (500, RuntimeFailedError, Code.INTERNAL),
        (502, UnavailableError, Code.UNAVAILABLE),
        (599, HeadraceError, Code.UNKNOWN),
    ],
)
def test_statuses_of_others_have_a_class(status: int, kind: type, code: Code) -> None:
    error = error_from_http(status)

    assert type(error) is kind
    assert error.code == code
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "a"}', "a"),
        (b'{"detail": "b"}', "b"),
        (b'{"error": {"message": "c", "code": null}}', "c"),
        (b'{"error": {"code": 1}}', '{"error": {"code": 1}}'),
        (b"[1]", "[1]"),
        (b"upstream reset", "upstream reset"),
    ],
)
def test_the_text_of_an_error_body_is_found(body: bytes, text: str) -> None:
    assert str(error_from_http(400, body)) == text


def test_an_unknown_grpc_code_is_unknown() -> None:
    assert error_from_grpc(99).code == Code.UNKNOWN
    assert error_from_grpc(Code.ABORTED, "x").code == Code.ABORTED


@given(st.text() | st.just("\ud800"))
def test_any_text_is_an_error_body(text: str) -> None:
    assert isinstance(json.loads(encode_error(text))["error"], str)


@given(st.integers(300, 700), st.binary(max_size=200), st.text(max_size=20))
def test_any_answer_is_an_error(status: int, body: bytes, retry: str) -> None:
    assert isinstance(error_from_http(status, body, {"retry-after": retry}), HeadraceError)
