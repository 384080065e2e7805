import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway import EndpointRoute, RevisionTarget, build_snapshot, cluster_name
from headrace.gateway.splits import CallProtocol, live_split, supports_protocol
from tests.unit.gateway.arbitrary import (
    clusters_named,
    endpoint_lists,
    first_match,
    gateway_settings,
    names,
    versions,
)

GRPC = "/inference.GRPCInferenceService/"
ENDPOINT = EndpointRoute(
    name="m1",
    arms=(
        RevisionTarget(version="1", replicas=("unix:/run/1.sock",), weight=90),
        RevisionTarget(version="2", replicas=("unix:/run/2.sock",), weight=10),
        RevisionTarget(version="3", replicas=("unix:/run/3.sock",), weight=0),
    ),
    timeout_s=2.0,
)
SNAPSHOT = build_snapshot(gateway_settings(), [ENDPOINT])
EMPTY = build_snapshot(gateway_settings(), [])


def _serves(route: dict[str, Any], endpoint: EndpointRoute, protocol: CallProtocol) -> bool:
    """Whether a route answers for all of an endpoint: its live arms, or says why not."""
    split = live_split(endpoint)
    if not split:
        return bool(route["direct_response"]["status"] == 503)
    if not all(supports_protocol(arm, protocol) for arm, _ in split):
        return bool(route["direct_response"]["status"] == 404)
    named = list(dict.fromkeys(clusters_named(route)))
    return named == list(dict.fromkeys(cluster_name(endpoint.name, arm.key) for arm, _ in split))


KEYS = st.sampled_from([{}, {"x-user": "u"}, {"x-headrace-unit": "u"}])


@given(endpoint_lists(), names, st.sampled_from(["", "/infer", "/ready", "/config"]), KEYS)
def test_a_path_reaches_the_endpoint_it_names_and_no_other(
    endpoints: list[EndpointRoute], name: str, rest: str, keys: dict[str, str]
) -> None:
    known = {endpoint.name: endpoint for endpoint in endpoints}
    snapshot = build_snapshot(gateway_settings(), endpoints)

    for path, protocol in (
        (f"/v2/models/{name}{rest}", CallProtocol.V2),
        (f"/v1/models/{name}", CallProtocol.V1),
        (f"/v1/models/{name}:predict", CallProtocol.V1),
    ):
        route = first_match(snapshot, path, keys)
        if name in known:
            assert route["name"] == name
            only_openai = known[name].serves_openai and not any(
                supports_protocol(arm, CallProtocol.V1) for arm in known[name].arms
            )
            if only_openai and path == f"/v1/models/{name}":
                assert route["direct_response"]["status"] == 200
                continue
            assert _serves(route, known[name], protocol)
        else:
            assert route["name"] == "unknown-model"


@given(endpoint_lists(), names, KEYS)
def test_a_plain_path_reaches_the_endpoint_it_names_if_that_has_an_upstream(
    endpoints: list[EndpointRoute], name: str, keys: dict[str, str]
) -> None:
    known = {e.name: e for e in endpoints if any(arm.upstream for arm in e.arms)}
    snapshot = build_snapshot(gateway_settings(), endpoints)

    route = first_match(snapshot, f"/endpoints/{name}/any/path", keys)

    if name in known:
        assert route["name"] == name
        assert _serves(route, known[name], CallProtocol.PLAIN)
        assert route.get("route", {}).get("prefix_rewrite", "/") == "/"
    else:
        assert route["name"] == "unknown-path"


@given(endpoint_lists(), names, versions)
def test_a_versioned_path_reaches_that_revision_or_none(
    endpoints: list[EndpointRoute], name: str, version: str
) -> None:
    arms = {(e.name, r.version): r for e in endpoints for r in e.arms if not r.role}
    snapshot = build_snapshot(gateway_settings(), endpoints)

    route = first_match(snapshot, f"/v2/models/{name}/versions/{version}/infer")
    over_grpc = first_match(
        snapshot, f"{GRPC}ModelInfer", {"x-model": f"{name}~{version}"}, grpc=True
    )

    arm = arms.get((name, version))
    for found, protocol in ((route, CallProtocol.V2), (over_grpc, CallProtocol.GRPC)):
        if arm is None:
            assert found["name"] in {"unknown-model", "unknown-version"}
        elif not supports_protocol(arm, protocol):
            assert found["direct_response"]["status"] == 404
        elif arm.is_live:
            assert list(clusters_named(found)) == [cluster_name(name, version)]
        else:
            assert found["direct_response"]["status"] == 503


@given(endpoint_lists(), names, KEYS)
def test_a_grpc_call_reaches_the_endpoint_it_names_and_no_other(
    endpoints: list[EndpointRoute], name: str, keys: dict[str, str]
) -> None:
    known = {endpoint.name: endpoint for endpoint in endpoints}
    snapshot = build_snapshot(gateway_settings(), endpoints)

    route = first_match(snapshot, f"{GRPC}ModelInfer", {"x-model": name, **keys}, grpc=True)

    if name in known:
        assert _serves(route, known[name], CallProtocol.GRPC)
    else:
        assert route["name"] == "unknown-model"


