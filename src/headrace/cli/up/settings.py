"""Settings of a control plane as options of `headrace up` and `headrace control`."""


# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast
from headrace.cli.options import file_option, port_option
from headrace.core import FailedPreconditionError

if TYPE_CHECKING:
    from headrace.control.agents.settings import AgentsSettings
    from headrace.control.settings import OidcSettings
    from headrace.core.spec_access import TlsSpec


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


AdminHost = Annotated[
    str,
    typer.Option(
        "--admin-host",
        envvar="HEADRACE_ADMIN_HOST",
        help="Address of the management API and metrics; another than this machine's needs "
        "--admin-tls-cert.",
    ),
]
InsecureAdmin = Annotated[
    bool,
    typer.Option(
        "--insecure-admin",
        envvar="HEADRACE_INSECURE_ADMIN",
        help="Let the management API listen beyond this machine in plain text, for instance "
        "behind a proxy that encrypts.",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        envvar="HEADRACE_ALLOWED_HOSTS",
        metavar="NAME",
        help="A name besides localhost and addresses under which the management API is asked; "
        "may be given several times.",
        show_default="none",
    ),
]
ModelRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--model-root",
        envvar="HEADRACE_MODEL_ROOTS",
        metavar="DIR",
        help="A directory below which every operator may name models by path over the management "
        "API; elsewhere only admins may. Callers must not be able to write links there. May be "
        "given several times.",
        show_default="none",
    ),
]
AdminTlsCert = Annotated[
    Path | None,
    file_option(
        "admin-tls-cert", "Encrypt the management API and metrics: their certificate (PEM)."
    ),
]
AdminTlsKey = Annotated[
    Path | None,
    file_option("admin-tls-key", "The private key of that (PEM, mode 0600)."),
]
PrometheusUrl = Annotated[
    str,
    typer.Option(
        "--prometheus-url",
        envvar="HEADRACE_PROMETHEUS_URL",
        metavar="URL",
        help="A Prometheus that scrapes this system: asked for what was longer ago than the "
        "day that is kept here. References as in --state-url.",
        show_default="none",
    ),
]
METRICS_PORT_HELP = "/metrics for Prometheus."
ADMIN_PORT_HELP = "Management API and console."
MetricsPort = Annotated[int, port_option("metrics", METRICS_PORT_HELP)]
AdminPort = Annotated[int, port_option("admin", ADMIN_PORT_HELP)]


def tls_settings(
    flag: str,
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None = None,
    *,
    require_client: bool = False,
) -> "TlsSpec | None":
    """What the flags `flag-cert` and `flag-key`, and those of client certificates, say."""
    from headrace.core.spec_access import TlsSpec

    if certificate is None or key is None:
        if certificate is not None or key is not None:
            given, other = ("cert", "key") if certificate is not None else ("key", "cert")
            msg = f"{flag}-{given} needs {flag}-{other}"
            raise typer.BadParameter(msg, param_hint=f"{flag}-{given}")
        if client_ca is not None or require_client:
            hint = "--client-ca" if client_ca is not None else "--require-client-cert"
            raise typer.BadParameter("needs --tls-cert and --tls-key", param_hint=hint)
        return None
    if require_client and client_ca is None:
        raise typer.BadParameter("needs --client-ca", param_hint="--require-client-cert")
    return TlsSpec(
        certificate_file=str(certificate.absolute()),
        key_file=str(key.absolute()),
        client_ca_file="" if client_ca is None else str(client_ca.absolute()),
        require_client_certificate=require_client,
    )


def env_allows_code() -> bool:
    """Whether this whole control plane takes models that run code, whatever its spec says."""
    return os.environ.get("HEADRACE_ALLOW_CODE", "").lower() in {"1", "true", "yes"}


_NEEDED = ("issuer", "client_id", "redirect_url")


def oidc_settings(
    file: Path | None,
    *,
    issuer: str,
    client_id: str,
    client_secret: str,
    redirect_url: str,
    roles: Sequence[str],
) -> "OidcSettings | None":
    """The settings; a flag, or its variable, wins over the file. None where there are none.

    Raises:
        BadParameter: Something is missing, or cannot be used.
        FailedPreconditionError: The file cannot be read.
    """
    import msgspec  # only here

    from headrace.control.secret_references import absolute_reference  # only here
    from headrace.control.settings import OidcSettings  # only here

    given = {
        "issuer": issuer,
        "client_id": client_id,
        "client_secret": client_secret,
        "redirect_url": redirect_url,
        "roles": tuple(roles),
    }
    document = _read(file) | {name: value for name, value in given.items() if value}
    if not document:
        return None
    if missing := [name for name in _NEEDED if not document.get(name)]:
        flags = ", ".join(f"--oidc-{name.replace('_', '-')}" for name in missing)
        msg = f"logging in by a browser needs also {flags}"
        raise typer.BadParameter(msg)
    document["client_secret"] = absolute_reference(str(document.get("client_secret", "")))
    try:
        return msgspec.convert(document, OidcSettings)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error), param_hint="--oidc-file") from error


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    from headrace.core.spec_yaml import read_yaml  # only here

    try:
        found = read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is no text'}"
        raise FailedPreconditionError(msg) from error
    if found.mistakes or not isinstance(found.value, dict):
        reason = "; ".join(map(str, found.mistakes)) or "it holds no settings"
        raise typer.BadParameter(f"{file}: {reason}", param_hint="--oidc-file")
    return found.value
