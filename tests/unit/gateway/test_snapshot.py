import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    RevisionTarget,
    Snapshot,
    SnapshotBuilder,
    arm_of,
    build_snapshot,
)
from headrace.gateway.clusters import cluster_name, stat_name
from headrace.gateway.publisher import documents_of, plan
from headrace.gateway.snapshot import (
    CLUSTERS,
    KINDS,
    LISTENERS,
    ROUTES,
    ResourceFile,
    inline_bootstrap,
    read_document,
)
from tests.unit.gateway.arbitrary import (
    clusters_named,
    endpoint_lists,
    gateway_settings,
    mirrors_named,
    names,
    plain,
    routes_of,
    versions,
)


def _snapshot(endpoints: list[EndpointRoute]) -> Snapshot:
    return build_snapshot(gateway_settings(), endpoints)


def _defined(document: ResourceFile) -> set[str]:
    return {cluster["name"] for cluster in json.loads(document.text)["resources"]}


def _named(document: ResourceFile) -> set[str]:
    (table,) = json.loads(document.text)["resources"]
    (host,) = table["virtual_hosts"]
    return {
        name for route in host["routes"] for name in (*clusters_named(route), *mirrors_named(route))
    }


def _composed(cluster: dict[str, Any]) -> list[str]:
    """The clusters that a cluster with fallbacks sends requests to."""
    config = cluster.get("cluster_type", {}).get("typed_config", {})
    return [part["name"] for part in config.get("clusters", [])]


@given(endpoint_lists())
def test_a_snapshot_never_names_a_missing_cluster(endpoints: list[EndpointRoute]) -> None:
    snapshot = _snapshot(endpoints)

    defined = {cluster["name"] for cluster in plain(snapshot.clusters)}
    routes = routes_of(snapshot)
    named = {name for route in routes for name in (*clusters_named(route), *mirrors_named(route))}
    named |= {name for cluster in plain(snapshot.clusters) for name in _composed(cluster)}
    assert named <= defined
    assert len(defined) == len(snapshot.clusters)


@pytest.mark.parametrize("weight", [0, 100])
def test_an_endpoint_whose_only_live_version_has_no_weight_has_its_fallback(weight: int) -> None:
    upstream = UpstreamSpec(url="http://10.0.0.9", protocol=UpstreamProtocol.OPENAI)
    live = RevisionTarget(version="1", replicas=(), weight=weight, upstream=upstream)
    empty = RevisionTarget(version="2", replicas=(), weight=100 - weight, openai=True)
    first = EndpointRoute(name="a", arms=(live, empty), fallback="m")
    snapshot = _snapshot([first, EndpointRoute(name="m", arms=(replace(live, weight=100),))])

    composed = {c["name"]: _composed(c) for c in plain(snapshot.clusters) if _composed(c)}
    assert composed == ({"a~1~fallback": ["a~1", "m~1"]} if weight else {"a~~fallback": ["m~1"]})
    named = {name for route in routes_of(snapshot) for name in clusters_named(route)}
    assert set(composed) <= named


@given(endpoint_lists())
def test_no_cluster_is_empty_and_every_weight_is_positive(
    endpoints: list[EndpointRoute],
) -> None:
    snapshot = _snapshot(endpoints)

    for cluster in plain(snapshot.clusters):
        if names := _composed(cluster):
            assert len(names) == len(set(names))
            continue
        (locality,) = cluster["load_assignment"]["endpoints"]
        assert locality["lb_endpoints"]
    for route in routes_of(snapshot):
        weighted = route.get("route", {}).get("weighted_clusters", {}).get("clusters", [])
        assert all(cluster["weight"] > 0 for cluster in weighted)
        assert sum(cluster["weight"] for cluster in weighted) <= 100


@given(endpoint_lists(), endpoint_lists())
def test_between_two_snapshots_no_route_loses_its_cluster(
    before: list[EndpointRoute], after: list[EndpointRoute]
) -> None:
    now, wanted = documents_of(_snapshot(before)), documents_of(_snapshot(after))

    for step in plan(now, wanted):
        now[step.kind] = step.document
        assert _named(now[ROUTES]) <= _defined(now[CLUSTERS])

    assert now == wanted


@given(st.lists(endpoint_lists(), max_size=4))
def test_a_snapshot_built_from_the_one_before_is_as_one_from_nothing(
    states: list[list[EndpointRoute]],
) -> None:
    settings = gateway_settings()
    builder = SnapshotBuilder(settings)

    for endpoints in states:
        built = documents_of(builder.build(endpoints))
        assert built == documents_of(build_snapshot(settings, endpoints))
        for kind, document in built.items():
            read = read_document(document.text)
            assert (read, read.clusters) == (document, document.clusters), kind


def test_only_what_changed_is_built_again() -> None:
    one, two = EndpointRoute(name="m", arms=()), EndpointRoute(name="n", arms=())
    builder = SnapshotBuilder(gateway_settings())

    before = builder.build([one, two]).parts
    after = builder.build([one, replace(two, timeout_s=1.0)]).parts

    assert before[0] is after[0]
    assert before[1] is not after[1]


@given(endpoint_lists())
def test_publishing_the_same_snapshot_replaces_no_file(endpoints: list[EndpointRoute]) -> None:
    documents = documents_of(_snapshot(endpoints))

    assert plan(documents, documents) == []


