"""`headrace gateway`: a gateway on a host of its own, which follows a control plane elsewhere."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import socket
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import (
    LogFormat,
    LogFormatOption,
    LogLevel,
    check_log_level,
    setting,
)

_EVERYWHERE = "0.0.0.0"  # noqa: S104  # callers come from elsewhere, and have to show who they are


def gateway(
    *,
    control: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_CONTROL",
            metavar="URL",
            help="The control plane: https://HOST:PORT of its --agents-port.",
        ),
    ],
    tls_cert: Annotated[
        Path,
        setting(
            "tls-cert",
            "What the control plane is shown: a certificate that names this gateway (PEM). "
            "Replaced files are in force within a second, here and below.",
        ),
    ],
    tls_key: Annotated[Path, setting("tls-key", "Its private key (PEM, mode 0600).")],
    ca_file: Annotated[
        Path, setting("ca-file", "Who signs the control plane's certificate (PEM).")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            envvar="HEADRACE_GATEWAY_NAME",
            help="What the gateway is called, after its certificate's name where the two differ: "
            "several may show one certificate.",
            show_default="the host's name",
        ),
    ] = None,
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            envvar="HEADRACE_DIR",
            file_okay=False,
            help="Where it keeps what it serves, and goes on from without a control plane.",
        ),
    ] = Path(".headrace-gateway"),
    host: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_HOST",
            help="Address for callers. Beyond this machine they have to show who they are, but for "
            "endpoints that are public.",
        ),
    ] = _EVERYWHERE,
    http_port: Annotated[int, setting("http-port", "HTTP and gRPC on one port.")] = 8000,
    grpc_port: Annotated[
        int, setting("grpc-port", "The same again, where gRPC clients expect it.")
    ] = 8001,
    admin_host: Annotated[
        str, typer.Option(envvar="HEADRACE_ADMIN_HOST", help="Address of health and metrics.")
    ] = _EVERYWHERE,
    admin_port: Annotated[
        int, setting("admin-port", "/healthz, /readyz and /metrics of the gateway itself.")
    ] = 8002,
    url: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_GATEWAY_URL",
            metavar="URL",
            help="How callers reach this gateway, to be shown to people.",
        ),
    ] = "",
    drain_timeout_s: Annotated[
        float,
        typer.Option(
            envvar="HEADRACE_DRAIN_TIMEOUT_S",
            min=0,
            help="Seconds that running requests get at the end.",
        ),
    ] = 30.0,
    keep_envoy: Annotated[
        bool,
        typer.Option(
            "--keep-envoy",
            envvar="HEADRACE_KEEP_ENVOY",
            help="Let Envoy go on when the agent ends, to be taken over by the next one.",
        ),
    ] = False,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a gateway on this host, for a control plane on another.

    It keeps an Envoy, follows the control plane by mutual TLS, and reports what was counted. What
    it serves lies in --dir: it goes on without the control plane, after a restart too.

    For example:

        headrace gateway --control https://control.lan:8443 --tls-cert gw-1.pem
        --tls-key gw-1-key.pem --ca-file ca.pem
    """
    from headrace.control.ports import pick_ports
    from headrace.core.spec_access import TlsSpec
    from headrace.gateway_agent import AgentSettings, run

    ports = {"--http-port": http_port, "--grpc-port": grpc_port}
    if 0 in ports.values():
        picked = pick_ports(host, {flag: port for flag, port in ports.items() if port == 0})
        ports |= picked
    status = run(
        AgentSettings(
            control=control,
            tls=TlsSpec(
                certificate_file=str(tls_cert.absolute()),
                key_file=str(tls_key.absolute()),
                client_ca_file=str(ca_file.absolute()),
            ),
            name=socket.gethostname() if name is None else name,
            dir=directory.absolute(),
            host=host,
            http_port=ports["--http-port"],
            grpc_port=ports["--grpc-port"],
            admin_host=admin_host,
            admin_port=admin_port,
            url=url,
            log_format=str(log_format or LogFormat.TEXT),
            log_level=check_log_level(log_level),
            drain_timeout_s=drain_timeout_s,
            keeps_envoy=keep_envoy,
        )
    )
    raise typer.Exit(status)
