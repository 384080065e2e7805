"""Parts that run alone in the foreground: `headrace control`, `gateway` and `serve`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import socket
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
from headrace.cli.up.settings import ControlOptions, ModelOptions
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
    """What replicas are."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Options of a control plane whose replicas are pods."""

    namespace: Annotated[
        str,
        option(
            "Of the cluster; pods run there, and nothing outside is looked at.",
            envvar=["HEADRACE_NAMESPACE", "POD_NAMESPACE"],
            shown="default",
        ),
    ] = "default"
    instance: Annotated[
        str, setting("The name of this installation, which objects' names begin with.")
    ] = "headrace"
    identity: Annotated[
        str,
        option(
            "Who this is, among the control planes of an installation, of which one leads.",
            envvar=["HEADRACE_IDENTITY", "POD_NAME"],
            shown="the host's name",
        ),
    ] = ""
    owner: Annotated[
        str,
        setting(
            "The Deployment or ConfigMap whose end takes all pods with it.", metavar="KIND/NAME"
        ),
    ] = ""
    internal_secret: Annotated[
        str,
        setting(
            "The Secret whose `token` shows replicas that it is the control plane that asks "
            "them; this process finds the same in the file HEADRACE_INTERNAL_TOKEN_FILE.",
            metavar="NAME",
            shown="replicas tell nothing of themselves",
        ),
    ] = ""
    kube_url: Annotated[
        str,
        setting(
            "A proxy to the API server, such as `kubectl proxy`.",
            metavar="URL",
            shown="the service account, else the kubeconfig",
        ),
    ] = ""
    kube_context: Annotated[str, setting("Of the kubeconfig.", shown="its current one")] = ""

    def settings(self) -> "ClusterSettings":
        """Return the same; typer.BadParameter for names that Kubernetes does not take."""
        from headrace.control.base.settings import ClusterSettings
        from headrace.control.kubernetes import names

        for flag, check, name in (
            ("--instance", names.check_instance, self.instance),
            ("--namespace", names.check_namespace, self.namespace),
            ("--kube-url", names.check_api_url, self.kube_url),
            ("--owner", names.check_owner, self.owner),
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
            owner=self.owner,
            internal_secret=self.internal_secret,
            url=self.kube_url,
            context=self.kube_context,
        )


def control(
    spec: Annotated[
        Path | None,
        argument(
            "The spec to apply at the start.",
            metavar="[headrace.yaml]",
            shown="goes on with the stored state",
        ),
    ] = None,
    *,
    driver: Annotated[
        Driver, setting("Whether replicas are processes of this machine, or pods.")
    ] = Driver.LOCAL,
    cluster: ClusterOptions,
    options: ControlOptions,
) -> None:
    """Be a control plane in the foreground, as containers want it: all it says is its log.

    On Kubernetes several may run, and one of them leads; the others stand by, and answer only
    whether they are alive. A control plane that leads no more ends, to be started again.

    For example:

        headrace control headrace.yaml --driver kubernetes --namespace models
    """
    from headrace.cli.up.start import document_for
    from headrace.control import run

    document = None
    if spec is not None:
        document = document_for(spec, ModelOptions(), home=options.home, has_state=True)
    settings = msgspec.structs.replace(
        options.settings(document),
        metrics_port=8002 if options.metrics_port is None else options.metrics_port,
        admin_port=8080 if options.admin_port is None else options.admin_port,
        driver=driver.value,
        cluster=cluster.settings() if driver is Driver.KUBERNETES else None,
        copy_logs=True,
    )
    raise typer.Exit(run(settings))


_EVERYWHERE = "0.0.0.0"  # noqa: S104  # callers come from elsewhere, and have to show who they are


