"""TLS of connections and API keys of upstreams, with one file per secret (SDS).

A replaced file is in force within a millisecond and closes no connection. Each holds one secret, as
Envoy accepts no more per file. Certificate and key are in one file, so no reader ever gets one
without the other.
"""

import hashlib
from pathlib import Path
from typing import Final

from headrace.core.spec.upstream import UpstreamSpec, UpstreamTlsSpec
from headrace.gateway.resources import Json, Resource, typed
from headrace.gateway.settings import ListenerTls

_AUTHORIZATION: Final = "authorization"
CERTIFICATE: Final = "gateway"
"""Name of the secret with the gateway's own certificate."""
CLIENT_AUTHORITIES: Final = "client-authorities"
"""Name of the secret with the CAs of client certificates."""
UPSTREAMS: Final = "upstream-"
"""Prefix of the names of secrets for upstreams."""
LIMITS_TLS: Final = UpstreamTlsSpec(ca_file="limits", certificate_file="limits", key_file="limits")
"""Secrets of the rate limit service on another host. No files: names only."""
TYPE: Final = "envoy.extensions.transport_sockets.tls.v3.Secret"

_PREFIX: Final = "sds-"
_SOCKET: Final = "envoy.transport_sockets.tls"
_CONTEXTS: Final = "envoy.extensions.transport_sockets.tls.v3"
_VERSIONS: Final = {"1.2": "TLSv1_2", "1.3": "TLSv1_3"}
# For TLS 1.2: forward secrecy and authenticated encryption only; 1.3 has no other ciphers.
_CIPHERS: Final = (
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
# The first protects recorded traffic from future quantum computers.
_CURVES: Final = ("X25519MLKEM768", "X25519", "P-256", "P-384")


def secret_file(name: str) -> str:
    """Return the file in `run_dir` that holds the secret `name`."""
    return f"{_PREFIX}{name}.json"


def is_secret_file(file: str) -> bool:
    """Whether a file in `run_dir` holds a secret."""
    return file.startswith(_PREFIX) and file.endswith(".json")


def certificate_secret(name: str, *, chain: str, key: str) -> Resource:
    """Return the secret of a certificate with its chain and its private key, all PEM."""
    pair: Resource = {
        "certificate_chain": {"inline_string": chain},
        "private_key": {"inline_string": key},
    }
    return {"name": name, "tls_certificate": pair}


def authorities_secret(name: str, pem: str) -> Resource:
    """Return the secret of the authorities that verify certificates."""
    return {"name": name, "validation_context": {"trusted_ca": {"inline_string": pem}}}


def api_key_secret(name: str, key: str) -> Resource:
    """Return the secret of the API key that requests to an upstream carry."""
    return {"name": name, "generic_secret": {"secret": {"inline_string": key}}}


def api_key_name(upstream: UpstreamSpec) -> str:
    """Return the secret of an upstream's API key; upstreams with one file share it."""
    return f"{UPSTREAMS}api-key-{_digest(upstream.api_key_file)}"


def api_key_filter(
    upstream: UpstreamSpec, run_dir: Path, *, header: str = _AUTHORIZATION
) -> Resource:
    """Return the filter that replaces the caller's `authorization` by the upstream's API key.

    Requests get 401 while there is no key: the caller's own credential must not pass.

    Args:
        header: Header that gets the key, in the place of `authorization`; it lacks while there is
            no key.
    """
    kind = "envoy.extensions.http.injected_credentials.generic.v3.Generic"
    generic: Resource = {
        "credential": _from_file(run_dir, api_key_name(upstream)),
        "header": header,
        "header_value_prefix": "Bearer ",
    }
    credential = typed("envoy.http.injected_credentials.generic", kind, generic)
    return typed(
        "headrace.api_key",
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        {
            "overwrite": True,
            "allow_request_without_credential": header != _AUTHORIZATION,
            "credential": credential,
        },
    )


def authorities_name(tls: UpstreamTlsSpec) -> str:
    """Return the secret of an upstream's authorities; upstreams with one file share it."""
    return f"{UPSTREAMS}authorities-{_digest(tls.ca_file)}"


def certificate_name(tls: UpstreamTlsSpec) -> str:
    """Return the secret of the client certificate for an upstream."""
    return f"{UPSTREAMS}certificate-{_digest(tls.certificate_file, tls.key_file)}"


def downstream_socket(tls: ListenerTls, run_dir: Path) -> Resource:
    """Return a listener's transport: TLS, and by ALPN HTTP/2 or HTTP/1.1."""
    common: dict[str, Json] = {
        "alpn_protocols": ("h2", "http/1.1"),
        "tls_params": {
            "tls_minimum_protocol_version": _VERSIONS[tls.min_version],
            "cipher_suites": _CIPHERS,
            "ecdh_curves": _CURVES,
        },
        "tls_certificate_sds_secret_configs": (_from_file(run_dir, CERTIFICATE),),
    }
    context: dict[str, Json] = {"common_tls_context": common}
    if tls.takes_clients:
        common["validation_context_sds_secret_config"] = _from_file(run_dir, CLIENT_AUTHORITIES)
        context |= {
            "require_client_certificate": tls.requires_client,
            # A resumed session is not verified again: its certificate may have expired since.
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        }
    return typed(_SOCKET, f"{_CONTEXTS}.DownstreamTlsContext", context)


def upstream_socket(
    tls: UpstreamTlsSpec,
    *,
    name: str,
    is_ip: bool,
    protocol: str,
    authorities: Path | None,
    run_dir: Path,
) -> Resource:
    """Return how an upstream is verified, health checks included: its CA and `name`.

    Args:
        name: Required name in its certificate.
        is_ip: Whether the name is an IP address.
        protocol: ALPN protocol; a gRPC server requires `h2`.
        authorities: The machine's, where `tls` names none.
    """
    kind = "IP_ADDRESS" if is_ip else "DNS"
    names: Json = [{"san_type": kind, "matcher": {"exact": name}}]
    common: dict[str, Json] = {
        "alpn_protocols": (protocol,),
        # Envoy's own default for upstreams ends at 1.2.
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
    }
    if authorities is not None:
        common["validation_context"] = {
            "trusted_ca": {"filename": str(authorities)},
            "match_typed_subject_alt_names": names,
        }
    else:
        common["combined_validation_context"] = {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": _from_file(run_dir, authorities_name(tls)),
        }
    if tls.certificate_file:
        common["tls_certificate_sds_secret_configs"] = (_from_file(run_dir, certificate_name(tls)),)
    return typed(
        _SOCKET,
        f"{_CONTEXTS}.UpstreamTlsContext",
        {**({} if is_ip else {"sni": name}), "common_tls_context": common},
    )


def _from_file(run_dir: Path, name: str) -> Resource:
    source: Resource = {
        "path_config_source": {"path": str(run_dir / secret_file(name))},
        "resource_api_version": "V3",
    }
    return {"name": name, "sds_config": source}


def _digest(*paths: str) -> str:
    return hashlib.sha256("\0".join(paths).encode()).hexdigest()[:16]
