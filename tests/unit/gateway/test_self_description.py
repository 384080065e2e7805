"""Routes by which a gateway describes itself, and browsers' access from other origins."""

import json
from typing import Any

import pytest

from headrace.core.spec.access import CorsSpec, EndpointAccess
from headrace.core.spec.models import GatewaySpec
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.gateway import EndpointRoute, RevisionTarget, Snapshot, build_snapshot
from tests.unit.gateway.arbitrary import first_match, gateway_settings, plain

CORS, IDENTIFY = "headrace.cors", "headrace.identify"
BROWSER = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


def snapshot(*, host: str = "127.0.0.1", **settings: Any) -> Snapshot:  # noqa: ANN401  # any field's type
    arms = (RevisionTarget(version="1", replicas=("unix:/run/1.sock",), weight=100),)
    endpoints = [
        EndpointRoute(name="shown", arms=arms, access=EndpointAccess(public=True)),
        EndpointRoute(name="kept", arms=arms),
    ]
    return build_snapshot(gateway_settings(host=host, **settings), endpoints)


def body_of(route: dict[str, Any]) -> str:
    text: str = route["direct_response"]["body"]["inline_string"]
    return text


def test_the_start_page_is_html_for_browsers_and_json_for_others() -> None:
    page, document = (first_match(snapshot(), "/", headers) for headers in (BROWSER, {}))

    assert '<a href="/docs#kept">' in body_of(page)
    assert json.loads(body_of(document))["endpoints"] == ["kept", "shown"]


def test_a_closed_gateway_is_alive_without_a_key_and_lists_public_endpoints_only() -> None:
    closed = snapshot(host="192.0.2.1")

    for headers in (BROWSER, {}):
        context = first_match(closed, "/", headers)["typed_per_filter_config"][IDENTIFY]
        assert context["filter_context"]["rule"] == "=||"
        assert context["filter_context"]["endpoints"] == "!kept shown"
        assert '"version"' not in context["filter_context"]["head"]
    for path in ("/openapi.json", "/v2/models"):
        context = first_match(closed, path)["typed_per_filter_config"][IDENTIFY]
        assert context["filter_context"]["rule"] == "=||key,jwt,certificate"


def test_pages_come_from_files_and_fit_the_limit_of_replies() -> None:
    routes = plain(snapshot().routes)
    route = first_match(snapshot(), "/docs/swagger-ui-bundle.js")

    headers = {item["header"]["key"]: item["header"]["value"] for item in headers_of(route)}
    assert route["direct_response"]["body"]["filename"].endswith("swagger-ui-bundle.js.gz")
    assert headers["content-encoding"] == "gzip"
    assert routes["max_direct_response_body_size_bytes"] > 400_000


def headers_of(route: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = route["response_headers_to_add"]
    return found


def test_a_gateway_without_the_package_gets_pages_from_replicas() -> None:
    exported = snapshot(has_pages=False)

    assert first_match(exported, "/docs/docs.js")["route"]["cluster"] == "replicas"


def test_an_unknown_path_names_paths_that_exist() -> None:
    for path, near in (("/predict", "/v2/models/NAME/infer"), ("/x", "GET / lists")):
        route = first_match(snapshot(), path)
        assert route["name"] == "unknown-path"
        assert near in body_of(route)


def test_pages_of_other_origins_are_refused_by_default() -> None:
    (host,) = plain(snapshot().routes)["virtual_hosts"]

    assert "typed_per_filter_config" not in host


def test_allowed_origins_apply_to_every_route() -> None:
    cors = CorsSpec(allow_origins=("https://a.example", "https://*.b.example:8443", "*"))
    (host,) = plain(snapshot(cors=cors).routes)["virtual_hosts"]

    context = host["typed_per_filter_config"][CORS]["filter_context"]
    assert context["origins"] == "https://a.example https://*.b.example:8443 *"
    assert context["max_age"] == "600"


@pytest.mark.parametrize(
    "origin",
    ["example.com", "https://example.com/", "https://Example.com", "ftp://a", "https://*", "null"],
)
def test_a_value_that_is_no_origin_is_a_mistake(origin: str) -> None:
    with pytest.raises(SpecError, match="origin"):
        parse_spec({"version": 1, "gateway": {"cors": {"allow_origins": [origin]}}})


def test_origins_are_read_from_the_spec() -> None:
    spec = parse_spec({"version": 1, "gateway": {"cors": {"allow_origins": ["https://a.b:81"]}}})

    assert spec.gateway == GatewaySpec(cors=CorsSpec(allow_origins=("https://a.b:81",)))