@given(endpoint_lists(), names, KEYS)
def test_a_held_endpoint_waits_in_the_control_plane_if_nobody_lives(
    endpoints: list[EndpointRoute], name: str, keys: dict[str, str]
) -> None:
    sleeping = {e.name for e in endpoints if e.held and not live_split(e)}
    settings = gateway_settings(control_address="unix:/run/control.sock")
    snapshot = build_snapshot(settings, endpoints)

    for path in (f"/v2/models/{name}/infer", f"/v1/models/{name}:predict"):
        route = first_match(snapshot, path, keys)
        held = list(clusters_named(route)) == ["control"]
        assert held == (name in sleeping)
        if held:
            assert route["route"]["prefix_rewrite"].startswith(f"/held/{name}/v")
            assert "request_headers_to_add" not in route


@given(endpoint_lists(), names, KEYS)
def test_a_paused_endpoint_refuses_every_request_and_others_do_not(
    endpoints: list[EndpointRoute], name: str, keys: dict[str, str]
) -> None:
    paused = [replace(e, paused=True) if e.name == name else e for e in endpoints]
    settings = gateway_settings(control_address="unix:/run/control.sock")
    before, after = build_snapshot(settings, endpoints), build_snapshot(settings, paused)
    paths = [f"/v2/models/{name}/infer", f"/v1/models/{name}:predict", f"/v2/models/{name}/ready"]
    paths += [
        f"/v2/models/{name}/versions/{arm.version}/infer"
        for endpoint in endpoints
        for arm in endpoint.arms
        if endpoint.name == name and not arm.role
    ]
    refusals = [first_match(after, path, keys) for path in paths]
    refusals.append(first_match(after, f"{GRPC}ModelInfer", {"x-model": name, **keys}, grpc=True))

    for refusal in refusals if any(e.name == name for e in endpoints) else ():
        assert refusal["direct_response"]["status"] == 503
        assert f"'{name}' is paused" in str(refusal["direct_response"])
        [header] = refusal["response_headers_to_add"]
        assert header["header"] == {"key": "retry-after", "value": "30"}
    for other in {endpoint.name for endpoint in endpoints} - {name}:
        path = f"/v2/models/{other}/infer"
        assert first_match(after, path, keys) == first_match(before, path, keys)


def test_traffic_is_split_by_weight_and_a_revision_of_weight_0_gets_none() -> None:
    route = first_match(SNAPSHOT, "/v2/models/m1/infer")

    clusters = route["route"]["weighted_clusters"]["clusters"]
    assert [(c["name"], c["weight"]) for c in clusters] == [("m1~1", 90), ("m1~2", 10)]
    pinned = first_match(SNAPSHOT, "/v2/models/m1/versions/3/infer")
    assert pinned["route"]["cluster"] == "m1~3"


def test_a_revision_without_replicas_gives_its_share_to_the_others() -> None:
    endpoint = EndpointRoute(
        name="m",
        arms=(
            RevisionTarget(version="1", replicas=("10.0.0.1:1",), weight=50),
            RevisionTarget(version="2", replicas=(), weight=50),
        ),
    )
    snapshot = build_snapshot(gateway_settings(), [endpoint])

    assert first_match(snapshot, "/v2/models/m/infer")["route"]["cluster"] == "m~1"


def test_http_routes_have_a_timeout_and_grpc_routes_a_stream_duration_never_both() -> None:
    http = first_match(SNAPSHOT, "/v2/models/m1/infer")["route"]
    grpc = first_match(SNAPSHOT, f"{GRPC}ModelInfer", {"x-model": "m1"}, grpc=True)["route"]

    assert (http["timeout"], "max_stream_duration" in http) == ("2.500s", False)
    assert ("timeout" in grpc, grpc["max_stream_duration"]) == (
        False,
        {"max_stream_duration": "2.500s", "grpc_timeout_header_max": "2.500s"},
    )


def test_an_endpoint_without_a_timeout_may_stay_silent_for_an_hour() -> None:
    endpoint = EndpointRoute(
        name="m", arms=(RevisionTarget(version="1", replicas=("10.0.0.1:1",), weight=100),)
    )

    route = first_match(build_snapshot(gateway_settings(), [endpoint]), "/v2/models/m")["route"]

    assert (route["timeout"], route["idle_timeout"]) == ("0.000s", "3600.000s")


def test_a_long_timeout_is_not_cut_by_the_idle_timeout() -> None:
    endpoint = EndpointRoute(
        name="m",
        arms=(RevisionTarget(version="1", replicas=("10.0.0.1:1",), weight=100),),
        timeout_s=900.0,
    )

    route = first_match(build_snapshot(gateway_settings(), [endpoint]), "/v2/models/m")["route"]

    assert route["idle_timeout"] == "930.000s"


