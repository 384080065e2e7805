"""What Envoy is told about traces."""

from typing import Any

import pytest

from headrace.core.spec.observe import TracingSpec
from headrace.gateway.bootstrap import bootstrap
from headrace.gateway.snapshot import build_snapshot
from headrace.gateway.tracing import COLLECTOR, tracing
from tests.unit.gateway.arbitrary import gateway_settings

ON = TracingSpec(collector="http://collector:4318/otlp", sample_ratio=0.25)


def test_without_a_collector_nothing_is_said() -> None:
    settings = gateway_settings()

    assert tracing(None) == {}
    assert "layered_runtime" not in bootstrap(settings)
    assert COLLECTOR not in [each["name"] for each in build_snapshot(settings, ()).clusters]


def test_a_share_is_traced_by_trace_id_and_others_as_their_callers_are() -> None:
    told: Any = tracing(ON)
    config = told["tracing"]["provider"]["typed_config"]
    by_parent = config["sampler"]
    by_id = by_parent["typed_config"]["wrapped_sampler"]["typed_config"]

    assert by_parent["name"].endswith("parent_based")
    assert by_id["sampling_percentage"] == {"numerator": 250_000, "denominator": "MILLION"}
    assert config["http_service"]["http_uri"]["uri"] == "http://collector:4318/otlp/v1/traces"


@pytest.mark.parametrize(
    ("collector", "port", "is_tls"),
    [
        ("http://127.0.0.1:4318", 4318, False),
        ("http://collector", 80, False),
        ("https://collector", 443, True),
    ],
)
def test_the_collector_is_reached_as_its_url_says(
    collector: str, port: int, *, is_tls: bool
) -> None:
    settings = gateway_settings(tracing=TracingSpec(collector=collector))
    found: Any = {each["name"]: each for each in build_snapshot(settings, ()).clusters}[COLLECTOR]
    (place,) = found["load_assignment"]["endpoints"]
    (server,) = place["lb_endpoints"]

    assert server["endpoint"]["address"]["socket_address"]["port_value"] == port
    assert ("transport_socket" in found) == is_tls
