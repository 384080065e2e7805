from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import FailedPreconditionError
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import EndpointRoute, RevisionTarget, build_snapshot
from headrace.gateway.scripts import RenameTarget, rename_source
from headrace.gateway.settings import UpstreamUrl, parse_url
from headrace.gateway.upstreams import authorities
from tests.unit.gateway.arbitrary import gateway_settings, plain


def _cluster(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  # any field's type
    upstream = UpstreamSpec(**{"url": "http://10.0.0.1:8000", **fields})
    arm = RevisionTarget(version="1", replicas=(), weight=100, upstream=upstream)
    endpoint = EndpointRoute(name="a.b", arms=(arm,))
    settings = gateway_settings(ca_file=Path("/run/ca.pem"))
    (cluster,) = plain(build_snapshot(settings, [endpoint]).clusters)
    found: dict[str, Any] = cluster
    return found


@pytest.mark.parametrize(
    ("url", "kind", "host", "port"),
    [
        ("http://10.0.0.1", "STATIC", "10.0.0.1", 80),
        ("http://[::1]:9/x", "STATIC", "::1", 9),
        ("https://models.example", "STRICT_DNS", "models.example", 443),
        ("grpc://triton:8001", "STRICT_DNS", "triton", 8001),
    ],
)
def test_names_are_looked_up_and_addresses_are_not(
    url: str, kind: str, host: str, port: int
) -> None:
    cluster = _cluster(url=url)

    assert (cluster["type"], cluster["name"], cluster["alt_stat_name"]) == (kind, "a.b~1", "a+b~1")
    (locality,) = cluster["load_assignment"]["endpoints"]
    (only,) = locality["lb_endpoints"]
    assert only["endpoint"]["address"]["socket_address"] == {"address": host, "port_value": port}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"protocol": UpstreamProtocol.V2}, "/v2/health/ready"),
        ({"protocol": UpstreamProtocol.V1}, "/v1/models/a.b"),
        ({"protocol": UpstreamProtocol.V1, "model": "x"}, "/v1/models/x"),
        ({"protocol": UpstreamProtocol.TORCHSERVE}, "/ping"),
        ({"protocol": UpstreamProtocol.OPENAI}, "/v1/models"),
        ({"protocol": UpstreamProtocol.OPENAI, "health_path": "/up"}, "/up"),
        ({"protocol": UpstreamProtocol.HTTP, "health_path": "/up"}, "/up"),
        ({"url": "http://10.0.0.1/pre/"}, "/pre/v2/health/ready"),
    ],
)
def test_health_is_asked_where_the_protocol_has_it(fields: dict[str, Any], path: str) -> None:
    (check,) = _cluster(**fields)["health_checks"]

    assert check["http_health_check"]["path"] == path


def test_a_server_of_openai_that_wants_a_key_is_healthy() -> None:
    (check,) = _cluster(protocol=UpstreamProtocol.OPENAI)["health_checks"]

    ranges = check["http_health_check"]["expected_statuses"]
    assert [status for each in ranges for status in range(each["start"], each["end"])] == [
        200,
        401,
        403,
    ]
    assert check["no_traffic_interval"] == check["interval"] == "2.000s"


def test_a_grpc_server_is_asked_by_its_health_service_over_http2() -> None:
    cluster = _cluster(url="grpc://10.0.0.1:8001", protocol=UpstreamProtocol.GRPC)

    (check,) = cluster["health_checks"]
    assert "grpc_health_check" in check
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert options["explicit_http_config"] == {"http2_protocol_options": {}}


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": UpstreamProtocol.HTTP},
        {"health_path": None},
        {"protocol": UpstreamProtocol.GRPC, "health_path": None},
    ],
    ids=str,
)
def test_where_nothing_is_asked_every_server_counts_as_healthy(fields: dict[str, Any]) -> None:
    assert _cluster(**fields)["health_checks"] == []


@pytest.mark.parametrize(
    ("protocol", "idle"), [(UpstreamProtocol.OPENAI, "4.000s"), (UpstreamProtocol.GRPC, "60.000s")]
)
def test_an_idle_connection_is_closed_before_common_servers_close_it(
    protocol: UpstreamProtocol, idle: str
) -> None:
    (options,) = _cluster(protocol=protocol)["typed_extension_protocol_options"].values()

    assert options["common_http_protocol_options"]["idle_timeout"] == idle


def test_as_many_requests_as_the_owner_allows() -> None:
    (limits,) = _cluster(max_requests=7)["circuit_breakers"]["thresholds"]

    assert (limits["max_requests"], limits["max_connections"]) == (7, 7)


@pytest.mark.parametrize(
    ("url", "sni", "name"),
    [
        ("https://models.example:8443", "models.example", ("DNS", "models.example")),
        ("grpcs://10.0.0.1", None, ("IP_ADDRESS", "10.0.0.1")),
    ],
)
def test_tls_is_verified_for_the_very_name_in_the_address(
    url: str, sni: str | None, name: tuple[str, str]
) -> None:
    config = _cluster(url=url)["transport_socket"]["typed_config"]

    assert config.get("sni") == sni
    validation = config["common_tls_context"]["validation_context"]
    assert validation["trusted_ca"] == {"filename": "/run/ca.pem"}
    (wanted,) = validation["match_typed_subject_alt_names"]
    assert (wanted["san_type"], wanted["matcher"]["exact"]) == name


def test_without_tls_no_authority_is_needed() -> None:
    assert "transport_socket" not in _cluster()


def test_the_machines_authorities_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))

    assert authorities(gateway_settings()) == bundle


def test_a_machine_without_authorities_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    bundle = tmp_path / "ca.pem"

    with pytest.raises(FailedPreconditionError, match="SSL_CERT_FILE"):
        authorities(gateway_settings(), bundles=[str(bundle)])
    bundle.touch()
    assert authorities(gateway_settings(), bundles=[str(bundle)]) == bundle


@pytest.mark.parametrize(
    ("url", "server", "authority"),
    [
        ("http://h", UpstreamUrl("http", "h", 80), "h"),
        ("http://H:80/", UpstreamUrl("http", "h", 80), "h"),
        ("https://h:8443/a/b/", UpstreamUrl("https", "h", 8443, "/a/b"), "h:8443"),
        ("grpc://[::1]:9", UpstreamUrl("grpc", "::1", 9), "[::1]:9"),
    ],
)
def test_an_address_is_taken_apart(url: str, server: UpstreamUrl, authority: str) -> None:
    assert parse_url(url) == server
    assert server.authority == authority


@given(st.text(max_size=20))
def test_no_name_ends_its_string_in_the_script(text: str) -> None:
    source = rename_source(RenameTarget(endpoint=text or "m", authority="h"))

    line = next(line for line in source.splitlines() if line.startswith("local TARGETS"))
    quoted = line.partition('endpoint = "')[2].partition('"')[0]
    digits = quoted.split("\\")[1:]
    assert bytes(int(three) for three in digits) == (text or "m").encode()
