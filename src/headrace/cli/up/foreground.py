"""Foreground processes: `headrace control`, `gateway` and `serve`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import (
    NULLS_OPTION,
    AllowCode,
    Host,
    LogFormat,
    LogFormatOption,
    LogLevel,
    RowsIndependent,
    UnreadHome,
    argument,
    check_log_level,
    option,
    setting,
)
from headrace.cli.base.output import say
from headrace.cli.up.settings import ControlOptions, ModelOptions, OnSigterm
from headrace.core import (
    BatchingSpec,
    CodeNotAllowedError,
    InvalidArgumentError,
    NotFoundError,
    NullPolicy,
    ReplicaSettings,
)
from headrace.core.devices import Device

if TYPE_CHECKING:
    from headrace.control.base.settings import ClusterSettings
    from headrace.registry import ModelVersion


class Driver(StrEnum):
    """Driver of replicas."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Options of a control plane whose replicas are pods."""

    namespace: Annotated[
        str,
        option(
            "Kubernetes namespace of the pods; other namespaces are not accessed.",
            envvar=["HEADRACE_NAMESPACE", "POD_NAMESPACE"],
            shown="default",
        ),
    ] = "default"
    instance: Annotated[str, setting("Installation name, the prefix of object names.")] = "headrace"
    identity: Annotated[
        str,
        option(
            "Identity of this control plane for leader election.",
            envvar=["HEADRACE_IDENTITY", "POD_NAME"],
            shown="the hostname",
        ),
    ] = ""
    owners: Annotated[
        list[str] | None,
        setting(
            "Deployment, ConfigMap or ServiceAccount that owns all created objects; may be "
            "repeated. Kubernetes deletes the objects when no owner exists.",
            "--owner",
            envvar="HEADRACE_OWNERS",
            metavar="KIND/NAME",
        ),
    ] = None
    internal_secret: Annotated[
        str,
        setting(
            "Secret whose `token` authenticates the control plane to replicas; this process "
            "reads the same token from HEADRACE_INTERNAL_TOKEN_FILE.",
            metavar="NAME",
            shown="replicas report no statistics",
        ),
    ] = ""
    gateway_secret: Annotated[
        str,
        setting(
            "Existing Secret for a copy of the gateways' configuration, with which gateways start "
            "while no control plane answers (`gateway --fallback`).",
            metavar="NAME",
            shown="none",
        ),
    ] = ""
    image_registry: Annotated[
        str,
        setting(
            "Registry and path of the images of pods, as PREFIX of `make push`.",
            metavar="REGISTRY/PATH",
            shown="the spec's `kubernetes.image`",
        ),
    ] = ""
    pull_secrets: Annotated[
        list[str] | None,
        setting("Secret for pulling the images; may be repeated.", "--pull-secret", metavar="NAME"),
    ] = None
    store_secret: Annotated[
        str,
        setting(
            "Secret whose keys become variables of the containers that download models: "
            "credentials of the artifact store.",
            metavar="NAME",
            shown="none",
        ),
    ] = ""
    platform_uid: Annotated[
        bool,
        setting("Leave the user of pods to the platform, as on OpenShift.", "--platform-uid"),
    ] = False
    kube_url: Annotated[
        str,
        setting(
            "API server proxy, such as `kubectl proxy`.",
            metavar="URL",
            shown="the service account, else the kubeconfig",
        ),
    ] = ""
    kube_context: Annotated[
        str, setting("Context of the kubeconfig.", shown="its current context")
    ] = ""
    release: Annotated[
        bool,
        option(
            "Let Endpoint resources be deleted without a control plane, by removing its finalizer "
            "from them, and exit; the chart does so before it is uninstalled.",
            "--release",
        ),
    ] = False

    def settings(self) -> "ClusterSettings":
        """Return the cluster settings; typer.BadParameter for names that Kubernetes refuses."""
        from headrace.control.base.settings import ClusterSettings
        from headrace.control.kubernetes import names

        for flag, check, name in (
            ("--instance", names.check_instance, self.instance),
            ("--namespace", names.check_namespace, self.namespace),
            ("--kube-url", names.check_api_url, self.kube_url),
            *(("--owner", names.check_owner, owner) for owner in self.owners or ()),
        ):
            try:
                if name:
                    check(name)
            except InvalidArgumentError as error:
                raise typer.BadParameter(str(error), param_hint=flag) from None
        return ClusterSettings(
            namespace=self.namespace,
            instance=self.instance,
            identity=self.identity,
            owners=tuple(self.owners or ()),
            internal_secret=self.internal_secret,
            gateway_secret=self.gateway_secret,
            image_registry=self.image_registry.rstrip("/"),
            pull_secrets=tuple(self.pull_secrets or ()),
            store_secret=self.store_secret,
            platform_uid=self.platform_uid,
            url=self.kube_url,
            context=self.kube_context,
        )


