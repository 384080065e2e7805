"""Where does an Envoy without a control plane find certificates? In the files that the spec names.

Our own gateway reads secrets from files that a control plane writes; here each is a static secret
of the bootstrap's, which names the PEM files themselves.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from headrace.core.spec_access import TlsSpec
from headrace.deploy.export import Body
from headrace.deploy.facts import Version
from headrace.gateway.tls import (
    CERTIFICATE,
    CLIENT_AUTHORITIES,
    authorities_name,
    certificate_name,
)


def inline_secrets(bootstrap: Body, upstreams: Iterable[Version], tls: TlsSpec | None) -> Body:
    """`bootstrap` with its secrets in it."""
    secrets = {secret["name"]: secret for secret in (*_own(tls), *_of(upstreams))}
    if not secrets:
        return bootstrap
    found: Body = _without_sources(bootstrap, frozenset(secrets))
    found["static_resources"]["secrets"] = list(secrets.values())
    return found


def _own(tls: TlsSpec | None) -> Iterator[Body]:
    if tls is None:
        return
    yield _pair(CERTIFICATE, tls.certificate_file, tls.key_file)
    if tls.client_ca_file:
        yield _authorities(CLIENT_AUTHORITIES, tls.client_ca_file)


def _of(versions: Iterable[Version]) -> Iterator[Body]:
    for version in versions:
        settings = None if version.upstream is None else version.upstream.tls
        if settings is None:
            continue
        if settings.ca_file:
            yield _authorities(authorities_name(settings), settings.ca_file)
        if settings.certificate_file:
            yield _pair(certificate_name(settings), settings.certificate_file, settings.key_file)


def _pair(name: str, chain: str, key: str) -> Body:
    pair = {"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}
    return {"name": name, "tls_certificate": pair}


def _authorities(name: str, file: str) -> Body:
    return {"name": name, "validation_context": {"trusted_ca": {"filename": file}}}


def _without_sources(value: Any, names: frozenset[str]) -> Any:  # noqa: ANN401  # JSON, whatever it holds
    """`value` with secrets named alone: Envoy then takes the static one of that name."""
    if isinstance(value, list):
        return [_without_sources(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    if "sds_config" in value and value.get("name") in names:
        return {"name": value["name"]}
    return {key: _without_sources(item, names) for key, item in value.items()}
