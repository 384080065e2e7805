import inspect

import pytest

from headrace import core
from headrace.core import (
    Code,
    HeadraceError,
    ModelNotFoundError,
    ModelNotReadyError,
    OverloadedError,
    PayloadTooLargeError,
    UnavailableError,
)

ERRORS = [
    value
    for value in vars(core).values()
    if inspect.isclass(value) and issubclass(value, HeadraceError)
]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_a_canonical_code_and_says_what_happened(
    error: type[HeadraceError],
) -> None:
    assert error.code in Code
    assert error.__doc__
    assert error is HeadraceError or error.__name__.endswith("Error")


def test_a_body_that_is_too_large_names_the_limit() -> None:
    known = PayloadTooLargeError(limit_bytes=10, got_bytes=11)

    assert str(known) == "request body of 11 bytes exceeds the limit of 10 bytes"
    assert (known.limit_bytes, known.got_bytes) == (10, 11)
    assert str(PayloadTooLargeError(limit_bytes=10)) == "request body exceeds the limit of 10 bytes"


def test_an_unknown_model_is_told_as_triton_does() -> None:
    assert str(ModelNotFoundError("m")) == "Request for unknown model: 'm' is not found"
    error = ModelNotFoundError("m", "2")
    assert str(error) == "Request for unknown model: 'm' version 2 is not found"
    assert (error.name, error.version) == ("m", "2")


def test_a_model_that_is_not_ready_is_told_as_triton_does() -> None:
    assert str(ModelNotReadyError("m", "2")).startswith("Request for unknown model: 'm' version 2")
    assert str(ModelNotReadyError("m")).endswith("'m' is not at ready state")


def test_who_has_to_wait_is_told_how_long() -> None:
    overloaded = OverloadedError("the queue is full", retry_after_s=0.25)

    assert str(overloaded) == "the queue is full; retry in 0.25 s"
    assert overloaded.retry_after_s == 0.25
    assert UnavailableError("starting").retry_after_s == 1.0
    assert HeadraceError().retry_after_s is None
