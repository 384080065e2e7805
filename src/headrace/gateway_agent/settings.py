"""Settings of an agent, and of the Envoy that it starts."""

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from headrace.control.agents.messages import GatewayOptions
from headrace.core import InvalidArgumentError
from headrace.core.spec.access import TlsSpec
from headrace.gateway import EnvoySettings, LimitsTarget


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway: flags and environment resolved. Ports are the gateway's own.

    `control`: where the control plane listens for agents, `https://HOST:PORT`. `tls`: what is shown
    there, and who signs what is shown here. `name`: empty for what the certificate says. `dir`:
    where everything lies that it serves from; nobody else may use it. `keeps_envoy`: whether Envoy
    goes on when the agent is told to end. `url`: how callers reach it, for people to see.
    """

    control: str
    tls: TlsSpec
    name: str
    dir: Path
    host: str = "0.0.0.0"  # noqa: S104  # callers come from elsewhere, and have to show who they are
    http_port: int = 8000
    grpc_port: int = 8001
    admin_host: str = "0.0.0.0"  # noqa: S104  # health and metrics only
    admin_port: int = 8002
    url: str = ""
    log_format: str = "text"
    log_level: str = "INFO"
    drain_timeout_s: float = 30.0
    keeps_envoy: bool = False


def control_address(url: str) -> tuple[str, int]:
    """Host and port of the control plane.

    Raises:
        InvalidArgumentError: The URL is not `https://HOST[:PORT]`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 8443
    except ValueError as error:
        raise InvalidArgumentError(f"--control {url!r} is no URL: {error}") from error
    is_bare = not parts.path.strip("/") and not parts.query and parts.username is None
    if parts.scheme != "https" or not parts.hostname or not is_bare:
        raise InvalidArgumentError(
            f"--control {url!r} is not https://HOST:PORT: agents speak mutual TLS only"
        )
    return parts.hostname, port


def gateway_settings(
    settings: AgentSettings, options: GatewayOptions, *, run_dir: Path, control_socket: Path
) -> EnvoySettings:
    """What Envoy is started with: what all gateways have in common, and what is this one's own.

    Raises:
        InvalidArgumentError: They do not fit together.
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
        access_log=options.access_log,
        request_log=options.request_log,
        tracing=options.tracing,
        tls=options.tls,
        log_format="json" if settings.log_format == "json" else "text",
    )