def control(
    spec: Annotated[
        Path | None,
        argument(
            "The spec to apply at startup.",
            metavar="[headrace.yaml]",
            shown="continue with the stored state",
        ),
    ] = None,
    *,
    driver: Annotated[
        Driver, setting("Run replicas as processes of this machine or as pods.")
    ] = Driver.LOCAL,
    cluster: ClusterOptions,
    options: ControlOptions,
) -> None:
    """Run a control plane in the foreground for containers; prints only its log.

    On Kubernetes several may run with one leader; the others are on standby and answer only health
    checks. A control plane that loses leadership exits, to be restarted.

    For example:

        headrace control headrace.yaml --driver kubernetes --namespace models
    """
    if cluster.release:
        from headrace.control.kubernetes.endpoints import released

        say(f"released {', '.join(released(cluster.settings())) or 'no resource'}")
        return
    from headrace.cli.base.spec_file import is_spec
    from headrace.cli.up.start import document_for
    from headrace.control import run
    from headrace.core.spec.parse import read_document

    document, file = None, ""
    if spec is not None and driver is Driver.KUBERNETES and is_spec(spec):
        # One mistake must not end it: the control plane leaves out what is wrong, and tells it.
        document = read_document(spec.read_text("utf-8"), base_dir=spec.absolute().parent)
        file = str(spec.absolute())
    elif spec is not None:
        document = document_for(spec, ModelOptions(), home=options.home, has_state=True)
    settings = msgspec.structs.replace(
        options.settings(document),
        spec_file=file,
        metrics_port=8002 if options.metrics_port is None else options.metrics_port,
        admin_port=8080 if options.admin_port is None else options.admin_port,
        driver=driver.value,
        cluster=cluster.settings() if driver is Driver.KUBERNETES else None,
        copy_logs=True,
        leaves_running=options.on_sigterm is OnSigterm.LEAVE,
    )
    raise typer.Exit(run(settings))


_EVERYWHERE = "0.0.0.0"  # noqa: S104  # callers come from elsewhere, and have to show who they are


