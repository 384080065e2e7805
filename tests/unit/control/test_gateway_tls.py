"""What the gateway needs to encrypt, and what becomes of routes whose certificates are missing."""

from headrace.control.gateway.routes import gateway_route
from headrace.control.gateway.tls import lacks_secret, listener_files, listener_tls, upstream_files
from headrace.core.spec.access import TlsSpec
from headrace.core.spec.upstream import UpstreamSpec, UpstreamTlsSpec
from headrace.gateway import EndpointRoute, ListenerTls, RevisionTarget
from headrace.gateway.tls import (
    CERTIFICATE,
    CLIENT_AUTHORITIES,
    api_key_name,
    authorities_name,
    certificate_name,
)

PAIR = UpstreamTlsSpec(certificate_file="/c.pem", key_file="/k.pem")
TLS = TlsSpec(certificate_file="/c", key_file="/k", client_ca_file="/ca", min_version="1.3")


def _route(*upstreams: UpstreamTlsSpec | None) -> EndpointRoute:
    arms = tuple(
        RevisionTarget(
            version=str(number),
            weight=100 // len(upstreams),
            replicas=(),
            upstream=UpstreamSpec(url="https://them.example", tls=tls),
        )
        for number, tls in enumerate(upstreams, start=1)
    )
    return EndpointRoute(name="m", timeout_s=None, arms=arms)


def test_a_listener_is_told_what_its_files_mean() -> None:
    assert listener_tls(None) is None
    assert listener_tls(TLS) == ListenerTls(min_version="1.3", takes_clients=True)
    assert [files.name for files in listener_files(TLS)] == [CERTIFICATE, CLIENT_AUTHORITIES]
    assert list(listener_files(None)) == []


def test_upstreams_name_the_files_they_need() -> None:
    both = UpstreamTlsSpec(ca_file="/ca.pem", certificate_file="/c.pem", key_file="/k.pem")
    found = list(upstream_files([_route(None, PAIR, both)]))

    assert [str(files.paths[0]) for files in found] == ["/c.pem", "/ca.pem", "/c.pem"]
    assert [files.is_server for files in found if files.certificate_file and files.key_file] == [
        False,
        False,
    ]
    assert found[0].name == found[2].name
    assert [files.name for files in found[1:]] == [authorities_name(both), certificate_name(both)]


def test_an_upstream_without_its_api_key_gets_no_requests() -> None:
    upstream = UpstreamSpec(url="https://them.example", api_key_file="/key", tls=PAIR)

    assert lacks_secret(upstream, frozenset({api_key_name(upstream)}))
    assert not lacks_secret(upstream, frozenset({"another"}))


def test_an_upstream_without_its_certificate_gets_no_requests() -> None:
    route = _route(None, PAIR)
    missing = frozenset({certificate_name(PAIR)})
    found = gateway_route(route, missing)
    whole = gateway_route(route)

    assert [arm.weight for arm in found.arms] == [100, 0]
    assert [arm.upstream is None for arm in found.arms] == [False, True]
    assert [arm.weight for arm in whole.arms] == [50, 50]
    assert not lacks_secret(None, missing)
    assert not lacks_secret(UpstreamSpec(url="https://them.example"), missing)
