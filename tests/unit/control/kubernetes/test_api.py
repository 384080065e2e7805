import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes.api import (
    ApiUnavailableError,
    ObjectChangedError,
    ObjectFailedError,
    ObjectFixedError,
    ObjectMissingError,
    WatchExpiredError,
    delay_s,
    failure_of,
)
from headrace.core import HeadraceError, InvalidArgumentError, PermissionDeniedError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, PermissionDeniedError),
        (404, ObjectMissingError),
        (409, ObjectChangedError),
        (410, WatchExpiredError),
        (422, InvalidArgumentError),
        (429, ApiUnavailableError),
        (500, ObjectFailedError),
        (503, ApiUnavailableError),
        (504, ObjectFailedError),
    ],
)
def test_an_answer_means_one_error(status: int, kind: type[HeadraceError]) -> None:
    error = failure_of(status, b'{"message": "why"}', "", description="get Pod p")

    assert type(error) is kind
    assert str(error).startswith("get Pod p: why")


def test_a_lack_of_rights_names_the_way_out() -> None:
    assert "Role" in str(failure_of(403, b"", "", description="list Pod"))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"\xff\xfe", b'{"message": null}'])
def test_whatever_stands_in_an_answer_becomes_an_error(body: bytes) -> None:
    assert "get Pod" in str(failure_of(500, body, "soon", description="get Pod"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 500, 502])
def test_a_page_of_a_proxy_says_nothing_of_objects(status: int) -> None:
    error = failure_of(status, b"\n<!doctype html><p>Sign in", "", description="get Lease l")

    assert type(error) is ApiUnavailableError
    assert str(error).endswith(f"check for a proxy in between (HTTP status {status})")


def test_a_path_that_a_server_does_not_know_is_missing() -> None:
    error = failure_of(404, b"404 page not found\n", "", description="list ScaledObject")

    assert type(error) is ObjectMissingError


@pytest.mark.parametrize(
    "said",
    [
        'configmaps "x" is forbidden: unable to create in namespace m as it is being terminated',
        'deployments.apps "x" is forbidden: exceeded quota: compute, requested: count=1',
        'admission webhook "policy.example.com" denied the request: no image of ours',
        "ValidatingAdmissionPolicy 'a' with binding 'b' denied request: no limits",
    ],
)
@pytest.mark.parametrize("status", [403, 429, 503])
def test_what_admission_refuses_is_no_lack_of_rights(said: str, status: int) -> None:
    body = json.dumps({"message": said}).encode()
    error = failure_of(status, body, "", description="patch Deployment x")

    assert type(error) is PermissionDeniedError
    assert str(error) == f"patch Deployment x: {said}"


@pytest.mark.parametrize(
    "said", ["spec.selector: field is immutable", "x: may not change once set"]
)
def test_what_never_changes_is_an_error_of_its_own(said: str) -> None:
    body = json.dumps({"message": said}).encode()

    assert type(failure_of(422, body, "", description="patch Service x")) is ObjectFixedError


def test_a_status_that_nobody_knows_is_an_error() -> None:
    assert str(failure_of(499, b"", "", description="get Pod")) == "get Pod: HTTP status 499"


def test_the_server_says_when_to_come_again() -> None:
    assert failure_of(429, b"", "7", description="list").retry_after_s == 7.0


@given(failures=st.integers(1, 10_000), chance=st.floats(0.0, 1.0))
def test_delays_grow_within_bounds(failures: int, chance: float) -> None:
    assert 0.1 <= delay_s(failures, chance=lambda: chance) <= 30.0


@given(asked=st.floats(0.0, 600.0), chance=st.floats(0.0, 1.0))
def test_nobody_comes_before_the_server_asked_for(asked: float, chance: float) -> None:
    assert delay_s(1, asked_s=asked, chance=lambda: chance) >= asked
