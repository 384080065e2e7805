from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import EndpointRoute, MirrorTarget, RevisionTarget, build_snapshot
from headrace.gateway.splits import live_split
from tests.unit.gateway.arbitrary import (
    clusters_named,
    endpoint_routes,
    first_match,
    gateway_settings,
    mirrors_named,
)

GRPC = "/inference.GRPCInferenceService/ModelInfer"
HEADER = StickySpec(header="X-User", salt="s")


def _arm(version: str, weight: int, *, live: bool = True, role: str = "") -> RevisionTarget:
    replicas = (f"unix:/run/{version}{role}.sock",) if live else ()
    return RevisionTarget(version=version, replicas=replicas, weight=weight, role=role)


THREE = EndpointRoute(name="m", arms=(_arm("2", 10), _arm("1", 10, role="baseline"), _arm("1", 80)))


def _route(endpoint: EndpointRoute, **headers: str) -> dict[str, Any]:
    return first_match(build_snapshot(gateway_settings(), [endpoint]), "/v2/models/m", headers)


@given(endpoint_routes("m"))
def test_only_live_arms_with_a_weight_take_requests(endpoint: EndpointRoute) -> None:
    split = live_split(endpoint)

    live = {arm.key for arm in endpoint.arms if arm.is_live and arm.weight}
    assert {arm.key for arm, _ in split} == live
    assert all(weight > 0 for _, weight in split)


@given(endpoint_routes("m"), st.integers(0, 99))
def test_in_a_sticky_split_a_dead_arm_moves_only_its_own_callers(
    endpoint: EndpointRoute, place: int
) -> None:
    sticky = replace(endpoint, sticky=HEADER)
    split = live_split(sticky)
    if not split:
        return

    assert sum(weight for _, weight in split) == 100
    before = _at([(arm, arm.weight) for arm in endpoint.arms if arm.weight], place)
    if before.is_live:
        assert _at(split, place) is before


def _at(split: Iterable[tuple[RevisionTarget, int]], place: int) -> RevisionTarget:
    for arm, weight in split:
        place -= weight
        if place < 0:
            return arm
    raise AssertionError("weights do not sum to 100")


@given(st.integers(1, 99), st.integers(1, 99), st.integers(0, 99))
def test_whoever_saw_the_first_arm_sees_it_while_it_grows(low: int, high: int, place: int) -> None:
    def at(weight: int) -> EndpointRoute:
        return replace(THREE, arms=(_arm("2", weight), _arm("1", 100 - weight)), sticky=HEADER)

    low, high = sorted((low, high))
    if _at(live_split(at(low)), place).version == "2":
        assert _at(live_split(at(high)), place).version == "2"


@pytest.mark.parametrize(
    ("sticky", "needs_assignments", "is_logged"),
    [(None, False, False), (None, True, True), (HEADER, False, True)],
)
def test_the_arms_of_a_language_model_are_logged_only_if_a_rollout_reads_them(
    sticky: StickySpec | None, *, needs_assignments: bool, is_logged: bool
) -> None:
    endpoint = EndpointRoute(
        name="m",
        arms=tuple(replace(_arm(version, 50), openai=True) for version in "21"),
        split_id="m-r1",
        sticky=sticky,
        needs_assignments=needs_assignments,
    )

    assert endpoint.logged_weights == ("2=50 1=50" if is_logged else "")


def test_callers_with_a_key_are_split_by_its_salted_hash_and_others_at_random() -> None:
    endpoint = replace(THREE, sticky=HEADER, split_id="m-r1")

    keyed, keyless = _route(endpoint, **{"X-User": "u"}), _route(endpoint)

    (policy,) = keyed["route"]["hash_policy"]
    assert policy["header"]["header_name"] == "X-User"
    assert policy["header"]["regex_rewrite"]["substitution"] == r"s:\0"
    assert keyed["route"]["weighted_clusters"]["use_hash_policy"]
    assert list(clusters_named(keyed)) == ["m~2", "m~1~baseline", "m~1"]
    assert "hash_policy" not in keyless["route"]
    assert [h["header"]["value"] for h in keyed["request_headers_to_add"]] == [
        "m-r1",
        "%REQ(X-USER)%",
    ]
    assert len(keyless["request_headers_to_add"]) == 1


@pytest.mark.parametrize(
    ("salt", "split_id", "expected"),
    [("", "", r"m:\0"), ("", "r1", r"r1:\0"), ("a", "r1", r"a:\0"), ("\\1", "", r"\\1:\0")],
)
def test_a_salt_is_the_given_one_else_the_splits_else_the_endpoints(
    salt: str, split_id: str, expected: str
) -> None:
    sticky = StickySpec(header="x-user", salt=salt)

    route = _route(replace(THREE, sticky=sticky, split_id=split_id), **{"x-user": "u"})

    (policy,) = route["route"]["hash_policy"]
    assert policy["header"]["regex_rewrite"]["substitution"] == expected


