"""Export of a spec as one Envoy configuration that needs no control plane.

Headrace's gateway reads secrets from files that a control plane writes; here each is a static
secret of the bootstrap, which names the PEM files.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from headrace.control.gateway.tls import listener_tls
from headrace.core.spec.access import AccessSettings, TlsSpec, endpoint_access
from headrace.core.spec.upstream import UpstreamTlsSpec
from headrace.deploy.export import Body, Export, ExportDocument, addresses_of, finish
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import ExportNote, ExportTarget, Loss
from headrace.gateway import (
    EndpointRoute,
    EnvoySettings,
    GatewayPolicy,
    MirrorTarget,
    RevisionTarget,
    build_snapshot,
)
from headrace.gateway.snapshot import inline_bootstrap
from headrace.gateway.tls import (
    CERTIFICATE,
    CLIENT_AUTHORITIES,
    api_key_name,
    authorities_name,
    certificate_name,
)


def inline_secrets(bootstrap: Body, versions: Iterable[Version], tls: TlsSpec | None) -> Body:
    """Return `bootstrap` with static secrets."""
    secrets = {secret["name"]: secret for secret in (*_own(tls), *_of(versions))}
    if not secrets:
        return bootstrap

    def named(part: Body) -> Body | None:
        """Return a secret reference by name only, for Envoy's static secret of that name."""
        is_inlined = "sds_config" in part and part.get("name") in secrets
        return {"name": part["name"]} if is_inlined else None

    body: Body = _replaced(bootstrap, named)
    body["static_resources"]["secrets"] = list(secrets.values())
    return body


def _own(tls: TlsSpec | None) -> Iterator[Body]:
    if tls is None:
        return
    yield _pair(CERTIFICATE, tls.certificate_file, tls.key_file)
    if tls.client_ca_file:
        yield _authorities(CLIENT_AUTHORITIES, tls.client_ca_file)


def _of(versions: Iterable[Version]) -> Iterator[Body]:
    for version in versions:
        if version.upstream is None:
            continue
        if version.upstream.api_key_file:
            key = {"secret": {"filename": version.upstream.api_key_file}}
            yield {"name": api_key_name(version.upstream), "generic_secret": key}
        settings = version.upstream.tls or UpstreamTlsSpec()
        if settings.ca_file:
            yield _authorities(authorities_name(settings), settings.ca_file)
        if settings.certificate_file:
            yield _pair(certificate_name(settings), settings.certificate_file, settings.key_file)


