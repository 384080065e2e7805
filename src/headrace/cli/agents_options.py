"""How a control plane listens for gateways on other hosts: options that commands share."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import file_option

if TYPE_CHECKING:
    from headrace.control.agents.settings import AgentsSettings


class GatewayPlace(StrEnum):
    """Where requests come in."""

    LOCAL = "local"
    REMOTE = "remote"
    NONE = "none"


GatewayOption = Annotated[
    GatewayPlace,
    typer.Option(
        "--gateway",
        envvar="HEADRACE_GATEWAY",
        help="Where requests come in: by an Envoy here and any `headrace gateway` elsewhere "
        "(local), only by the latter (remote), or by nothing of ours (none).",
    ),
]
AgentsHost = Annotated[
    str,
    typer.Option(
        "--agents-host",
        envvar="HEADRACE_AGENTS_HOST",
        help="Address to listen on for gateways on other hosts, once --agents-tls-cert is given.",
    ),
]
AgentsPort = Annotated[
    int,
    typer.Option(
        "--agents-port",
        envvar="HEADRACE_AGENTS_PORT",
        min=0,
        max=65535,
        help="For `headrace gateway`, by mutual TLS; 0 picks a free one, here and below.",
    ),
]
AgentsLimitsPort = Annotated[
    int,
    typer.Option(
        "--agents-limits-port",
        envvar="HEADRACE_AGENTS_LIMITS_PORT",
        min=0,
        max=65535,
        help="Where those gateways have limits counted that they share, by mutual TLS.",
    ),
]
AgentsCert = Annotated[
    Path | None,
    file_option(
        "agents-tls-cert", "Listen for gateways on other hosts: what they are shown (PEM)."
    ),
]
AgentsKey = Annotated[
    Path | None, file_option("agents-tls-key", "The private key of that (PEM, mode 0600).")
]
AgentsClientCa = Annotated[
    Path | None,
    file_option(
        "agents-tls-client-ca",
        "Who signs the certificates of gateways (PEM): whoever has one reads all that a gateway "
        "needs, private keys included, so let it sign for nobody else.",
    ),
]
AgentsAllow = Annotated[
    list[str] | None,
    typer.Option(
        "--agents-allow",
        envvar="HEADRACE_AGENTS_ALLOW",
        metavar="NAME",
        help="A gateway that may come, by its certificate's name; a * at the end stands for "
        "anything. May be given several times.",
        show_default="all that were signed for",
    ),
]
AgentsRevoked = Annotated[
    Path | None,
    file_option(
        "agents-revoked",
        "SHA-256 fingerprints of gateways' certificates that are believed no more, one in each "
        "line; read again when it changes.",
    ),
]
MaxBehind = Annotated[
    float,
    typer.Option(
        "--gateway-max-behind-s",
        envvar="HEADRACE_GATEWAY_MAX_BEHIND_S",
        min=0.1,
        max=3600,
        help="How long replicas are kept for a gateway that does not take new routes.",
    ),
]
LostAfter = Annotated[
    float,
    typer.Option(
        "--gateway-lost-after-s",
        envvar="HEADRACE_GATEWAY_LOST_AFTER_S",
        min=1.0,
        max=86400,
        help="How long a gateway may be silent before it counts as lost.",
    ),
]
GatewayUrl = Annotated[
    str,
    typer.Option(
        "--gateway-url",
        envvar="HEADRACE_GATEWAY_URL",
        metavar="URL",
        help="How callers reach gateways on other hosts, to be shown to people.",
        show_default="the local one's",
    ),
]


def agents_settings(
    *,
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
    host: str,
    port: int,
    limits_port: int,
    allow: list[str] | None,
    revoked: Path | None,
    max_behind_s: float,
    lost_after_s: float,
    gateway_url: str,
) -> "AgentsSettings | None":
    """What the options say; None where no gateway elsewhere is listened for.

    Raises:
        typer.BadParameter: Some of the files are given and others are not.
    """
    from headrace.control.agents.settings import AgentsSettings
    from headrace.core.spec_access import TlsSpec

    files = {
        "--agents-tls-cert": certificate,
        "--agents-tls-key": key,
        "--agents-tls-client-ca": client_ca,
    }
    missing = [flag for flag, path in files.items() if path is None]
    if len(missing) == len(files):
        return None
    if missing or certificate is None or key is None or client_ca is None:
        given = next(flag for flag, path in files.items() if path is not None)
        raise typer.BadParameter(f"needs {' and '.join(missing)}", param_hint=given)
    return AgentsSettings(
        tls=TlsSpec(
            certificate_file=str(certificate.absolute()),
            key_file=str(key.absolute()),
            client_ca_file=str(client_ca.absolute()),
            require_client_certificate=True,
        ),
        host=host,
        port=port,
        limits_port=limits_port,
        allow=tuple(allow or ()),
        revoked_file="" if revoked is None else str(revoked.absolute()),
        max_behind_s=max_behind_s,
        lost_after_s=lost_after_s,
        gateway_url=gateway_url.rstrip("/"),
    )
