"""Every kind of configuration that the gateway makes is one that Envoy takes."""

import dataclasses
from pathlib import Path
from typing import Any

import certifi
import pytest

from headrace.core.spec.access import AccessSettings, CertificateSpec, EndpointAccess, JwtSpec
from headrace.core.spec.observe import TracingSpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.gateway import (
    ApiKey,
    EndpointRoute,
    EnvoyGateway,
    GatewayPolicy,
    RevisionTarget,
    SnapshotRejectedError,
    build_snapshot,
)
from headrace.gateway.snapshot import ResourceGroup
from tests.e2e.gateway.lab import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


def _revision(version: str, weight: int, *replicas: str) -> RevisionTarget:
    return RevisionTarget(version=version, replicas=replicas, weight=weight)


UDS, TCP, V6 = "unix:/run/a.sock", "127.0.0.1:9000", "[::1]:9001"
ENDPOINTS = {
    "none": [],
    "without revisions": [EndpointRoute(name="m", arms=())],
    "without replicas": [EndpointRoute(name="m", arms=(_revision("1", 100),))],
    "one": [EndpointRoute(name="m", arms=(_revision("1", 100, UDS),), timeout_s=0.0014)],
    "a split": [
        EndpointRoute(
            name="a.b-c_d",
            arms=(_revision("1", 99, UDS, TCP), _revision("2", 1, V6), _revision("3", 0, TCP)),
            timeout_s=86400,
        )
    ],
    "on other hosts": [
        EndpointRoute(name="m", arms=(_revision("1", 100, "10.1.0.7:8000", "10.1.0.8:8000"),))
    ],
    "many": [
        EndpointRoute(name=f"endpoint-{i}", arms=(_revision("1", 100, TCP),)) for i in range(300)
    ],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "one port": {"http_port": 8000, "grpc_port": 8000},
    "no access log": {"access_log": False},
    "tracing": {"tracing": TracingSpec(collector="http://127.0.0.1:4318")},
    "tracing over TLS": {"tracing": TracingSpec(collector="https://collector")},
    "with control": {"control_address": "127.0.0.1:8080"},
    "over a socket": {"control_address": "unix:/run/control.sock", "host": "::1"},
    "smallest": {
        "max_body_bytes": 1,
        "connections": ConnectionsSpec(max=16, max_memory_bytes=128 << 20),
        "max_requests_per_replica": 1,
    },
    "largest": {"max_body_bytes": 2**31 - 1 - (1 << 20), "max_requests_per_replica": 2**31 - 1},
    "json": {"log_format": "json", "log_level": "debug"},
}


@pytest.mark.parametrize("endpoints", ENDPOINTS.values(), ids=ENDPOINTS)
async def test_envoy_takes_every_kind_of_endpoint(lab: Lab, endpoints: list[EndpointRoute]) -> None:
    settings = lab.settings()

    await EnvoyGateway(settings).validate(build_snapshot(settings, endpoints))


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
async def test_envoy_takes_every_setting(lab: Lab, changes: dict[str, Any]) -> None:
    settings = lab.settings(**changes)

    await EnvoyGateway(settings).validate(build_snapshot(settings, ENDPOINTS["a split"]))


KEY_SET = '{"keys":[{"kty":"oct","alg":"HS256","kid":"1","k":"c2VjcmV0"}]}'
POLICIES = {
    "nobody": GatewayPolicy(),
    "a key": GatewayPolicy(
        keys=(ApiKey(id="k", name="n", digest="0" * 64, scopes=("infer:*",), expires_at=1.5),)
    ),
    "keys from a file and from a server": GatewayPolicy(
        access=AccessSettings(
            jwt=(
                JwtSpec(name="a.b", issuer="i", audiences=("x", "y"), jwks_file="/k.json"),
                JwtSpec(
                    name="c", issuer="i", audiences=("x",), jwks_url="https://id.example:444/k?p=1"
                ),
                JwtSpec(name="d", issuer="j", audiences=("x",), jwks_url="http://[::1]/k"),
            ),
            certificates=(CertificateSpec(name="r", dns="*.example", scopes=("infer:m:3",)),),
        ),
        key_sets={"a.b": KEY_SET},
    ),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104  # only validated
async def test_envoy_takes_every_policy(lab: Lab, policy: GatewayPolicy, host: str) -> None:
    settings = lab.settings(host=host, ca_file=Path(certifi.where()))
    endpoints = [
        *ENDPOINTS["a split"],
        EndpointRoute(name="x", arms=(), access=EndpointAccess(any_of=("key", "jwt:c"))),
        EndpointRoute(name="y", arms=(), access=EndpointAccess(public=True)),
    ]

    await EnvoyGateway(settings).validate(build_snapshot(settings, endpoints, policy))


async def test_what_envoy_would_refuse_is_refused_with_its_reason(lab: Lab) -> None:
    settings = lab.settings()
    snapshot = build_snapshot(settings, [])
    wrong = dataclasses.replace(
        snapshot, shared=ResourceGroup([{"name": "x", "type": "NO_SUCH_TYPE"}])
    )

    with pytest.raises(SnapshotRejectedError, match="NO_SUCH_TYPE"):
        await EnvoyGateway(settings).validate(wrong)


async def test_validation_ends_with_the_process_that_asked(lab: Lab) -> None:
    settings = lab.settings(envoy=Path("/bin/false"))

    with pytest.raises(SnapshotRejectedError):
        await EnvoyGateway(settings).validate(build_snapshot(settings, []))