def gateway(
    *,
    control: Annotated[
        str, setting("The control plane: https://HOST:PORT of its --agents-port.", metavar="URL")
    ],
    tls_cert: Annotated[
        Path,
        setting(
            "What the control plane is shown: a certificate that names this gateway (PEM). "
            "Replaced files are in force within a second, here and below."
        ),
    ],
    tls_key: Annotated[Path, setting("Its private key (PEM, mode 0600).")],
    ca_file: Annotated[Path, setting("Who signs the control plane's certificate (PEM).")],
    name: Annotated[
        str | None,
        option(
            "What the gateway is called, after its certificate's name where the two differ: "
            "several may show one certificate.",
            envvar="HEADRACE_GATEWAY_NAME",
            shown="the host's name",
        ),
    ] = None,
    directory: Annotated[
        Path,
        option(
            "Where it keeps what it serves, and goes on from without a control plane.",
            "--dir",
            envvar="HEADRACE_DIR",
            file_okay=False,
        ),
    ] = Path(".headrace-gateway"),
    host: Annotated[
        str,
        setting(
            "Address for callers. Beyond this machine they have to show who they are, but for "
            "endpoints that are public."
        ),
    ] = _EVERYWHERE,
    http_port: Annotated[int, setting("HTTP and gRPC on one port.")] = 8000,
    grpc_port: Annotated[int, setting("The same again, where gRPC clients expect it.")] = 8001,
    admin_host: Annotated[str, setting("Address of health and metrics.")] = _EVERYWHERE,
    admin_port: Annotated[
        int, setting("/healthz, /readyz and /metrics of the gateway itself.")
    ] = 8002,
    url: Annotated[
        str,
        option(
            "How callers reach this gateway, to be shown to people.",
            envvar="HEADRACE_GATEWAY_URL",
            metavar="URL",
        ),
    ] = "",
    drain_timeout_s: Annotated[
        float, setting("Seconds that running requests get at the end.", min=0)
    ] = 30.0,
    keep_envoy: Annotated[
        bool,
        setting(
            "Let Envoy go on when the agent ends, to be taken over by the next one.", "--keep-envoy"
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
"""How many files a message names."""


def serve(
    model: Annotated[
        str, argument("A model file or directory, or NAME[:VERSION] of the registry.")
    ],
    *,
    name: Annotated[str | None, option("What callers call it.", shown="the file's name")] = None,
    host: Host = None,
    http_port: Annotated[
        int, setting("For HTTP.", "--port", "--http-port", min=0, max=65535)
    ] = HTTP_PORT,
    grpc_port: Annotated[
        int | None, setting("Also serve gRPC, streaming included.", shown="off")
    ] = None,
    metrics_port: Annotated[
        int, setting("For Prometheus; the HTTP port serves /metrics too.")
    ] = METRICS_PORT,
    max_batch_size: Annotated[int | None, option("Rows.", min=1, shown="32")] = None,
    rows_independent: RowsIndependent = False,
    nulls: Annotated[NullPolicy, NULLS_OPTION] = NullPolicy.NAN,
    device: Annotated[
        Device, setting("What has to run the model; only `auto` falls back to the CPU.")
    ] = Device.AUTO,
    allow_code: AllowCode = False,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
    home: UnreadHome = DEFAULT_HOME,
) -> None:
    """Serve one model alone, without gateway and supervision: for containers, or in Triton's place.

    It asks nobody for a key.

    For example:

        headrace serve model.onnx --host 0.0.0.0

        headrace serve fraud:3 --grpc-port 8001
    """
    from msgspec import UNSET
    from msgspec.structs import replace

    from headrace.observe import configure_logging
    from headrace.runtimes import code_of_model, detect_runtime, get_runtime, runs_code
    from headrace.serving.replica import run

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
    if not allow_code:
        path = Path(settings.path)
        runtime = get_runtime(settings.runtime) if settings.runtime else detect_runtime(path)
        if runs_code(runtime, path):
            raise CodeNotAllowedError(model, runtime.name, code_of_model(runtime, path))
    configure_logging(
        log_format="json" if log_format is LogFormat.JSON else "text",
        level=check_log_level(log_level),
    )
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
    """What the replica is told; `model` is a path, or a reference if no such path exists."""
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
    """A version of the registry, checked against its digest, and where it lies."""
    from headrace.cli.base.offline import stored_model

    if "/" not in reference:  # no name of the registry has one
        try:
            return stored_model(reference, home)
        except (NotFoundError, InvalidArgumentError) as error:
            msg = f"there is no file or directory '{reference}', and {error}"
            raise NotFoundError(msg) from None
    folder = Path(reference).parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        content = f"there is no directory '{folder}' either"
    except OSError as error:
        content = f"'{folder}': {error.strerror}"
    else:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        content = (
            f"'{folder}' has {', '.join(names[:_NAMED])}{more}"
            if names
            else f"'{folder}' is empty: a container sees what is mounted, as by "
            f'`-v "$PWD:{folder}:ro"`'
        )
    raise NotFoundError(f"there is no file or directory '{reference}'; {content}")
