import json
from pathlib import Path

import msgspec
import pytest

from headrace.control.agents.bundles import SharedSecrets, secret_of
from headrace.control.agents.messages import (
    PROTOCOL,
    Bundle,
    GatewayOptions,
    Poll,
    Secret,
    SharedDirectory,
    decode_bundle,
    decode_instructions,
    decode_poll,
    decode_report,
    encode_instructions,
    with_version,
)
from headrace.control.agents.tls import agent_name, expires_at, may_report_for, name_in, name_with
from headrace.control.base.agents_settings import AgentsSettings, GatewayMode, check_mode
from headrace.control.gateway.activator import HoldLimits
from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.core.spec.access import TlsSpec
from headrace.core.spec.observe import RequestLogSpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.gateway import ApiKey, EndpointRoute, GatewayPolicy, ListenerTls, RevisionTarget
from headrace.gateway.tls import api_key_secret, authorities_secret, certificate_secret
from tests.certificates import Authority

BUNDLE = with_version(
    Bundle(
        version="",
        options=GatewayOptions(
            max_body_bytes=1,
            connections=ConnectionsSpec(max=100),
            access_log=True,
            request_log=RequestLogSpec(),
            tracing=None,
            tls=ListenerTls(min_version="1.3"),
            limits_port=8444,
        ),
        routes=(
            EndpointRoute(
                name="m",
                timeout_s=None,
                arms=(RevisionTarget(version="1", replicas=(), weight=100),),
            ),
        ),
        policy=GatewayPolicy(
            keys=(ApiKey(id="a", name="b", digest="c", scopes=("d",)),), key_sets={"corp": "{}"}
        ),
        secrets=(Secret(name="s", certificates="c", key="k"),),
        holds={"m": HoldLimits(max_held=3, hold_s=2.0)},
        sockets=SharedDirectory(path="/run", device=1, inode=2),
    )
)


def test_a_bundle_arrives_as_it_was_sent() -> None:
    told = decode_instructions(
        encode_instructions("1.0", ask=7, bundle=msgspec.json.encode(BUNDLE))
    )

    assert told.bundle == BUNDLE
    assert told.ask == 7
    assert decode_instructions(encode_instructions("1.0", ask=7, bundle=None)).bundle is None


def test_a_version_is_of_the_content_and_of_nothing_else() -> None:
    again = decode_bundle(msgspec.json.encode(BUNDLE))
    other = msgspec.structs.replace(BUNDLE, holds={})

    assert with_version(again).version == BUNDLE.version
    assert with_version(other).version != BUNDLE.version


@pytest.mark.parametrize("decode", [decode_instructions, decode_poll, decode_report])
@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"null", b"[]", b"[" * 100_000, b'{"protocol":2,"ask":"x"}', b"\xff\xfe", b'"'],
)
def test_what_is_no_message_is_an_error(decode: object, data: bytes) -> None:
    with pytest.raises(HeadraceError):
        decode(data)  # type: ignore[operator]  # one of the decoders


def test_another_protocol_is_told_with_both_versions_and_the_way_out() -> None:
    newer = json.dumps({"protocol": PROTOCOL + 1, "agent": "9.9", "unheard": {"of": 1}}).encode()

    with pytest.raises(
        FailedPreconditionError,
        match=rf"\(9.9\) speaks protocol {PROTOCOL + 1}.*this side {PROTOCOL}",
    ):
        decode_poll(newer)


def test_a_bundle_with_something_unknown_is_refused_not_half_read() -> None:
    document = json.loads(msgspec.json.encode(BUNDLE)) | {"something": 1}

    with pytest.raises(InvalidArgumentError, match="something"):
        decode_bundle(json.dumps(document).encode())


def test_a_secret_does_not_show_its_key() -> None:
    assert "PRIVATE" not in repr(Secret(name="s", certificates="c", key="PRIVATE"))
    assert "PRIVATE" not in f"{BUNDLE.secrets}"


def test_poll_takes_what_an_older_agent_leaves_out() -> None:
    sent = json.dumps({"protocol": PROTOCOL, "agent": "0.1"}).encode()
    assert decode_poll(sent) == Poll(protocol=PROTOCOL, agent="0.1")


def test_secrets_are_told_once_and_forgotten_when_nothing_needs_them() -> None:
    changes: list[int] = []
    secrets = SharedSecrets(on_change=lambda: changes.append(1))
    pair = certificate_secret("gateway", chain="C", key="K")

    secrets.write(pair)
    secrets.write(pair)
    secrets.write(authorities_secret("upstream-a", "A"))

    assert len(changes) == 2
    assert secrets.all() == (
        Secret(name="gateway", certificates="C", key="K"),
        Secret(name="upstream-a", certificates="A"),
    )
    assert secret_of(pair).key == "K"
    key = secret_of(api_key_secret("upstream-b", "sk-1"))
    assert key == Secret(name="upstream-b", certificates="", key="sk-1")
    assert "sk-1" not in repr(key)
    secrets.keep_only(["gateway"])
    assert secrets.has("gateway")
    assert not secrets.has("upstream-a")


def test_a_name_is_read_from_a_certificate_as_from_a_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    word = authority.client("gw-1").certificate.read_bytes()
    uri = authority.client("spiffe://lab/gateways/gw-2").certificate.read_bytes()

    assert name_in(word) == "gw-1"
    assert name_in(uri) == "gw-2"
    assert agent_name({"subject": ((("commonName", "gw-1"),),)}) == "gw-1"
    assert agent_name({"subjectAltName": (("DNS", "gw-3"),)}) == "gw-3"
    assert agent_name({"subjectAltName": (("URI", "spiffe://lab/gw-4"),)}) == "gw-4"
    assert agent_name({}) == ""


def test_a_gateway_speaks_for_itself_and_for_those_with_its_certificate() -> None:
    assert may_report_for("gw", "gw")
    assert may_report_for("gw", "gw/pod-1")
    assert not may_report_for("gw", "gw-2")
    assert not may_report_for("", "")
    assert name_with("gw", "gw") == name_with("gw", "") == "gw"
    assert name_with("gw", "pod-1") == "gw/pod-1"


TLS = TlsSpec(certificate_file="c", key_file="k", client_ca_file="a")


def test_gateways_elsewhere_need_to_be_listened_for_and_signed_for() -> None:
    with pytest.raises(FailedPreconditionError, match="--agents-tls-cert"):
        check_mode("remote", None)
    with pytest.raises(FailedPreconditionError, match="--agents-tls-client-ca"):
        check_mode("local", AgentsSettings(tls=TlsSpec(certificate_file="c", key_file="k")))
    with pytest.raises(FailedPreconditionError, match="one of local, remote, none"):
        check_mode("elsewhere", None)
    assert check_mode("none", None) is GatewayMode.NONE


def test_names_may_be_listed_or_begin_alike() -> None:
    settings = AgentsSettings(tls=TLS, allow=("gw-1", "edge-*"))

    assert [settings.allows(name) for name in ("gw-1", "gw-2", "edge-9", "edge")] == [
        True,
        False,
        True,
        False,
    ]
    assert AgentsSettings(tls=TLS).allows("anybody")


def test_a_certificate_says_until_when_it_holds() -> None:
    assert expires_at({"notAfter": "Jun  1 12:00:00 2030 GMT"}) == 1_906_545_600.0
    assert expires_at({}) is None
