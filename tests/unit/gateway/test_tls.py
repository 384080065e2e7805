from pathlib import Path
from typing import Any

import pytest

from headrace.core import InvalidArgumentError
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec, UpstreamTlsSpec
from headrace.gateway import EndpointRoute, ListenerTls, RevisionTarget, build_snapshot
from headrace.gateway.tls import (
    CERTIFICATE,
    authorities_name,
    certificate_name,
    is_secret_file,
    secret_file,
)
from tests.unit.gateway.arbitrary import gateway_settings, plain


def _sockets(tls: ListenerTls | None) -> list[dict[str, Any] | None]:
    """What each listener's connections pass first."""
    listeners = plain(build_snapshot(gateway_settings(tls=tls), []).listeners)[:2]
    found = [one["filter_chains"][0].get("transport_socket") for one in listeners]
    return [None if one is None else one["typed_config"] for one in found]


def _upstream(url: str, tls: UpstreamTlsSpec | None, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # any field's type
    upstream = UpstreamSpec(url=url, tls=tls, **fields)
    arm = RevisionTarget(version="1", replicas=(), weight=100, upstream=upstream)
    settings = gateway_settings(ca_file=Path("/run/ca.pem"))
    snapshot = build_snapshot(settings, [EndpointRoute(name="m", arms=(arm,))])
    (cluster,) = plain(snapshot.clusters)
    found: dict[str, Any] = cluster["transport_socket"]["typed_config"]
    return found


def test_every_port_is_encrypted_and_the_private_socket_is_not() -> None:
    ports, private = _sockets(ListenerTls())

    assert private is None
    assert ports is not None
    common = ports["common_tls_context"]
    assert common["alpn_protocols"] == ["h2", "http/1.1"]
    (secret,) = common["tls_certificate_sds_secret_configs"]
    path = secret["sds_config"]["path_config_source"]["path"]
    assert (secret["name"], path) == (CERTIFICATE, f"/run/headrace/{secret_file(CERTIFICATE)}")
    assert "validation_context_sds_secret_config" not in common


def test_without_tls_nothing_is_encrypted() -> None:
    assert _sockets(None) == [None, None]


@pytest.mark.parametrize("is_required", [True, False])
def test_client_certificates_are_checked_anew_with_every_connection(*, is_required: bool) -> None:
    tls = ListenerTls(takes_clients=True, requires_client=is_required)
    (port, *_) = _sockets(tls)

    assert port is not None
    assert port["require_client_certificate"] is is_required
    assert port["disable_stateless_session_resumption"]
    assert port["disable_stateful_session_resumption"]
    assert port["common_tls_context"]["validation_context_sds_secret_config"]["name"]


@pytest.mark.parametrize(("version", "name"), [("1.2", "TLSv1_2"), ("1.3", "TLSv1_3")])
def test_old_versions_are_not_spoken(version: str, name: str) -> None:
    (port, *_) = _sockets(ListenerTls(min_version=version))

    assert port is not None
    params = port["common_tls_context"]["tls_params"]
    assert params["tls_minimum_protocol_version"] == name
    assert all("GCM" in one or "CHACHA" in one for one in params["cipher_suites"])
    assert all("ECDHE" in one for one in params["cipher_suites"])


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"1\.1"):
        ListenerTls(min_version="1.1")
    with pytest.raises(InvalidArgumentError, match="needs a client CA"):
        ListenerTls(requires_client=True)


def test_an_upstream_is_checked_against_its_own_authorities_and_shown_a_certificate() -> None:
    tls = UpstreamTlsSpec(ca_file="/a/ca.pem", certificate_file="/a/c.pem", key_file="/a/k.pem")
    common = _upstream("https://models.example", tls)["common_tls_context"]

    (shown,) = common["tls_certificate_sds_secret_configs"]
    checks = common["combined_validation_context"]
    assert shown["name"] == certificate_name(tls)
    assert checks["validation_context_sds_secret_config"]["name"] == authorities_name(tls)
    (name,) = checks["default_validation_context"]["match_typed_subject_alt_names"]
    assert (name["san_type"], name["matcher"]["exact"]) == ("DNS", "models.example")


@pytest.mark.parametrize(
    ("server_name", "sni", "kind"),
    [("other.example", "other.example", "DNS"), ("10.0.0.7", None, "IP_ADDRESS")],
)
def test_an_upstream_may_have_another_name_than_its_address(
    server_name: str, sni: str | None, kind: str
) -> None:
    context = _upstream("https://10.0.0.1", UpstreamTlsSpec(server_name=server_name))
    validation = context["common_tls_context"]["validation_context"]

    assert context.get("sni") == sni
    (name,) = validation["match_typed_subject_alt_names"]
    assert (name["san_type"], name["matcher"]["exact"]) == (kind, server_name)
    assert validation["trusted_ca"] == {"filename": "/run/ca.pem"}


@pytest.mark.parametrize(
    ("url", "protocol", "alpn"),
    [
        ("https://m", UpstreamProtocol.V2, "http/1.1"),
        ("grpcs://m:1", UpstreamProtocol.GRPC, "h2"),
    ],
)
def test_an_upstream_hears_in_the_handshake_what_will_be_spoken(
    url: str, protocol: UpstreamProtocol, alpn: str
) -> None:
    common = _upstream(url, None, protocol=protocol)["common_tls_context"]

    assert common["alpn_protocols"] == [alpn]


def test_upstreams_with_the_same_files_share_a_secret() -> None:
    one = UpstreamTlsSpec(ca_file="/a", certificate_file="/b", key_file="/c", server_name="x")
    other = UpstreamTlsSpec(ca_file="/a", certificate_file="/b", key_file="/d")

    assert authorities_name(one) == authorities_name(other)
    assert certificate_name(one) != certificate_name(other)


def test_a_secrets_file_is_known_by_its_name() -> None:
    assert is_secret_file(secret_file("a"))
    assert not is_secret_file("cds.json")