def gateway(
    *,
    control: Annotated[
        str,
        setting("Control plane to follow: https://HOST:PORT of its --agents-port.", metavar="URL"),
    ],
    tls_cert: Annotated[
        Path,
        setting(
            "Client certificate (PEM) that names this gateway. Replaced files take effect "
            "within a second, also below."
        ),
    ],
    tls_key: Annotated[Path, setting("Private key of the client certificate (PEM, mode 0600).")],
    ca_file: Annotated[Path, setting("CA certificates (PEM) that verify the control plane.")],
    name: Annotated[
        str | None,
        option(
            "Gateway name after the certificate's name, if several gateways share a certificate.",
            envvar="HEADRACE_GATEWAY_NAME",
            shown="the hostname",
        ),
    ] = None,
    directory: Annotated[
        Path,
        option(
            "Directory for the last configuration, which is used at startup without a control "
            "plane.",
            "--dir",
            envvar="HEADRACE_DIR",
            file_okay=False,
        ),
    ] = Path(".headrace-gateway"),
    fallback: Annotated[
        Path | None,
        setting(
            "Copy of the configuration (Secret of `control --gateway-secret`) for a start without "
            "a stored one and without a control plane."
        ),
    ] = None,
    host: Annotated[
        str,
        setting(
            "Address for callers. Remote callers must authenticate, except for public endpoints."
        ),
    ] = _EVERYWHERE,
    http_port: Annotated[int, setting("HTTP and gRPC on one port.")] = 8000,
    grpc_port: Annotated[
        int, setting("Second port for HTTP and gRPC, where gRPC clients expect it.")
    ] = 8001,
    admin_host: Annotated[str, setting("Address for health and metrics.")] = _EVERYWHERE,
    admin_port: Annotated[
        int, setting("Port for /healthz, /readyz and /metrics of the gateway.")
    ] = 8002,
    url: Annotated[
        str,
        option(
            "Gateway URL to display to users.",
            envvar="HEADRACE_GATEWAY_URL",
            metavar="URL",
        ),
    ] = "",
    drain_timeout_s: Annotated[
        float, setting("Drain time in seconds for running requests.", min=0)
    ] = 30.0,
    keep_envoy: Annotated[
        bool,
        setting(
            "Leave Envoy running when the agent exits; the next agent adopts it.", "--keep-envoy"
        ),
    ] = False,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Run a gateway on this host for a control plane on another host.

    Runs Envoy, follows the control plane over mutual TLS, and reports statistics. The configuration
    is stored in --dir, so the gateway works without the control plane, also after a restart.

    For example:

        headrace gateway --control https://control.lan:8443 --tls-cert gw-1.pem
        --tls-key gw-1-key.pem --ca-file ca.pem
    """
    from headrace.control.base.ports import pick_ports
    from headrace.core.spec.access import TlsSpec
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
            fallback=fallback,
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


HTTP_PORT = 8000
METRICS_PORT = 8002
_NAMED = 8
"""Maximum number of files that a message names."""


def serve(
    model: Annotated[
        str,
        argument("A model file or directory, NAME[:VERSION] of the registry, or a URI."),
    ],
    *,
    name: Annotated[
        str | None, option("Model name for callers.", shown="from the file name")
    ] = None,
    host: Host = None,
    http_port: Annotated[
        int, setting("For HTTP.", "--port", "--http-port", min=0, max=65535)
    ] = HTTP_PORT,
    grpc_port: Annotated[
        int | None, setting("Also serve gRPC, including streaming.", shown="off")
    ] = None,
    metrics_port: Annotated[
        int, setting("Port for Prometheus; the HTTP port serves /metrics too.")
    ] = METRICS_PORT,
    openai_port: Annotated[
        int | None, setting("Port of the OpenAI API of a GGUF model.", min=1, max=65535)
    ] = None,
    max_batch_size: Annotated[int | None, option("Rows.", min=1, shown="32")] = None,
    rows_independent: RowsIndependent = False,
    nulls: Annotated[NullPolicy, NULLS_OPTION] = NullPolicy.NAN,
    device: Annotated[
        Device, setting("Device that runs the model; only `auto` falls back to the CPU.")
    ] = Device.AUTO,
    allow_code: AllowCode = False,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
    home: UnreadHome = DEFAULT_HOME,
) -> None:
    """Serve one model in one process, without gateway and supervision.

    Callers are not authenticated. The content of a URI is stored as a version in --home first.

    For example:

        headrace serve model.onnx --host 0.0.0.0

        headrace serve fraud:3 --grpc-port 8001

        headrace serve s3://models/fraud/model.onnx
    """
    from msgspec import UNSET
    from msgspec.structs import replace

    from headrace.cli.base.offline import HomeModels
    from headrace.cli.base.sources import stored_from
    from headrace.core.model_uri import is_model_uri, parse_model_uri
    from headrace.observe import configure_logging
    from headrace.runtimes import code_of_model, detect_runtime, get_runtime, runs_code
    from headrace.runtimes.huggingface import is_hub_folder
    from headrace.serving.replica import run

    if is_model_uri(model):
        name = name or parse_model_uri(model).model_name
        version = stored_from(model, name, HomeModels(home), home=home, allow_code=allow_code)
        model = version["reference"]
    batching = BatchingSpec(
        max_batch_size=max_batch_size or BatchingSpec().max_batch_size,
        rows_independent=rows_independent or UNSET,
    )
    settings = replica_settings(
        model,
        name=name,
        home=home,
        host=host or "127.0.0.1",
        port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        batching=batching,
        log_format=str(log_format or LogFormat.TEXT),
        device=device,
    )
    if nulls is NullPolicy.ERROR:
        settings = replace(settings, nulls=nulls)
    if openai_port is not None:
        settings = replace(settings, openai_port=openai_port)
    if not allow_code:
        path = Path(settings.path)
        runtime = get_runtime(settings.runtime) if settings.runtime else detect_runtime(path)
        if runs_code(runtime, path):
            raise CodeNotAllowedError(model, runtime.name, code_of_model(runtime, path))
    configure_logging(
        log_format="json" if log_format is LogFormat.JSON else "text",
        level=check_log_level(log_level),
    )
    with ExitStack() as stack:
        if is_hub_folder(Path(settings.path)):
            from headrace.cli.base.hub_folders import served_path
            from headrace.cli.base.offline import Pushed

            pushed = Pushed(
                path=Path(settings.path),
                runtime=settings.runtime,
                allow_code=allow_code,
                source=model,
            )
            path = stack.enter_context(served_path(pushed, home.absolute()))
            settings = replace(settings, path=str(path))
        raise typer.Exit(run(settings))


def replica_settings(
    model: str,
    *,
    name: str | None,
    home: Path,
    host: str,
    port: int,
    grpc_port: int | None,
    metrics_port: int,
    batching: "BatchingSpec",
    log_format: str,
    device: Device = Device.AUTO,
) -> "ReplicaSettings":
    """Return the replica's settings; `model` is a path, or a reference if no such path exists."""
    from headrace.cli.base.options import name_from

    path = Path(model)
    version, runtime = "1", ""
    labels: dict[str, list[str]] = {}
    if not path.exists():
        stored, path = _stored(model, home)
        version, runtime = stored.version, stored.runtime
        name = name or stored.name
        labels = {output: list(names) for output, names in stored.labels.items()}
    return ReplicaSettings(
        model_name=name or name_from(path),
        model_version=version,
        path=str(path.absolute()),
        runtime=runtime,
        host=host,
        port=port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        batching=batching,
        log_format=log_format,
        labels=labels,
        device=device,
    )


def _stored(reference: str, home: Path) -> "tuple[ModelVersion, Path]":
    """Return a version of the registry, verified against its digest, and its path."""
    from headrace.cli.base.offline import stored_model

    if "/" not in reference:  # registry names have no slash
        try:
            return stored_model(reference, home)
        except (NotFoundError, InvalidArgumentError) as error:
            msg = f"no file or directory '{reference}', and {error}"
            raise NotFoundError(msg) from None
    folder = Path(reference).parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        content = f"no directory '{folder}' either"
    except OSError as error:
        content = f"'{folder}': {error.strerror}"
    else:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        content = (
            f"'{folder}' has {', '.join(names[:_NAMED])}{more}"
            if names
            else f"'{folder}' is empty: mount files into the container, for example with "
            f'`-v "$PWD:{folder}:ro"`'
        )
    raise NotFoundError(f"no file or directory '{reference}'; {content}")