def test_an_endpoint_called_stats_does_not_hide_the_statistics() -> None:
    endpoint = EndpointRoute(name="stats", arms=ENDPOINT.arms)
    snapshot = build_snapshot(gateway_settings(), [endpoint])

    assert first_match(snapshot, "/v2/models/stats")["name"] == "statistics"
    assert first_match(snapshot, "/v2/models/stats/infer")["name"] == "stats"


def test_statistics_over_all_models_come_from_the_control_plane_if_it_has_an_address() -> None:
    snapshot = build_snapshot(gateway_settings(control_address="127.0.0.1:8080"), [ENDPOINT])
    rpc = f"{GRPC}ModelStatistics"

    assert first_match(snapshot, "/v2/models/stats")["route"]["cluster"] == "control"
    assert first_match(snapshot, rpc, grpc=True)["route"]["cluster"] == "control"
    assert first_match(SNAPSHOT, "/v2/models/stats")["route"]["cluster"] == "replicas"
    assert first_match(SNAPSHOT, rpc, grpc=True)["route"]["cluster"] == "replicas"


def test_the_model_list_stands_in_the_route_table_whatever_its_length() -> None:
    endpoints = [EndpointRoute(name=f"endpoint-{i}", arms=()) for i in range(1000)]
    snapshot = build_snapshot(gateway_settings(), endpoints)

    for path in ("/v1/models", "/v2/models"):
        body = first_match(snapshot, path)["direct_response"]["body"]["inline_string"]
        assert json.loads(body) == {"models": sorted(e.name for e in endpoints)}
        limit = snapshot.routes["max_direct_response_body_size_bytes"]
        assert isinstance(limit, int)
        assert len(body) <= limit


def test_a_gateway_without_endpoints_is_live_but_not_ready() -> None:
    assert first_match(EMPTY, "/v2/health/live")["direct_response"]["status"] == 200
    assert first_match(EMPTY, "/v2/health/ready")["direct_response"]["status"] == 503


def test_repository_verbs_are_refused_and_say_where_they_work() -> None:
    for route in (
        first_match(SNAPSHOT, "/v2/repository/models/m1/load"),
        first_match(SNAPSHOT, f"{GRPC}RepositoryModelLoad", grpc=True),
    ):
        assert route["direct_response"]["status"] == 403
        assert "management port" in route["direct_response"]["body"]["inline_string"]


def test_streams_are_refused_and_say_where_they_work() -> None:
    route = first_match(SNAPSHOT, f"{GRPC}ModelStreamInfer", grpc=True)

    assert "--grpc-port" in route["direct_response"]["body"]["inline_string"]


def test_only_grpc_calls_that_may_name_a_model_enter_lua() -> None:
    assert "typed_per_filter_config" not in first_match(SNAPSHOT, "/v2/models/m1/infer")
    for rpc in ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        route = first_match(SNAPSHOT, f"{GRPC}{rpc}", grpc=True)
        assert "headrace.select" in route["typed_per_filter_config"]
    server = first_match(SNAPSHOT, f"{GRPC}ServerLive", grpc=True)
    assert "headrace.select" not in server["typed_per_filter_config"]


def test_a_rpc_path_without_a_grpc_content_type_is_not_found() -> None:
    assert first_match(SNAPSHOT, f"{GRPC}ModelInfer")["name"] == "unknown-path"


@given(endpoint_lists(), names, KEYS)
def test_invocations_of_a_named_endpoint_reach_it(
    endpoints: list[EndpointRoute], name: str, keys: dict[str, str]
) -> None:
    known = {endpoint.name: endpoint for endpoint in endpoints}
    snapshot = build_snapshot(gateway_settings(), endpoints)

    route = first_match(snapshot, f"/endpoints/{name}/invocations", keys)

    if name in known:
        assert route["name"] == name
        assert _serves(route, known[name], CallProtocol.PLAIN)
    else:
        assert route["name"] == "unknown-path"


@given(endpoint_lists(), KEYS)
def test_invocations_without_a_name_reach_the_only_endpoint(
    endpoints: list[EndpointRoute], keys: dict[str, str]
) -> None:
    route = first_match(build_snapshot(gateway_settings(), endpoints), "/invocations", keys)

    if len(endpoints) != 1:
        assert route["direct_response"]["status"] == 404
        return
    (endpoint,) = endpoints
    assert _serves(route, endpoint, CallProtocol.PLAIN)
    if "route" in route and not any(arm.upstream for arm in endpoint.arms):
        assert route["route"]["prefix_rewrite"] == f"/endpoints/{endpoint.name}/invocations"


def test_ping_is_the_readiness_of_the_replicas() -> None:
    assert first_match(SNAPSHOT, "/ping") == {
        **first_match(SNAPSHOT, "/v2/health/ready"),
        "match": {"path": "/ping"},
    }