@given(endpoint_lists())
def test_a_change_of_replicas_leaves_the_listeners_alone(endpoints: list[EndpointRoute]) -> None:
    """A changed listener drains its connections."""
    steps = plan(documents_of(_snapshot([])), documents_of(_snapshot(endpoints)))

    assert LISTENERS not in {step.kind for step in steps}


@given(endpoint_lists())
def test_a_document_is_read_back_as_it_was_written(endpoints: list[EndpointRoute]) -> None:
    for document in documents_of(_snapshot(endpoints)).values():
        assert read_document(document.text) == document


def test_every_resource_in_a_file_carries_its_type() -> None:
    snapshot = _snapshot([])
    for kind in KINDS:
        for resource in json.loads(snapshot.document(kind).text)["resources"]:
            assert resource["@type"].endswith(kind.type_name)


def test_two_endpoints_of_one_name_are_refused() -> None:
    endpoint = EndpointRoute(name="m", arms=())

    with pytest.raises(InvalidArgumentError, match="duplicate endpoint names: m"):
        _snapshot([endpoint, endpoint])


@given(names, versions, st.sampled_from(["", "~baseline"]))
def test_a_metric_names_its_arm_without_a_dot(name: str, version: str, role: str) -> None:
    stat = stat_name(cluster_name(name, version + role))

    assert "." not in stat
    assert arm_of(stat) == (name, version + role)


def test_only_a_server_of_openai_in_a_replica_gets_a_connection_per_request() -> None:
    arm = RevisionTarget(version="1", replicas=("unix:/r/a.sock",), weight=100, openai=True)
    clusters = plain(_snapshot([EndpointRoute(name="m", arms=(arm,))]).clusters)

    options = {
        cluster["name"]: each["common_http_protocol_options"].get("max_requests_per_connection")
        for cluster in clusters
        for each in cluster["typed_extension_protocol_options"].values()
        if "common_http_protocol_options" in each
    }
    assert options == {"m~1": None, "m~1~openai": 1, "replicas": None}


def test_a_metric_of_another_cluster_names_no_arm() -> None:
    assert arm_of("replicas") is None


def test_both_ports_speak_the_same_and_are_not_shared_with_other_processes() -> None:
    callers, *_ = plain(_snapshot([]).listeners)

    (more,) = callers["additional_addresses"]
    ports = [each["address"]["socket_address"]["port_value"] for each in (callers, more)]
    assert ports == [8000, 8001]
    assert not callers["enable_reuse_port"]


def test_without_an_access_log_none_is_configured() -> None:
    settings = gateway_settings(access_log=False, http_port=1, grpc_port=1)
    listener, *_ = plain(build_snapshot(settings, []).listeners)

    (network_filter,) = listener["filter_chains"][0]["filters"]
    loggers = [logger["name"] for logger in network_filter["typed_config"]["access_log"]]
    assert loggers == [
        "headrace_arm.us",
        "headrace_arm.us",
        "headrace_arm.ms",
        "headrace_arm.dead",
        "headrace_arm.token",
        "headrace_arm.length",
        "headrace_arm.failed",
        "headrace_rest.us",
        "headrace_rest.us",
        "headrace_rest.ms",
        "headrace.refusals",
        "headrace_tokens.unknown",
        "headrace_tokens.first_token_us",
        "headrace_tokens.per_token_us",
    ]


def test_the_window_takes_the_largest_message_that_the_body_limit_allows() -> None:
    settings = gateway_settings(max_body_bytes=50 << 20)
    listener = plain(build_snapshot(settings, []).listeners)[0]

    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["http2_protocol_options"]["initial_stream_window_size"] > 50 << 20


def test_the_inline_form_needs_no_other_file() -> None:
    settings = gateway_settings()
    config = plain(inline_bootstrap(settings, build_snapshot(settings, [])))

    assert "dynamic_resources" not in config
    inline = json.dumps(config["static_resources"])
    assert '"rds"' not in inline
    assert "config_discovery" not in inline


def test_only_this_user_enters_by_the_socket_where_nobody_is_asked() -> None:
    _, own, shadow, verify = plain(_snapshot([]).listeners)

    assert own["address"]["pipe"]["mode"] == 0o600
    assert verify["address"]["pipe"]["mode"] == 0o600
    assert "headrace.identify" not in _filters_of(own)
    assert _filters_of(verify) == {"headrace.jwt", "headrace.router"}
    assert "address" not in shadow  # within Envoy
    assert _filters_of(shadow) == _filters_of(own)


def _filters_of(listener: dict[str, Any]) -> set[str]:
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return {one["name"] for one in manager["http_filters"]}


@pytest.mark.parametrize(
    ("addresses", "is_checked"),
    [
        (("unix:/run/a.sock",), False),
        (("127.0.0.1:9000", "[::1]:9000"), False),
        (("10.1.0.7:8000",), True),
        (("127.0.0.1:9000", "[fd00::7]:8000"), True),
    ],
)
def test_whether_a_replica_is_there_is_tried_where_it_may_be_on_another_host(
    addresses: tuple[str, ...], *, is_checked: bool
) -> None:
    revision = RevisionTarget(version="1", replicas=addresses, weight=100)
    snapshot = _snapshot([EndpointRoute(name="m", arms=(revision,))])

    (found,) = (one for one in plain(snapshot.clusters) if one["name"] == cluster_name("m", "1"))
    checks = found.get("health_checks", [])
    # Only the connection: a busy replica answers late, and is not gone.
    assert ["tcp_health_check" in one for one in checks] == [True] * is_checked