@pytest.mark.parametrize(
    ("sticky", "context"),
    [
        (StickySpec(cookie="uid"), {"cookie": "uid"}),
        (StickySpec(claim="sub"), {"claim": "sub"}),
    ],
)
def test_cookies_and_claims_are_read_once_and_then_hashed(
    sticky: StickySpec, context: dict[str, str]
) -> None:
    endpoint = replace(THREE, sticky=sticky)
    snapshot = build_snapshot(gateway_settings(), [endpoint])

    for path, named in (("/v2/models/m", {}), (GRPC, {"x-model": "m"})):
        first = first_match(snapshot, path, named, grpc=path == GRPC)
        again = first_match(snapshot, path, {**named, "x-headrace-unit": "u"}, grpc=path == GRPC)
        reading = first["typed_per_filter_config"]["headrace.unit"]
        assert reading["filter_context"] == context
        assert "headrace.unit" not in again.get("typed_per_filter_config", {})
        assert again["route"]["hash_policy"][0]["header"]["header_name"] == "x-headrace-unit"
    by_method = first_match(snapshot, GRPC, grpc=True)
    assert by_method["typed_per_filter_config"]["headrace.unit"]["disabled"]


def test_grpc_calls_are_spared_a_filter_that_no_endpoint_needs() -> None:
    snapshot = build_snapshot(gateway_settings(), [replace(THREE, sticky=HEADER)])

    by_method = first_match(snapshot, GRPC, grpc=True)
    assert "headrace.unit" not in by_method["typed_per_filter_config"]


def test_an_endpoint_without_features_is_routed_as_plainly_as_ever() -> None:
    route = _route(replace(THREE, arms=(_arm("1", 100),)))

    assert set(route) == {"name", "match", "route", "request_headers_to_remove"}
    assert set(route["route"]) == {"cluster", "timeout", "idle_timeout"}


def test_copies_go_only_from_the_split_only_to_a_living_arm_and_say_what_they_are() -> None:
    arms = (_arm("1", 100), _arm("2", 0))
    endpoint = replace(THREE, arms=arms, mirror=MirrorTarget(key="2", percent=20))
    snapshot = build_snapshot(gateway_settings(), [endpoint])
    dead = replace(endpoint, arms=(arms[0], _arm("2", 0, live=False)))

    route = first_match(snapshot, "/v1/models/m:predict")
    (policy,) = route["route"]["request_mirror_policies"]
    assert (policy["cluster"], policy["runtime_fraction"]["default_value"]) == (
        "m~2",
        {"numerator": 20},
    )
    mark, *removed = policy["request_headers_mutations"]
    assert mark["append"]["header"] == {"key": "x-headrace-shadow", "value": "1"}
    assert removed == [{"remove": "authorization"}, {"remove": "x-api-key"}]
    pinned = first_match(snapshot, "/v2/models/m/versions/1")
    for other in (pinned, _route(dead), _route(replace(endpoint, mirror=None))):
        assert list(mirrors_named(other)) == []


def test_copies_for_a_language_model_pass_the_listener_that_counts_them() -> None:
    arms = tuple(replace(arm, openai=True) for arm in (_arm("1", 100), _arm("2", 0)))
    mirror = MirrorTarget(key="2", percent=20)
    endpoint = replace(THREE, arms=arms, split_id="r", mirror=mirror)
    encoder = replace(endpoint, arms=tuple(replace(arm, encodes=True) for arm in arms))
    path, named = "/v1/chat/completions", {"x-model": "m"}
    snapshot = build_snapshot(gateway_settings(), [endpoint])

    route = first_match(snapshot, path, named)
    (policy,) = route["route"]["request_mirror_policies"]
    headers = [change["append"]["header"] for change in policy["request_headers_mutations"][:2]]
    assert policy["cluster"] == "shadow"
    assert headers[1] == {"key": "x-model", "value": "m~shadow"}
    copied = first_match(snapshot, path, {"x-model": "m~shadow"})
    assert (copied["name"], copied["route"]["cluster"]) == ("m~shadow", "m~2~openai")
    assert list(mirrors_named(copied)) == []
    # Tensors for the same endpoint are copied as ever, and count for neither arm.
    tensors = first_match(snapshot, "/v2/models/m")
    assert list(mirrors_named(tensors)) == ["m~2"]
    assert "request_headers_to_add" not in tensors or not any(
        added["header"]["key"] == "x-headrace-split" for added in tensors["request_headers_to_add"]
    )
    of_encoder = build_snapshot(gateway_settings(), [encoder])
    assert list(mirrors_named(first_match(of_encoder, path, named))) == ["m~2~openai"]
    assert first_match(of_encoder, path, {"x-model": "m~shadow"})["name"] == "unknown-model"


