import base64
import json
from typing import Any

import pytest

from headrace.core import InvalidArgumentError
from headrace.deploy import EnvoyOptions, LiveEndpoint, NotExpressibleError, VersionShare, envoy
from tests.unit.deploy.specs import REPLICAS, facts_of, split

_TLS = {"certificate_file": "/tls/chain.pem", "key_file": "/tls/key.pem"}


def _config(said: dict[str, Any], **top: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    facts = facts_of(said, **top)
    known = {(e.name, v.number) for e in facts.endpoints for v in e.versions if not v.upstream}
    replicas = {key: value for key, value in REPLICAS.items() if key in known}
    options = EnvoyOptions(replicas=replicas, descriptors=b"\0descriptors")
    return envoy(facts, options).documents[0].body


def test_nothing_is_read_from_a_file_that_a_control_plane_would_write() -> None:
    text = json.dumps(_config({"versions": split(90, 10)}, gateway={"tls": _TLS}))

    assert "path_config_source" not in text
    assert "config_discovery" not in text
    assert base64.b64encode(b"\0descriptors").decode() in text


def test_certificates_come_from_the_files_that_the_spec_names() -> None:
    tls = {**_TLS, "client_ca_file": "/tls/clients.pem"}
    upstream = {"url": "https://m.test", "tls": {"ca_file": "/tls/m.pem"}}
    config = _config({"upstream": upstream}, gateway={"tls": tls})

    secrets = {secret["name"]: secret for secret in config["static_resources"]["secrets"]}
    pair = secrets["gateway"]["tls_certificate"]
    assert pair["private_key"] == {"filename": "/tls/key.pem"}
    trusted = secrets["client-authorities"]["validation_context"]["trusted_ca"]
    assert trusted == {"filename": "/tls/clients.pem"}
    assert len(secrets) == 3


def test_a_split_and_its_shadow_are_routed() -> None:
    shares = tuple(
        VersionShare(version=number, weight=weight, model=f"fraud:{number}")
        for number, weight in (("1", 100), ("2", 0))
    )
    seen = {"fraud": LiveEndpoint(shares=shares, mirror="2", mirror_percent=25)}

    text = json.dumps(_config({}, observed=seen))

    assert '"request_mirror_policies": [{"cluster": "fraud~2"' in text
    assert '"numerator": 25' in text


@pytest.mark.parametrize("address", ["replica.internal:8000", "10.0.0.1", "unix:relative"])
def test_addresses_are_no_names(address: str) -> None:
    options = EnvoyOptions(replicas={("fraud", "2"): [address]}, descriptors=b"")
    with pytest.raises(InvalidArgumentError, match=address.partition(":")[0]):
        envoy(facts_of(), options)


def test_a_gateway_that_could_let_nobody_in_is_refused() -> None:
    with pytest.raises(NotExpressibleError, match=r"endpoints\[0\]\.access: .* refuse all callers"):
        _config({"access": None}, gateway={"host": "0.0.0.0"})  # noqa: S104  # only exported

    assert _config({"access": None})


def test_a_port_has_to_be_said() -> None:
    with pytest.raises(InvalidArgumentError, match="port"):
        _config({}, gateway={"http_port": 0})
