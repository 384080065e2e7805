"""Options that whatever starts a control plane has: `headrace up` and `headrace control`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import file_option, port_option

if TYPE_CHECKING:
    from headrace.core.spec_access import TlsSpec

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
    import os

    return os.environ.get("HEADRACE_ALLOW_CODE", "").lower() in {"1", "true", "yes"}
