"""Which routes ask who calls: by default all of them, once others than this machine can call."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import given

from headrace.core.spec.access import AccessSettings, EndpointAccess, JwtSpec
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    GatewayPolicy,
    RevisionTarget,
    Snapshot,
    build_snapshot,
)
from headrace.gateway.clusters import CONTROL
from headrace.gateway.filters import CREDENTIALS, HEALTH_CHECK
from tests.unit.gateway.arbitrary import (
    endpoint_lists,
    first_match,
    gateway_settings,
    plain,
    routes_of,
)

IDENTIFY, AUTHORIZE = "headrace.identify", "headrace.authorize"
SELECT = "headrace.select"
CORP = JwtSpec(name="corp", issuer="https://id.example", audiences=("gw",), jwks_file="k")
WITH_CORP = GatewayPolicy(access=AccessSettings(jwt=(CORP,)))
INFER = "/inference.GRPCInferenceService/ModelInfer"


def _endpoint(access: EndpointAccess | None = None) -> EndpointRoute:
    arms = (
        RevisionTarget(version="1", replicas=("unix:/run/1.sock",), weight=100),
        RevisionTarget(version="2", replicas=("unix:/run/2.sock",), weight=0),
    )
    return EndpointRoute(name="fraud", arms=arms, access=access)


def _open(*endpoints: EndpointRoute) -> Snapshot:
    return build_snapshot(gateway_settings(), endpoints)


def _closed(*endpoints: EndpointRoute, policy: GatewayPolicy | None = None) -> Snapshot:
    settings = gateway_settings(host="192.0.2.1")
    return build_snapshot(settings, endpoints, policy or GatewayPolicy())


def _filters(route: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = route.get("typed_per_filter_config", {})
    return found


def _rule(route: dict[str, Any], name: str = IDENTIFY) -> str | None:
    found: str | None = _filters(route).get(name, {}).get("filter_context", {}).get("rule")
    return found


def _passing_on(route: dict[str, Any]) -> Iterator[str]:
    """The clusters that a route sends the caller's credentials to."""
    action = route.get("route", {})
    shared = set(route.get("request_headers_to_remove", ()))
    weighted = action.get("weighted_clusters", {}).get("clusters", ())
    for target in [{"name": action["cluster"]}] if "cluster" in action else weighted:
        if not set(CREDENTIALS) <= shared | set(target.get("request_headers_to_remove", ())):
            yield target["name"]
    for policy in action.get("request_mirror_policies", ()):
        mutations = policy["request_headers_mutations"]
        if not set(CREDENTIALS) <= shared | {change.get("remove") for change in mutations}:
            yield policy["cluster"]


@given(endpoint_lists())
def test_beyond_loopback_every_route_asks_but_health_and_public_endpoints(
    endpoints: list[EndpointRoute],
) -> None:
    public = {e.name for e in endpoints if e.access is not None and e.access.public}

    for route in routes_of(_closed(*endpoints)):
        name, path = str(route["name"]), str(route["match"].get("path", ""))
        is_health = path.startswith("/v2/health/") or path in {"/", "/ping", f"/{HEALTH_CHECK}"}
        # Pages of `/docs` are files without data.
        open_routes = {"unknown-version", "two-hosts", "docs"}
        is_public = name.partition("~")[0] in public or name in open_routes
        is_asked = {IDENTIFY, AUTHORIZE} & set(_filters(route))
        assert is_asked or is_health or is_public, route


@given(endpoint_lists())
def test_whatever_may_come_to_a_guarded_grpc_route_has_the_filters_that_guard_it(
    endpoints: list[EndpointRoute],
) -> None:
    for snapshot in (_open(*endpoints), _closed(*endpoints)):
        routes = routes_of(snapshot)
        if any(_rule(route, AUTHORIZE) for route in routes):
            firsts = [route for route in routes if SELECT in _filters(route)]
            assert firsts
            assert all({IDENTIFY, AUTHORIZE} <= set(_filters(route)) for route in firsts)


def test_on_loopback_nothing_asks_unless_an_endpoint_says_so() -> None:
    routes = routes_of(_open(_endpoint()))

    assert not any({IDENTIFY, AUTHORIZE} & set(_filters(route)) for route in routes)


def test_an_endpoint_that_names_access_asks_on_loopback_too() -> None:
    snapshot = _open(_endpoint(EndpointAccess(any_of=("key", "jwt:corp"))))

    assert _rule(first_match(snapshot, "/v2/models/fraud/infer")) == "fraud||key,jwt:corp"
    assert _rule(first_match(snapshot, "/v2/models")) == "=||"
    assert _rule(first_match(snapshot, "/v2")) is None


