"""A rate limit service on another host is spoken to by mutual TLS, and known by its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.core import InvalidArgumentError
from headrace.gateway import EnvoySettings, LimitsTarget, build_snapshot
from headrace.gateway.filters import http_filters
from headrace.gateway.snapshot import CLUSTERS
from headrace.gateway.tls import LIMITS_TLS, authorities_name, certificate_name


def cluster(tmp_path: Path, host: str) -> dict[str, Any]:
    settings = EnvoySettings(run_dir=tmp_path, limits_target=LimitsTarget(host=host, port=8444))
    document = json.loads(build_snapshot(settings, ()).document(CLUSTERS).text)
    (found,) = [one for one in document["resources"] if one["name"] == "limits"]
    assert isinstance(found, dict)
    return found


def test_it_has_to_show_a_certificate_for_its_address_and_is_shown_ours(tmp_path: Path) -> None:
    found = cluster(tmp_path, "10.0.0.1")
    tls = found["transport_socket"]["typed_config"]["common_tls_context"]
    checked = tls["combined_validation_context"]

    assert found["type"] == "STATIC"
    assert checked["default_validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "IP_ADDRESS", "matcher": {"exact": "10.0.0.1"}}
    ]
    assert checked["validation_context_sds_secret_config"]["name"] == authorities_name(LIMITS_TLS)
    (shown,) = tls["tls_certificate_sds_secret_configs"]
    assert shown["name"] == certificate_name(LIMITS_TLS)
    assert tls["alpn_protocols"] == ["h2"]


def test_a_name_is_looked_up_again_as_dns_says(tmp_path: Path) -> None:
    found = cluster(tmp_path, "control.lan")

    assert found["type"] == "STRICT_DNS"
    assert found["transport_socket"]["typed_config"]["sni"] == "control.lan"


def test_the_filter_that_asks_it_is_there(tmp_path: Path) -> None:
    far = EnvoySettings(run_dir=tmp_path, limits_target=LimitsTarget(host="a", port=1))
    none = EnvoySettings(run_dir=tmp_path)
    names = [{str(one["name"]) for one in http_filters(settings)} for settings in (far, none)]

    assert names[0] - names[1]
    assert (far.has_limits, none.has_limits) == (True, False)


@pytest.mark.parametrize(("host", "port"), [("", 1), ("a b/c", 0), ("a", 70_000)])
def test_what_is_no_place_is_refused(host: str, port: int) -> None:
    with pytest.raises(InvalidArgumentError):
        LimitsTarget(host=host, port=port)
