"""What a spec may say about the request log, traces and payloads."""

from typing import Any

import pytest

from headrace.core.spec.observe import (
    EndpointLogSpec,
    LogMode,
    PayloadLogSpec,
    RequestLogSpec,
    TracingSpec,
)
from headrace.core.spec.parse import SpecError, SystemSpec, parse_spec


def spec(**changes: Any) -> SystemSpec:  # noqa: ANN401  # as a document has it
    return parse_spec({"version": 1, **changes})


def endpoint(**changes: Any) -> SystemSpec:  # noqa: ANN401  # as above
    return spec(endpoints=[{"name": "m", "model": "m:1", **changes}])


def test_errors_slow_requests_and_a_share_are_logged_by_default() -> None:
    told = spec().gateway.request_log

    assert told == RequestLogSpec(mode=LogMode.SAMPLED, sample_ratio=0.01, slow_s=1.0)


def test_off_is_a_word_in_yaml() -> None:
    told = parse_spec("version: 1\ngateway:\n  request_log: {mode: off}\n")

    assert told.gateway.request_log.mode is LogMode.OFF


def test_an_endpoint_says_only_what_it_wants_otherwise() -> None:
    (one,) = endpoint(request_log={"slow_s": 0.5}).endpoints
    (other,) = endpoint(request_log={"mode": "all"}).endpoints

    assert one.request_log is not None
    assert other.request_log is not None
    assert one.request_log == EndpointLogSpec(slow_s=0.5)
    assert other.request_log == EndpointLogSpec(mode=LogMode.ALL)


def test_a_collector_is_named_by_its_url() -> None:
    told = spec(tracing={"collector": "http://127.0.0.1:4318/"}).tracing

    assert told is not None
    assert told == TracingSpec(collector="http://127.0.0.1:4318", sample_ratio=0.01)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:4318", "ftp://c", "http://", "http://a:b@c", "http://c?x=1", "http://c#x"],
)
def test_what_is_no_url_of_a_collector_is_refused(url: str) -> None:
    with pytest.raises(SpecError, match=r"tracing\.collector"):
        spec(tracing={"collector": url})


def test_a_payload_log_has_bounds_without_being_told() -> None:
    (one,) = endpoint(payload_log={"hash": ["caller", "input.a b"]}).endpoints

    assert one.payload_log is not None
    assert one.payload_log == PayloadLogSpec(hash=("caller", "input.a b"))


@pytest.mark.parametrize(
    ("log", "place"),
    [
        ({"drop": ["x"]}, r"payload_log\.drop\[0\]"),
        ({"sample_ratio": 1.5}, r"payload_log\.sample_ratio"),
        ({"max_file_bytes": 1}, r"payload_log\.max_file_bytes"),
        ({"rotate": 1}, r"payload_log\.rotate"),
    ],
)
def test_mistakes_name_their_place(log: dict[str, Any], place: str) -> None:
    with pytest.raises(SpecError, match=place):
        endpoint(payload_log=log)


def test_requests_to_a_server_of_others_cannot_be_kept() -> None:
    entry = {"name": "m", "upstream": {"url": "http://c"}, "payload_log": {}}

    with pytest.raises(SpecError, match="only Headrace's own replicas"):
        spec(endpoints=[entry])
