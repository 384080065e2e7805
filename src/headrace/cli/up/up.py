"""`headrace up`: from a model file to a running system."""


# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import (
    DEFAULT_HOME,
    ROWS_INDEPENDENT_HELP,
    Artifacts,
    Home,
    Host,
    Json,
    LogFormat,
    LogFormatOption,
    LogLevel,
    StateUrl,
    Tuned,
    check_log_level,
    file_option,
    port_option,
)
from headrace.cli.output import NOT_READY
from headrace.cli.up.settings import (
    ADMIN_PORT_HELP,
    METRICS_PORT_HELP,
    AdminHost,
    AdminTlsCert,
    AdminTlsKey,
    AgentsAllow,
    AgentsCert,
    AgentsClientCa,
    AgentsHost,
    AgentsKey,
    AgentsLimitsPort,
    AgentsPort,
    AgentsRevoked,
    AllowedHosts,
    GatewayOption,
    GatewayPlace,
    GatewayUrl,
    InsecureAdmin,
    LostAfter,
    MaxBehind,
    ModelRoots,
    PrometheusUrl,
    agents_settings,
    env_allows_code,
    tls_settings,
)
from headrace.core.gateways import MAX_BEHIND_S


def up(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL_FILE|MODEL_DIR|headrace.yaml",
            help="A model, a directory with a model or a Triton-style repository, or a spec file.",
            show_default="./headrace.yaml, else what ran last",
        ),
    ] = None,
    *,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", "-d", help="Return when a real request was answered; all goes on."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The endpoint of a model file.", show_default="the file's name"
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", min=1, help="Copies of a model file.", show_default="1"),
    ] = None,
    slo_p99: Annotated[
        str | None,
        typer.Option(
            "--slo-p99",
            metavar="DURATION",
            help="The latency that 99 of 100 requests of a model file are promised, such as 150ms "
            "or 0.15s (`slo.latency_s` of the spec). With --max-replicas, copies are added when "
            "p99 exceeds it.",
            show_default="none",
        ),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            "--max-replicas",
            min=1,
            max=1024,
            help="Scale the copies of a model file by load, from 1 to so many "
            "(`autoscale.max_replicas` of the spec).",
            show_default="their number stays",
        ),
    ] = None,
    rows_independent: Annotated[
        bool,
        typer.Option(
            "--rows-independent",
            help=f"{ROWS_INDEPENDENT_HELP} For a model file (`batching.rows_independent` of the "
            "spec).",
        ),
    ] = False,
    host: Host = None,
    http_port: Annotated[
        int | None,
        port_option(
            "http", "HTTP and gRPC on one port; 0 picks a free one, here and below.", shown="8000"
        ),
    ] = None,
    grpc_port: Annotated[
        int | None,
        port_option("grpc", "The same again, where gRPC clients expect it.", shown="8001"),
    ] = None,
    metrics_port: Annotated[
        int | None, port_option("metrics", METRICS_PORT_HELP, shown="8002")
    ] = None,
    admin_port: Annotated[int | None, port_option("admin", ADMIN_PORT_HELP, shown="8080")] = None,
    admin_host: AdminHost = "127.0.0.1",
    tls_cert: Annotated[
        Path | None,
        file_option(
            "tls-cert",
            "Encrypt the gateway's ports: its certificate with its chain (PEM). Replaced "
            "files are in force within a second, here and below.",
            shown="the spec's gateway.tls",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        file_option("tls-key", "The certificate's private key (PEM, mode 0600)."),
    ] = None,
    client_ca: Annotated[
        Path | None,
        file_option("client-ca", "Take client certificates that these authorities signed (PEM)."),
    ] = None,
    require_client_cert: Annotated[
        bool,
        typer.Option("--require-client-cert", help="Let nobody connect without one."),
    ] = False,
    admin_tls_cert: AdminTlsCert = None,
    admin_tls_key: AdminTlsKey = None,
    insecure_admin: InsecureAdmin = False,
    allowed_hosts: AllowedHosts = None,
    gateway: GatewayOption = GatewayPlace.LOCAL,
    agents_host: AgentsHost = "127.0.0.1",
    agents_port: AgentsPort = 8443,
    agents_limits_port: AgentsLimitsPort = 8444,
    agents_tls_cert: AgentsCert = None,
    agents_tls_key: AgentsKey = None,
    agents_tls_client_ca: AgentsClientCa = None,
    agents_allow: AgentsAllow = None,
    agents_revoked: AgentsRevoked = None,
    gateway_max_behind_s: MaxBehind = MAX_BEHIND_S,
    gateway_lost_after_s: LostAfter = 30.0,
    gateway_url: GatewayUrl = "",
    state_url: StateUrl = "",
    artifacts: Artifacts = "",
    prometheus_url: PrometheusUrl = "",
    oidc_file: Annotated[
        Path | None,
        file_option(
            "oidc-file",
            "How people log in by a browser: a YAML file with the settings below, and more.",
        ),
    ] = None,
    oidc_issuer: Annotated[
        str,
        typer.Option(
            "--oidc-issuer",
            envvar="HEADRACE_OIDC_ISSUER",
            metavar="URL",
            help="The identity provider (OpenID Connect) where people log in.",
            show_default="nobody logs in",
        ),
    ] = "",
    oidc_client_id: Annotated[
        str,
        typer.Option(
            "--oidc-client-id",
            envvar="HEADRACE_OIDC_CLIENT_ID",
            help="As what this installation is known there.",
            show_default=False,
        ),
    ] = "",
    oidc_client_secret: Annotated[
        str,
        typer.Option(
            "--oidc-client-secret",
            envvar="HEADRACE_OIDC_CLIENT_SECRET",
            metavar="REFERENCE",
            help="Where its secret is: ${NAME} of the environment, or file:/PATH; not the secret.",
            show_default="a public client",
        ),
    ] = "",
    oidc_redirect_url: Annotated[
        str,
        typer.Option(
            "--oidc-redirect-url",
            envvar="HEADRACE_OIDC_REDIRECT_URL",
            metavar="URL",
            help="Where browsers come back: https://NAME/auth/callback, as registered there.",
            show_default=False,
        ),
    ] = "",
    oidc_role: Annotated[
        list[str] | None,
        typer.Option(
            "--oidc-role",
            envvar="HEADRACE_OIDC_ROLES",
            metavar="GROUP=ROLE",
            help="What members of a group may do: ml-team=operator, or audit=viewer:fraud. May be "
            "given several times.",
            show_default="none",
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Whether models may be of formats that run code of their authors', as Python "
            "models do: says `allow_code: true` at every endpoint.",
        ),
    ] = False,
    model_root: ModelRoots = None,
    tuned: Tuned = False,
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0.1, help="Seconds that --detach waits for it.")
    ] = 120.0,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Serve models: start gateway, replicas and control plane, and keep them running.

    In the foreground it prints the addresses, then the log of everything; Ctrl-C drains and stops.
    Where a system already runs on this home, the new spec is applied to it. After a control plane
    that was killed, this one takes over what runs, on the ports that it had.

    With --detach, exit status 3 says that some endpoints are not ready, each named with the reason;
    the others serve. Where none is ready, everything is stopped again, with exit status 1.

    For example:

        headrace up model.onnx

        headrace up model.onnx --slo-p99 150ms --max-replicas 4

        headrace up headrace.yaml --detach

        headrace up models/ --name fraud --replicas 2 --http-port 9000
    """
    from headrace.cli.up import start
    from headrace.cli.up.settings import oidc_settings
    from headrace.cli.up.start import document_for, with_code, with_tuning
    from headrace.control import ControlSettings, read_control_file
    from headrace.control.secret_references import absolute_reference
    from headrace.registry import check_artifacts_url

    document = document_for(
        target,
        name=name,
        replicas=replicas,
        slo_p99=slo_p99,
        max_replicas=max_replicas,
        rows_independent=rows_independent,
        home=home,
        has_state=bool(state_url),
    )
    if allow_code and document is not None:
        document = with_code(document)
    if tuned:
        document = with_tuning(document, home)
    running = read_control_file(home)
    if running is not None:
        start.change_running(running, document, home=home, wait_s=wait_s, json=json)
        return
    settings = ControlSettings(
        home=str(home.absolute()),
        spec=document,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        admin_port=admin_port,
        admin_host=admin_host,
        allowed_hosts=tuple(host.lower() for host in allowed_hosts or ()),
        tls=tls_settings("--tls", tls_cert, tls_key, client_ca, require_client=require_client_cert),
        admin_tls=tls_settings("--admin-tls", admin_tls_cert, admin_tls_key),
        insecure_admin=insecure_admin,
        gateway=gateway.value,
        agents=agents_settings(
            certificate=agents_tls_cert,
            key=agents_tls_key,
            client_ca=agents_tls_client_ca,
            host=agents_host,
            port=agents_port,
            limits_port=agents_limits_port,
            allow=agents_allow,
            revoked=agents_revoked,
            max_behind_s=gateway_max_behind_s,
            lost_after_s=gateway_lost_after_s,
            gateway_url=gateway_url,
        ),
        state_url=absolute_reference(state_url),
        artifacts=check_artifacts_url(artifacts) if artifacts else "",
        allow_code=env_allows_code(),
        model_roots=tuple(str(root.absolute()) for root in model_root or ()),
        console="headrace.console:build_console",
        prometheus_url=absolute_reference(prometheus_url),
        oidc=oidc_settings(
            oidc_file,
            issuer=oidc_issuer,
            client_id=oidc_client_id,
            client_secret=oidc_client_secret,
            redirect_url=oidc_redirect_url,
            roles=oidc_role or (),
        ),
        log_format=str(log_format or LogFormat.TEXT),
        log_level=check_log_level(log_level),
        copy_logs=not detach,
    )
    if detach:
        if not start.detach(settings, home=home, wait_s=wait_s, json=json):
            raise typer.Exit(NOT_READY)
    else:
        raise typer.Exit(start.run_here(settings, home))
