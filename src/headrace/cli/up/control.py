"""`headrace control`: a control plane in the foreground, for containers."""


# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import (
    DEFAULT_HOME,
    Artifacts,
    Home,
    Host,
    LogFormat,
    LogFormatOption,
    LogLevel,
    StateUrl,
    check_log_level,
    file_option,
    port_option,
)
from headrace.cli.up.settings import (
    AdminHost,
    AdminPort,
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
    MetricsPort,
    ModelRoots,
    PrometheusUrl,
    agents_settings,
    env_allows_code,
    tls_settings,
)
from headrace.core import InvalidArgumentError
from headrace.core.gateways import MAX_BEHIND_S

if TYPE_CHECKING:
    from headrace.control.settings import ClusterSettings


class Driver(StrEnum):
    """What replicas are."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


def control(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="[headrace.yaml]",
            help="The spec to apply at the start.",
            show_default="goes on with the stored state",
        ),
    ] = None,
    *,
    driver: Annotated[
        Driver,
        typer.Option(
            "--driver",
            envvar="HEADRACE_DRIVER",
            help="Whether replicas are processes of this machine, or pods.",
        ),
    ] = Driver.LOCAL,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            envvar=["HEADRACE_NAMESPACE", "POD_NAMESPACE"],
            help="Of the cluster; pods run there, and nothing outside is looked at.",
            show_default="default",
        ),
    ] = "default",
    instance: Annotated[
        str,
        typer.Option(
            "--instance",
            envvar="HEADRACE_INSTANCE",
            help="The name of this installation, which objects' names begin with.",
        ),
    ] = "headrace",
    identity: Annotated[
        str,
        typer.Option(
            "--identity",
            envvar=["HEADRACE_IDENTITY", "POD_NAME"],
            help="Who this is, among the control planes of an installation, of which one leads.",
            show_default="the host's name",
        ),
    ] = "",
    owner: Annotated[
        str,
        typer.Option(
            "--owner",
            envvar="HEADRACE_OWNER",
            metavar="KIND/NAME",
            help="The Deployment or ConfigMap whose end takes all pods with it.",
            show_default="none",
        ),
    ] = "",
    internal_secret: Annotated[
        str,
        typer.Option(
            "--internal-secret",
            envvar="HEADRACE_INTERNAL_SECRET",
            metavar="NAME",
            help="The Secret whose `token` shows replicas that it is the control plane that asks "
            "them; this process finds the same in the file HEADRACE_INTERNAL_TOKEN_FILE.",
            show_default="replicas tell nothing of themselves",
        ),
    ] = "",
    kube_url: Annotated[
        str,
        typer.Option(
            "--kube-url",
            envvar="HEADRACE_KUBE_URL",
            metavar="URL",
            help="A proxy to the API server, such as `kubectl proxy`.",
            show_default="the service account, else the kubeconfig",
        ),
    ] = "",
    kube_context: Annotated[
        str,
        typer.Option(
            "--kube-context",
            envvar="HEADRACE_KUBE_CONTEXT",
            help="Of the kubeconfig.",
            show_default="its current one",
        ),
    ] = "",
    host: Host = None,
    http_port: Annotated[
        int | None, port_option("http", "Of the gateway on this host.", shown="the spec's")
    ] = None,
    grpc_port: Annotated[
        int | None, port_option("grpc", "The same, for gRPC clients.", shown="the spec's")
    ] = None,
    metrics_port: MetricsPort = 8002,
    admin_port: AdminPort = 8080,
    admin_host: AdminHost = "127.0.0.1",
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
        Path | None, file_option("oidc-file", "How people log in by a browser: a YAML file.")
    ] = None,
    model_root: ModelRoots = None,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
    home: Home = DEFAULT_HOME,
) -> None:
    """Be a control plane in the foreground, as containers want it: all it says is its log.

    On Kubernetes several may run, and one of them leads; the others stand by, and answer only
    whether they are alive. A control plane that leads no more ends, to be started again.

    For example:

        headrace control headrace.yaml --driver kubernetes --namespace models
    """
    from headrace.cli.up.settings import oidc_settings
    from headrace.cli.up.start import document_for
    from headrace.control import ControlSettings, run
    from headrace.control.secret_references import absolute_reference
    from headrace.control.settings import ClusterSettings
    from headrace.registry import check_artifacts_url

    document = None
    if spec is not None:
        document = document_for(spec, name=None, replicas=None, home=home, has_state=True)
    cluster = None
    if driver is Driver.KUBERNETES:
        cluster = _checked(
            ClusterSettings(
                namespace=namespace,
                instance=instance,
                identity=identity,
                owner=owner,
                internal_secret=internal_secret,
                url=kube_url,
                context=kube_context,
            )
        )
    settings = ControlSettings(
        home=str(home.absolute()),
        spec=document,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        admin_port=admin_port,
        admin_host=admin_host,
        allowed_hosts=tuple(name.lower() for name in allowed_hosts or ()),
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
            oidc_file, issuer="", client_id="", client_secret="", redirect_url="", roles=()
        ),
        driver=driver.value,
        cluster=cluster,
        log_format=str(log_format or LogFormat.TEXT),
        log_level=check_log_level(log_level),
        copy_logs=True,
    )
    raise typer.Exit(run(settings))


def _checked(cluster: "ClusterSettings") -> "ClusterSettings":
    """`cluster`, if its names are ones that Kubernetes takes; else typer.BadParameter."""
    from headrace.control.kubernetes.names import (
        check_api_url,
        check_instance,
        check_namespace,
        check_owner,
    )

    for option, check, name in (
        ("--instance", check_instance, cluster.instance),
        ("--namespace", check_namespace, cluster.namespace),
        *([("--kube-url", check_api_url, cluster.url)] if cluster.url else []),
        *([("--owner", check_owner, cluster.owner)] if cluster.owner else []),
    ):
        try:
            check(name)
        except InvalidArgumentError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None
    return cluster
