"""Settings of an agent, and of the Envoy that it starts."""

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from headrace.control.agents.messages import GatewayOptions
from headrace.core import InvalidArgumentError
from headrace.core.spec.access import TlsSpec
from headrace.gateway import EnvoySettings, LimitsTarget


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resolved settings of one gateway agent."""

    control: str
    """URL of the control plane's listener for agents, `https://HOST:PORT`."""
    tls: TlsSpec
    """Client certificate, and the CA certificates that verify the control plane."""
    name: str
    """Name of the gateway; empty for the certificate's name."""
    dir: Path
    """Directory with the stored configuration; not shared with another agent."""
    fallback: Path | None = None
    """File with a copy of the configuration, used if none is stored and no control plane answers.
    """
    host: str = "0.0.0.0"  # noqa: S104  # callers come from elsewhere, and have to show who they are
    """Address for callers."""
    http_port: int = 8000
    """Port for HTTP and gRPC."""
    grpc_port: int = 8001
    """Second port for HTTP and gRPC."""
    admin_host: str = "0.0.0.0"  # noqa: S104  # health and metrics only
    """Address for health and metrics."""
    admin_port: int = 8002
    """Port for health and metrics."""
    url: str = ""
    """URL of the gateway, displayed to users."""
    log_format: str = "text"
    """Log format."""
    log_level: str = "INFO"
    """Log level."""
    drain_timeout_s: float = 30.0
    """Drain time for running requests, in seconds."""
    keeps_envoy: bool = False
    """Whether Envoy continues when the agent stops."""


def control_address(url: str) -> tuple[str, int]:
    """Return host and port of the control plane.

    Raises:
        InvalidArgumentError: The URL is not `https://HOST[:PORT]`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 8443
    except ValueError as error:
        raise InvalidArgumentError(f"--control {url!r} is not a URL: {error}") from error
    is_bare = not parts.path.strip("/") and not parts.query and parts.username is None
    if parts.scheme != "https" or not parts.hostname or not is_bare:
        raise InvalidArgumentError(
            f"--control {url!r} is not https://HOST:PORT: agents require mutual TLS"
        )
    return parts.hostname, port


def gateway_settings(
    settings: AgentSettings, options: GatewayOptions, *, run_dir: Path, control_socket: Path
) -> EnvoySettings:
    """Return Envoy's settings: the common ones of all gateways, and this one's own.

    Raises:
        InvalidArgumentError: The settings contradict each other.
    """
    host, _ = control_address(settings.control)
    limits = None
    if options.limits_port is not None:
        limits = LimitsTarget(host=host, port=options.limits_port)
    return EnvoySettings(
        run_dir=run_dir,
        host=settings.host,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        control_address=f"unix:{control_socket}",
        limits_target=limits,
        limits_address=None if limits else options.limits_address,
        max_body_bytes=options.max_body_bytes,
        connections=options.connections,
        cors=options.cors,
        access_log=options.access_log,
        request_log=options.request_log,
        tracing=options.tracing,
        tls=options.tls,
        log_format="json" if settings.log_format == "json" else "text",
    )