def test_a_grpc_server_gets_grpc_and_a_replica_beside_it_the_bridge() -> None:
    theirs = UpstreamSpec(url="grpc://10.0.0.1:8001", protocol=UpstreamProtocol.GRPC)
    arm = RevisionTarget(version="2", replicas=(), weight=50, upstream=theirs)
    endpoint = replace(THREE, arms=(arm, _arm("1", 50)))
    snapshot = build_snapshot(gateway_settings(), [endpoint])

    route = first_match(snapshot, GRPC, {"x-model": "m"}, grpc=True)
    foreign, ours = route["route"]["weighted_clusters"]["clusters"]
    assert foreign["typed_per_filter_config"]["headrace.bridge"]["disabled"]
    assert "typed_per_filter_config" not in ours
    pinned = first_match(snapshot, GRPC, {"x-model": "m~2"}, grpc=True)
    assert pinned["typed_per_filter_config"]["headrace.bridge"]["disabled"]
    assert first_match(snapshot, "/v2/models/m")["direct_response"]["status"] == 404


def test_a_single_arm_is_one_cluster_however_often_it_is_there() -> None:
    endpoint = replace(
        THREE,
        arms=(_arm("2", 10, live=False), _arm("1", 90)),
        sticky=HEADER,
    )

    assert Counter(clusters_named(_route(endpoint, **{"X-User": "u"}))) == {"m~1": 1}


def test_replicas_that_host_several_versions_are_told_which_one_is_meant() -> None:
    arms = tuple(replace(_arm(version, 50), pooled=True) for version in "12")
    endpoint = replace(THREE, arms=arms, split_id="r", mirror=MirrorTarget(key="2", percent=20))

    def told(part: dict[str, Any]) -> dict[str, str]:
        headers = [added["header"] for added in part.get("request_headers_to_add", [])]
        return {header["key"]: header["value"] for header in headers}

    route = _route(endpoint)
    whole = (replace(arms[0], weight=100), replace(arms[1], weight=0))
    alone = _route(replace(endpoint, arms=whole))
    pinned = first_match(build_snapshot(gateway_settings(), [endpoint]), "/v2/models/m/versions/2")

    assert told(route) == {"x-headrace-split": "r"}
    assert [told(cluster) for cluster in route["route"]["weighted_clusters"]["clusters"]] == [
        {"x-headrace-version": "1", "x-headrace-pair": "%UNIQUE_ID%"},
        {"x-headrace-version": "2", "x-headrace-pair": "%UNIQUE_ID%"},
    ]
    assert told(alone) == {
        "x-headrace-version": "1",
        "x-headrace-pair": "%UNIQUE_ID%",
        "x-headrace-split": "r",
    }
    assert told(pinned) == {"x-headrace-version": "2"}
    (policy,) = route["route"]["request_mirror_policies"]
    added = [change.get("append", {}) for change in policy["request_headers_mutations"]]
    copies = [change.get("header") for change in added]
    assert {"key": "x-headrace-version", "value": "2"} in copies


@given(endpoint_routes("m"), st.booleans())
def test_only_requests_that_may_be_copied_between_our_replicas_have_a_pair_id(
    endpoint: EndpointRoute,
    grpc: bool,  # noqa: FBT001  # a case
) -> None:
    path, headers = (GRPC, {"x-model": "m"}) if grpc else ("/v2/models/m", {})
    route = first_match(build_snapshot(gateway_settings(), [endpoint]), path, headers, grpc=grpc)
    arms = {f"m~{arm.key}": arm for arm in endpoint.arms}
    copied = [arms[name] for name in mirrors_named(route)]
    action = route.get("route", {})
    parts = action.get("weighted_clusters", {}).get("clusters", [])
    targets = parts or [{**route, "name": action.get("cluster")}]

    for target in targets:
        added = [one["header"]["key"] for one in target.get("request_headers_to_add", [])]
        arm = arms.get(target["name"])
        is_paired = arm is not None and arm.upstream is None
        is_paired = is_paired and any(copy.upstream is None for copy in copied)
        assert added.count("x-headrace-pair") == is_paired
    if parts:
        whole = [one["header"]["key"] for one in route.get("request_headers_to_add", [])]
        assert "x-headrace-pair" not in whole
