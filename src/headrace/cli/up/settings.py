"""Settings of a control plane as options of `headrace up` and `headrace control`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import (
    ROWS_INDEPENDENT_HELP,
    Artifacts,
    Home,
    Host,
    LogFormat,
    LogFormatOption,
    LogLevel,
    StateUrl,
    check_log_level,
    option,
    setting,
)
from headrace.core import FailedPreconditionError
from headrace.core.gateways import MAX_BEHIND_S

if TYPE_CHECKING:
    from headrace.control.base.agents_settings import AgentsSettings
    from headrace.control.base.settings import ControlSettings, OidcSettings
    from headrace.core.spec.access import TlsSpec


class OnSigterm(StrEnum):
    """Effect of SIGTERM on the processes of a system."""

    LEAVE = "leave"
    STOP = "stop"


class GatewayPlace(StrEnum):
    """Location of the gateway."""

    LOCAL = "local"
    REMOTE = "remote"
    NONE = "none"


def _show_all(context: typer.Context, is_requested: bool) -> None:  # noqa: FBT001  # typer's signature for callbacks
    if is_requested:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]  # options have it
        typer.echo(context.get_help())
        raise typer.Exit


_port = partial(setting, min=0, max=65535)
_file = partial(setting, dir_okay=False)
_more = partial(setting, hidden=True)
_more_file = partial(_file, hidden=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options of `headrace up` for a model file; not valid with a spec."""

    name: Annotated[
        str | None, option("Endpoint name of a model file.", shown="from the file name")
    ] = None
    replicas: Annotated[int | None, option("Replicas of a model file.", min=1, shown="1")] = None
    slo_p99: Annotated[
        str | None,
        option(
            "p99 latency target of a model file, such as 150ms (`slo.latency_s` of the spec). "
            "With --max-replicas, replicas are added above it.",
            metavar="DURATION",
        ),
    ] = None
    max_replicas: Annotated[
        int | None,
        option(
            "Maximum replicas when scaling a model file by load (`autoscale.max_replicas` of "
            "the spec).",
            min=1,
            max=1024,
        ),
    ] = None
    rows_independent: Annotated[
        bool,
        option(
            f"{ROWS_INDEPENDENT_HELP} For a model file (`batching.rows_independent` of the spec).",
            "--rows-independent",
            hidden=True,
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """Options of a control plane; only `--help-all` shows the hidden ones."""

    host: Host = None
    http_port: Annotated[
        int | None, _port("Port for HTTP and gRPC; 0 picks a free port, also below.", shown="8000")
    ] = None
    grpc_port: Annotated[
        int | None,
        _port("Second port for HTTP and gRPC, where gRPC clients expect it.", shown="8001"),
    ] = None
    metrics_port: Annotated[int | None, _port("Port for /metrics.", shown="8002")] = None
    admin_port: Annotated[
        int | None, _port("Port for the management API and console.", shown="8080")
    ] = None
    admin_host: Annotated[
        str,
        _more(
            "Address of the management API and metrics; a non-loopback address needs "
            "--admin-tls-cert."
        ),
    ] = "127.0.0.1"
    admin_tls_cert: Annotated[
        Path | None, _more_file("Certificate (PEM) that encrypts the management API and metrics.")
    ] = None
    admin_tls_key: Annotated[
        Path | None, _more_file("Private key of that certificate (PEM, mode 0600).")
    ] = None
    insecure_admin: Annotated[
        bool,
        _more(
            "Allow the management API on a non-loopback address without encryption, for example "
            "behind a proxy that encrypts."
        ),
    ] = False
    admin_token_file: Annotated[
        Path | None,
        _more_file(
            "File with the admin token, read at the start, instead of one that the first start "
            "creates."
        ),
    ] = None
    allowed_hosts: Annotated[
        list[str] | None,
        _more(
            "Additional hostname of the management API, besides localhost and addresses; may be "
            "repeated.",
            "--allowed-host",
            envvar="HEADRACE_ALLOWED_HOSTS",
            metavar="NAME",
        ),
    ] = None
    gateway: Annotated[
        GatewayPlace,
        _more(
            "Gateway mode: an Envoy on this machine and any remote `headrace gateway` (local), "
            "remote gateways only (remote), or no gateway (none)."
        ),
    ] = GatewayPlace.LOCAL
    agents_host: Annotated[
        str,
        _more("Address to listen on for remote gateways, with --agents-tls-cert."),
    ] = "127.0.0.1"
    agents_port: Annotated[
        int,
        _port(
            "Port for `headrace gateway` (mutual TLS); 0 picks a free port, also below.",
            hidden=True,
        ),
    ] = 8443
    agents_limits_port: Annotated[
        int, _port("Port of the rate limit service for remote gateways (mutual TLS).", hidden=True)
    ] = 8444
    agents_tls_cert: Annotated[
        Path | None,
        _more_file("Certificate (PEM) of the listener for remote gateways; enables it."),
    ] = None
    agents_tls_key: Annotated[
        Path | None, _more_file("Private key of that certificate (PEM, mode 0600).")
    ] = None
    agents_tls_client_ca: Annotated[
        Path | None,
        _more_file(
            "CA certificates (PEM) that verify remote gateways. Gateways receive private keys "
            "of the system, so use a CA that signs only gateways."
        ),
    ] = None
    agents_allow: Annotated[
        list[str] | None,
        _more(
            "Allowed gateway, by its certificate's name; a trailing * matches any suffix. May "
            "be repeated.",
            metavar="NAME",
            shown="every gateway with a certificate of that CA",
        ),
    ] = None
    agents_revoked: Annotated[
        Path | None,
        _more_file(
            "File with SHA-256 fingerprints of revoked gateway certificates, one per line; "
            "reloaded when it changes."
        ),
    ] = None
    gateway_max_behind_s: Annotated[
        float,
        _more(
            "How long replicas are kept for a gateway that does not apply new routes.",
            min=0.1,
            max=3600,
        ),
    ] = MAX_BEHIND_S
    gateway_lost_after_s: Annotated[
        float,
        _more("Silence of a gateway after which it counts as lost.", min=1.0, max=86400),
    ] = 30.0
    gateway_url: Annotated[
        str,
        _more(
            "URL of remote gateways to display to users.",
            metavar="URL",
            shown="the local gateway's URL",
        ),
    ] = ""
    state_url: StateUrl = ""
    artifacts: Artifacts = ""
    prometheus_url: Annotated[
        str,
        _more(
            "Prometheus that scrapes this system, for data older than the day of history stored "
            "here. References as in --state-url.",
            metavar="URL",
        ),
    ] = ""
    prometheus_matchers: Annotated[
        str,
        _more(
            'Matchers of this system\'s series in that Prometheus, such as job="headrace".',
            metavar="PROMQL",
            shown="all series",
        ),
    ] = ""
    oidc_file: Annotated[
        Path | None,
        _more_file("YAML file with the OIDC login settings below, and more."),
    ] = None
    oidc_issuer: Annotated[
        str,
        _more(
            "Issuer URL of the OpenID Connect provider for user login.",
            metavar="URL",
            shown="no user login",
        ),
    ] = ""
    oidc_client_id: Annotated[str, _more("OIDC client ID.")] = ""
    oidc_client_secret: Annotated[
        str,
        _more(
            "OIDC client secret: ${NAME} from the environment or file:/PATH; not the secret "
            "itself.",
            metavar="REFERENCE",
            shown="a public client",
        ),
    ] = ""
    oidc_redirect_url: Annotated[
        str,
        _more(
            "OIDC redirect URL: https://NAME/auth/callback, as registered with the provider.",
            metavar="URL",
        ),
    ] = ""
    oidc_role: Annotated[
        list[str] | None,
        _more(
            "Roles of an OIDC group: ml-team=operator, or audit=viewer:fraud. May be repeated.",
            envvar="HEADRACE_OIDC_ROLES",
            metavar="GROUP=ROLE",
        ),
    ] = None
    model_root: Annotated[
        list[Path] | None,
        _more(
            "Directory from which operators may deploy models by path over the management API; "
            "elsewhere only admins may. Callers must not be able to create links in it. May be "
            "repeated.",
            envvar="HEADRACE_MODEL_ROOTS",
            metavar="DIR",
        ),
    ] = None
    on_sigterm: Annotated[
        OnSigterm | None,
        _more(
            "SIGTERM leaves gateway, replicas and stream workers running for the next `headrace "
            "up` (leave), or drains and stops them (stop), as in containers, where they end with "
            "the control plane. Ctrl-C and `headrace down` always stop them.",
            shown="leave; stop for `headrace control`",
        ),
    ] = None
    log_format: LogFormatOption = None
    log_level: LogLevel = "info"
    home: Home = DEFAULT_HOME
    help_all: Annotated[
        bool, option("Show all options and exit.", "--help-all", is_eager=True, callback=_show_all)
    ] = False

    def settings(self, spec: dict[str, Any] | None) -> "ControlSettings":
        """Return the settings of a control plane that serves `spec`; None is the stored state.

        Raises:
            typer.BadParameter: Options contradict each other, or need others.
        """
        from headrace.control import ControlSettings
        from headrace.control.base.settings import absolute_reference
        from headrace.registry import check_artifacts_url

        return ControlSettings(
            home=str(self.home.absolute()),
            spec=spec,
            host=self.host,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            metrics_port=self.metrics_port,
            admin_port=self.admin_port,
            admin_host=self.admin_host,
            allowed_hosts=tuple(host.lower() for host in self.allowed_hosts or ()),
            admin_tls=tls_settings("--admin-tls", self.admin_tls_cert, self.admin_tls_key),
            insecure_admin=self.insecure_admin,
            admin_token_file=str(self.admin_token_file.absolute()) if self.admin_token_file else "",
            gateway=self.gateway.value,
            agents=self._agents(),
            state_url=absolute_reference(self.state_url),
            artifacts=check_artifacts_url(self.artifacts) if self.artifacts else "",
            # Whether this control plane allows models that run code, whatever its spec says.
            allow_code=os.environ.get("HEADRACE_ALLOW_CODE", "").lower() in {"1", "true", "yes"},
            model_roots=tuple(str(root.absolute()) for root in self.model_root or ()),
            console="headrace.console:build_console",
            prometheus_url=absolute_reference(self.prometheus_url),
            prometheus_matchers=self.prometheus_matchers,
            oidc=oidc_settings(
                self.oidc_file,
                issuer=self.oidc_issuer,
                client_id=self.oidc_client_id,
                client_secret=self.oidc_client_secret,
                redirect_url=self.oidc_redirect_url,
                roles=self.oidc_role or (),
            ),
            log_format=str(self.log_format or LogFormat.TEXT),
            log_level=check_log_level(self.log_level),
            leaves_running=self.on_sigterm is not OnSigterm.STOP,
        )

    def _agents(self) -> "AgentsSettings | None":
        """Return the listener for remote gateways; None without one."""
        from headrace.control.base.agents_settings import AgentsSettings
        from headrace.core.spec.access import TlsSpec

        files = {
            "--agents-tls-cert": self.agents_tls_cert,
            "--agents-tls-key": self.agents_tls_key,
            "--agents-tls-client-ca": self.agents_tls_client_ca,
        }
        paths = [str(path.absolute()) for path in files.values() if path is not None]
        if not paths:
            return None
        if len(paths) < len(files):
            missing = [flag for flag, path in files.items() if path is None]
            first = next(flag for flag, path in files.items() if path is not None)
            raise typer.BadParameter(f"needs {' and '.join(missing)}", param_hint=first)
        certificate, key, client_ca = paths
        return AgentsSettings(
            tls=TlsSpec(
                certificate_file=certificate,
                key_file=key,
                client_ca_file=client_ca,
                require_client_certificate=True,
            ),
            host=self.agents_host,
            port=self.agents_port,
            limits_port=self.agents_limits_port,
            allow=tuple(self.agents_allow or ()),
            revoked_file="" if self.agents_revoked is None else str(self.agents_revoked.absolute()),
            max_behind_s=self.gateway_max_behind_s,
            lost_after_s=self.gateway_lost_after_s,
            gateway_url=self.gateway_url.rstrip("/"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTlsOptions:
    """Options of the encryption of the gateway's ports."""

    tls_cert: Annotated[
        Path | None,
        _file(
            "Certificate chain (PEM) that encrypts the gateway's ports.",
            shown="the spec's gateway.tls",
        ),
    ] = None
    tls_key: Annotated[Path | None, _file("Private key of the certificate (PEM, mode 0600).")] = (
        None
    )
    client_ca: Annotated[
        Path | None, _more_file("CA certificates (PEM) that verify client certificates.")
    ] = None
    require_client_cert: Annotated[
        bool,
        option("Require a client certificate.", "--require-client-cert", hidden=True),
    ] = False

    def settings(self) -> "TlsSpec | None":
        """Return the settings; None leaves them to the spec.

        Raises:
            typer.BadParameter: An option needs others.
        """
        return tls_settings(
            "--tls",
            self.tls_cert,
            self.tls_key,
            self.client_ca,
            require_client=self.require_client_cert,
        )


def tls_settings(
    flag: str,
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None = None,
    *,
    require_client: bool = False,
) -> "TlsSpec | None":
    """Return the TLS settings of `flag-cert`, `flag-key` and the client certificate flags."""
    from headrace.core.spec.access import TlsSpec

    if certificate is None or key is None:
        if certificate is not None or key is not None:
            present, other = ("cert", "key") if certificate is not None else ("key", "cert")
            msg = f"{flag}-{present} needs {flag}-{other}"
            raise typer.BadParameter(msg, param_hint=f"{flag}-{present}")
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
    """Return the OIDC settings; flags and variables take precedence over the file. None if unset.

    Raises:
        BadParameter: A setting is missing, or cannot be used.
        FailedPreconditionError: The file cannot be read.
    """
    import msgspec  # only here

    from headrace.control.base.settings import OidcSettings, absolute_reference

    values = {
        "issuer": issuer,
        "client_id": client_id,
        "client_secret": client_secret,
        "redirect_url": redirect_url,
        "roles": tuple(roles),
    }
    document = {} if file is None else _read(file)
    document |= {name: value for name, value in values.items() if value}
    if not document:
        return None
    if missing := [name for name in _NEEDED if not document.get(name)]:
        flags = ", ".join(f"--oidc-{name.replace('_', '-')}" for name in missing)
        msg = f"OIDC login also needs {flags}"
        raise typer.BadParameter(msg)
    document["client_secret"] = absolute_reference(str(document.get("client_secret", "")))
    try:
        return msgspec.convert(document, OidcSettings)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error), param_hint="--oidc-file") from error


def _read(file: Path) -> dict[str, Any]:
    from headrace.core.spec.yaml import read_yaml  # only here

    try:
        document = read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}"
        raise FailedPreconditionError(msg) from error
    if document.mistakes or not isinstance(document.value, dict):
        reason = "; ".join(map(str, document.mistakes)) or "it has no settings"
        raise typer.BadParameter(f"{file}: {reason}", param_hint="--oidc-file")
    return document.value