def _pair(name: str, chain: str, key: str) -> Body:
    pair = {"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}
    return {"name": name, "tls_certificate": pair}


def _authorities(name: str, file: str) -> Body:
    return {"name": name, "validation_context": {"trusted_ca": {"filename": file}}}


def _replaced(value: Any, change: Callable[[Body], Body | None]) -> Any:  # noqa: ANN401  # JSON
    """Return `value` with its objects replaced where `change` returns another."""
    if isinstance(value, list):
        return [_replaced(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    other = change(value)
    return {k: _replaced(v, change) for k, v in value.items()} if other is None else other


_DESCRIPTORS: Final = "descriptor_set"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOptions:
    """Options of the target."""

    replicas: Mapping[tuple[str, str], Sequence[str]]
    """IP:PORT or unix:/PATH of the replicas, by endpoint and version."""

    descriptors: bytes
    """Descriptor set of the gRPC services, as written by protoc."""

    run_dir: Path = Path("/run/headrace-envoy")
    """Directory of Envoy's sockets and log; it must exist, accessible to Envoy's user only."""

    ca_file: Path | None = None
    """Authorities that verify upstreams' certificates."""


def envoy(facts: ExportFacts, options: EnvoyOptions) -> Export:
    """Export a bootstrap for `envoy -c FILE`: listeners, routes, clusters and scripts in one file.

    Raises:
        NotExpressibleError: The spec needs a control plane.
        InvalidArgumentError: A version's address is missing, or is a host name.
    """
    addresses = addresses_of(facts, options.replicas)
    losses = list(_implied_access_losses(facts))
    settings = _settings(facts, options)
    routes = [_route(endpoint, addresses) for endpoint in facts.endpoints]
    access = AccessSettings(
        jwt=facts.spec.auth.jwt,
        certificates=facts.spec.auth.certificates,
        tiers=facts.spec.tiers,
    )
    policy = GatewayPolicy(access=access, key_sets=facts.key_sets)
    bootstrap = inline_bootstrap(settings, build_snapshot(settings, routes, policy))
    body: Body = json.loads(msgspec.json.encode(bootstrap))
    encoded = base64.b64encode(options.descriptors).decode()

    def inline_descriptors(part: Body) -> Body | None:
        """Return the gRPC services' descriptors in place of the file they come from."""
        if _DESCRIPTORS not in part:
            return None
        return {**part, _DESCRIPTORS: {"inline_bytes": encoded}}

    body = _replaced(body, inline_descriptors)
    versions = (version for endpoint in facts.endpoints for version in endpoint.versions)
    body = inline_secrets(body, versions, facts.spec.gateway.tls)
    return finish(
        ExportTarget.ENVOY,
        facts,
        [ExportDocument(name="envoy", body=body)],
        losses=losses,
        notes=[
            ExportNote(
                f"{options.run_dir}: must exist, accessible to Envoy's user only (mode 0700)"
            )
        ],
    )


def _settings(facts: ExportFacts, options: EnvoyOptions) -> EnvoySettings:
    gateway = facts.spec.gateway
    return EnvoySettings(
        run_dir=options.run_dir,
        host=gateway.host,
        http_port=gateway.http_port,
        grpc_port=gateway.grpc_port,
        max_body_bytes=gateway.max_body_bytes,
        connections=gateway.connections,
        cors=gateway.cors,
        has_pages=False,
        access_log=gateway.access_log,
        request_log=gateway.request_log,
        tracing=facts.spec.tracing,
        ca_file=options.ca_file,
        tls=listener_tls(gateway.tls),
    )


def _route(endpoint: Endpoint, addresses: Mapping[tuple[str, str], Sequence[str]]) -> EndpointRoute:
    spec = endpoint.spec
    mirror = None
    if endpoint.mirror:
        mirror = MirrorTarget(key=endpoint.mirror, percent=endpoint.mirror_percent)
    return EndpointRoute(
        name=endpoint.name,
        arms=tuple(
            RevisionTarget(
                version=version.number,
                replicas=()
                if version.upstream
                else tuple(addresses[endpoint.name, version.number]),
                weight=version.weight,
                upstream=version.upstream,
                encodes=bool(version.artifact and version.artifact.encodes),
            )
            for version in endpoint.versions
        ),
        timeout_s=spec.timeout_s,
        sticky=None if spec.sticky is None else replace(spec.sticky, salt=endpoint.name),
        mirror=mirror,
        access=endpoint_access(spec.access),
        aliases=spec.aliases,
        limits=spec.limits,
        slo_latency_s=None if spec.slo is None else spec.slo.latency_s,
        request_log=spec.request_log,
        fallback=spec.fallback,
    )


def _implied_access_losses(facts: ExportFacts) -> Iterator[Loss]:
    """Yield losses of endpoints without `access`, which beyond loopback require API keys.

    This Envoy has no keys. That is safe, so it is a loss only if no other method is configured.
    """
    auth = facts.spec.auth
    if facts.spec.gateway.host.startswith("127.") or auth.jwt or auth.certificates:
        return
    for endpoint in facts.endpoints:
        if endpoint.spec.access is None:
            yield Loss(
                f"{endpoint.location}.access",
                "is not set, so Headrace requires authentication beyond loopback, and this "
                "would refuse "
                "all callers: API keys are in a control plane's state",
                "set `access: public`, or add `auth`",
            )
