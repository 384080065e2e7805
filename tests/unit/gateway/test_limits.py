"""What Envoy counts itself, what it asks for, and which routes pay for it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.spec.access import AccessSettings, EndpointLimitsSpec, LimitSpec, TierSpec
from headrace.gateway import EndpointRoute, GatewayPolicy, RevisionTarget, build_snapshot
from headrace.gateway.limits import FILTERS, bucket, flood_config, local_config
from tests.unit.gateway.arbitrary import (
    endpoint_lists,
    first_match,
    gateway_settings,
    plain,
    routes_of,
)

SLOW = LimitSpec(requests_per_s=0.5, burst=3)
DAILY = LimitSpec(requests_per_s=5.0, requests_per_day=10)
GOLD = TierSpec(name="gold", limits=LimitSpec(requests_per_s=10.0), priority=10)
HEAVY = TierSpec(name="heavy", limits=LimitSpec(rows_per_s=100.0))
LOCAL = {"headrace.limits", "headrace.retry_after"}
ASKED = {"headrace.flood", "headrace.rows", "headrace.shared_limits"}


def _endpoint(
    name: str = "m",
    *,
    total: LimitSpec | None = None,
    per_caller: LimitSpec | None = None,
    **more: Any,  # noqa: ANN401  # any field
) -> EndpointRoute:
    limits = EndpointLimitsSpec(
        total=total or LimitSpec(),
        per_caller=per_caller or LimitSpec(),
        max_body_bytes=more.pop("max_body_bytes", None),
    )
    revision = RevisionTarget(version="1", replicas=("unix:/run/1.sock",), weight=100)
    return EndpointRoute(name=name, arms=(revision,), limits=limits, **more)


def _routes(endpoint: EndpointRoute, access: AccessSettings | None = None) -> list[dict[str, Any]]:
    """Its routes over HTTP, of a version and unversioned, and over gRPC."""
    policy = GatewayPolicy(access=access or AccessSettings())
    snapshot = build_snapshot(gateway_settings(), [endpoint], policy)
    path = f"/v2/models/{endpoint.name}"
    return [
        first_match(snapshot, f"{path}/infer"),
        first_match(snapshot, f"{path}/versions/1/infer"),
        first_match(snapshot, f"/v1/models/{endpoint.name}:predict"),
        first_match(snapshot, "/any", {"x-model": endpoint.name}, grpc=True),
    ]


def _limiting(route: dict[str, Any]) -> set[str]:
    return set(route.get("typed_per_filter_config", {})) & set(FILTERS)


@given(st.floats(0.001, 1e9), st.none() | st.integers(1, 10**9))
def test_a_bucket_fills_at_the_rate_that_was_asked_for(rate: float, burst: int | None) -> None:
    found = plain(bucket(LimitSpec(requests_per_s=rate, burst=burst)))

    interval_s = float(found["fill_interval"].removesuffix("s"))
    assert interval_s >= 0.05
    assert found["tokens_per_fill"] / interval_s == pytest.approx(rate, rel=0.002)
    assert found["max_tokens"] == (burst or max(1, -(-rate // 1)))


def test_an_endpoint_without_limits_pays_for_none() -> None:
    for route in _routes(_endpoint()):
        assert not _limiting(route)
        assert "metadata" not in route


def test_requests_per_second_are_counted_here() -> None:
    endpoint = _endpoint(total=SLOW)

    for route in _routes(endpoint):
        assert _limiting(route) == LOCAL
        assert route["metadata"]["filter_metadata"]["headrace"] == {"endpoint": "m"}


def test_what_only_the_service_can_count_is_asked_of_it_with_all_else_of_the_endpoint() -> None:
    endpoint = _endpoint(total=DAILY, per_caller=SLOW)

    for route in _routes(endpoint):
        assert _limiting(route) == ASKED
        assert route["metadata"]["filter_metadata"]["headrace"] == {"shared": "m"}
        assert {"key": "x-headrace-want", "value": "rows"} in _added(route)
    assert plain(local_config(AccessSettings(), [endpoint]))["descriptors"] == []


def test_shared_limits_are_all_asked_of_the_service() -> None:
    access = AccessSettings(shared_limits=True, tiers=(GOLD,))

    for route in _routes(_endpoint(total=SLOW), access):
        assert _limiting(route) == ASKED
    assert plain(local_config(access, [_endpoint(total=SLOW)]))["descriptors"] == []


def test_a_tier_that_needs_the_service_costs_callers_without_one_nothing_but_the_filter() -> None:
    access = AccessSettings(tiers=(GOLD, HEAVY))
    endpoint = _endpoint(total=SLOW)

    for route in _routes(endpoint, access):
        assert _limiting(route) == LOCAL | ASKED
        marks = {"endpoint": "m", "tiered": "m"}
        assert route["metadata"]["filter_metadata"]["headrace"] == marks
    (descriptor,) = plain(local_config(access, [endpoint]))["descriptors"]
    assert descriptor["entries"] == [{"key": "endpoint", "value": "m"}]


def test_a_flood_does_not_reach_the_service() -> None:
    access = AccessSettings(tiers=(GOLD, HEAVY))
    config = plain(flood_config(access, [_endpoint(total=DAILY), _endpoint("n", total=SLOW)]))

    found = {
        str(descriptor["entries"][0]["value"]): descriptor["token_bucket"]["max_tokens"]
        for descriptor in config["descriptors"]
    }
    assert found == {"m": 10, "gold": 20}
    assert "enable_x_ratelimit_headers" not in config


def test_every_caller_has_a_bucket_and_a_stranger_one_by_address() -> None:
    access = AccessSettings(tiers=(GOLD,))
    config = plain(local_config(access, [_endpoint(total=SLOW, per_caller=SLOW)]))

    entries = [
        [(entry["key"], entry.get("value")) for entry in descriptor["entries"]]
        for descriptor in config["descriptors"]
    ]
    assert entries == [
        [("endpoint", "m")],
        [("endpoint", "m"), ("caller", None)],
        [("endpoint", "m"), ("anonymous", "1"), ("masked_remote_address", None)],
        [("tier", "gold"), ("caller", None)],
    ]
    assert config["max_dynamic_descriptors"] == 10_000


def test_a_grpc_call_has_every_filter_that_its_endpoint_may_need() -> None:
    endpoints = [
        _endpoint("a", total=SLOW),
        _endpoint("b", total=DAILY, max_body_bytes=2048),
        _endpoint("c"),
    ]
    snapshot = build_snapshot(gateway_settings(), endpoints)

    first = first_match(snapshot, "/inference.GRPCInferenceService/ModelInfer", grpc=True)

    assert _limiting(first) == set(FILTERS)
    assert "metadata" not in first


def test_a_smaller_body_limit_is_the_endpoints_own() -> None:
    for route in _routes(_endpoint(max_body_bytes=2048)):
        assert _limiting(route) == {"headrace.endpoint_body"}
        assert '"max_request_bytes": 2048' in json.dumps(route)


def test_replicas_hear_of_priorities_only_where_tiers_have_some() -> None:
    endpoint = _endpoint(slo_latency_s=0.25)

    for route in _routes(endpoint):
        assert not _added(route)
    for route in _routes(endpoint, AccessSettings(tiers=(GOLD,))):
        added = _added(route)
        assert {"key": "x-headrace-priority", "value": "5"} in added
        assert {"key": "x-headrace-slo-s", "value": "0.25"} in added


@given(endpoint_lists())
def test_what_goes_to_no_replica_is_not_limited(endpoints: list[EndpointRoute]) -> None:
    settings = gateway_settings(control_address="127.0.0.1:1")
    snapshot = build_snapshot(settings, endpoints)

    for route in routes_of(snapshot):
        is_held = route.get("route", {}).get("cluster") == "control"
        if "direct_response" in route or is_held:
            assert "metadata" not in route


def test_the_service_is_a_cluster_where_there_is_one() -> None:
    with_service = gateway_settings(limits_address="unix:/run/limits.sock")

    names = [cluster["name"] for cluster in plain(build_snapshot(with_service, []).clusters)]

    assert names == ["limits"]
    filters = json.dumps(plain(build_snapshot(gateway_settings(), []).listeners))
    assert "headrace.shared_limits" not in filters


def _added(route: dict[str, Any]) -> list[dict[str, str]]:
    return [added["header"] for added in route.get("request_headers_to_add", [])]