def test_an_endpoint_that_is_not_there_asks_as_soon_as_one_that_is_there_does() -> None:
    asked, nobody = _open(_endpoint(EndpointAccess())), _open(_endpoint())

    for path in ("/v2/models/x/infer", "/v1/models/x:predict", "/endpoints/x/a"):
        assert _rule(first_match(asked, path)) == "?||key,jwt,certificate"
        assert _rule(first_match(nobody, path)) is None
    by_grpc = first_match(asked, INFER, {"x-model": "x"}, grpc=True)
    assert _rule(by_grpc, AUTHORIZE) == "?||key,jwt,certificate"


def test_a_version_is_asked_for_by_its_own_name() -> None:
    snapshot = _closed(_endpoint())

    pinned = first_match(snapshot, "/v2/models/fraud/versions/2/infer")
    by_grpc = first_match(snapshot, INFER, {"x-model": "fraud~2"}, grpc=True)
    assert _rule(pinned) == "fraud|2|key,jwt,certificate"
    assert _rule(by_grpc, AUTHORIZE) == "fraud|2|key,jwt,certificate"


def test_what_callers_showed_does_not_travel_to_a_replica() -> None:
    route = first_match(_closed(_endpoint()), "/v2/models/fraud/infer")

    assert list(_passing_on(route)) == []


@given(endpoint_lists())
def test_no_route_passes_credentials_on_to_a_replica(endpoints: list[EndpointRoute]) -> None:
    for snapshot in (_open(*endpoints), _closed(*endpoints)):
        clusters = {str(cluster["name"]): plain(cluster) for cluster in snapshot.clusters}
        for route in routes_of(snapshot):
            for name in set(_passing_on(route)) - {CONTROL}:
                (options,) = clusters[name]["typed_extension_protocol_options"].values()
                assert "headers:remove" in str(options["http_filters"])


@given(endpoint_lists())
def test_only_the_control_plane_may_redirect_a_request(endpoints: list[EndpointRoute]) -> None:
    settings = gateway_settings(control_address="127.0.0.1:8080")
    for route in routes_of(build_snapshot(settings, endpoints)):
        action = route.get("route", {})
        assert action.get("cluster") == CONTROL or "internal_redirect_policy" not in action


def test_an_open_upstream_gets_an_authorization_that_is_not_ours() -> None:
    upstream = UpstreamSpec(url="http://10.0.0.1:8000")
    arm = RevisionTarget(version="1", replicas=(), weight=100, upstream=upstream)
    endpoint = EndpointRoute(name="fraud", arms=(arm,))
    public = replace(endpoint, access=EndpointAccess(public=True))

    for snapshot in (_open(endpoint), _closed(public)):
        route = first_match(snapshot, "/v2/models/fraud/infer")
        assert list(_passing_on(route)) == ["fraud~1"]
    assert list(_passing_on(first_match(_closed(endpoint), "/v2/models/fraud/infer"))) == []


def test_a_held_request_keeps_what_its_caller_showed_for_when_it_comes_back() -> None:
    settings = gateway_settings(host="192.0.2.1", control_address="127.0.0.1:8080")
    held = EndpointRoute(name="fraud", arms=(), held=True)
    route = first_match(build_snapshot(settings, [held]), "/v2/models/fraud/infer")

    assert route["route"]["cluster"] == "control"
    assert _rule(route) is not None
    assert "request_headers_to_remove" not in route


def test_nobodys_message_is_read_where_no_endpoint_is_for_everybody() -> None:
    first = first_match(_closed(_endpoint()), INFER, grpc=True)
    mixed = first_match(_closed(_endpoint(EndpointAccess(public=True))), INFER, grpc=True)

    assert _rule(first) == "+||key,jwt,certificate"
    assert _rule(mixed) == "+"
    assert _rule(mixed, AUTHORIZE) == "||key,jwt,certificate"


def test_a_changed_identity_provider_is_in_the_snapshot_at_once() -> None:
    policy = GatewayPolicy(access=WITH_CORP.access, key_sets={"corp": '{"keys":[]}'})
    configs = plain(list(_closed(policy=policy).filters.values()))

    (jwt, *_) = configs
    provider = jwt["providers"]["corp"]
    assert provider["require_expiration"]
    assert provider["issuer"] == "https://id.example"
    assert provider["local_jwks"] == {"inline_string": '{"keys":[]}'}
