"""`headrace export TARGET`: a spec for other systems, each a function from facts to documents."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headrace.cli.export_names import (
    check_artifacts,
    check_host_port,
    check_routes,
    check_socket,
    check_storage,
    check_versions,
)
from headrace.cli.export_options import (
    PROMETHEUS,
    AllowLoss,
    Artifacts,
    Endpoints,
    File,
    FormatOption,
    FromSystem,
    Gateway,
    Hostnames,
    Image,
    Instance,
    Namespace,
    Output,
    Prometheus,
    Replicas,
    Section,
    ServiceNames,
    addresses_for,
    facts_for,
    place_for,
    write_export,
)
from headrace.cli.options import DEFAULT_HOME, Home, Server

if TYPE_CHECKING:
    from headrace.deploy import GatewayApiOptions, PodOptions


def gateway_api(
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "-",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    instance: Instance = "headrace",
    namespace: Namespace = "default",
    service: ServiceNames = None,
    gateway: Gateway = "headrace",
    section: Section = "",
    hostname: Hostnames = None,
    no_grpc: Annotated[
        bool, typer.Option("--no-grpc", help="Write no GRPCRoute: replicas serve HTTP only.")
    ] = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a traffic split as routes of Kubernetes' Gateway API.

    With `--from-system` the weights are those of a rollout as it is now, and Services have the
    names that the driver gave them. With a file they have those that a control plane with this home
    gives them.

    For example:

        headrace export gateway-api -f headrace.yaml --gateway infra/public -o routes.yaml

        headrace export gateway-api --from-system | kubectl apply -f -
    """
    from headrace import deploy

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
        with_revisions=True,
    )
    options = replace(_routes(gateway, section, hostname), grpc=not no_grpc)
    place = place_for(instance, namespace, service)
    check_versions("--service", facts, place.services or {})
    write_export(deploy.gateway_api(facts, place, options), output, form)


def kserve(
    storage: Annotated[
        str,
        typer.Option(
            "--storage",
            metavar="URI",
            help="Where a version's model is, with {endpoint}, {model}, {version} and {file}.",
            show_default=False,
        ),
    ],
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "-",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    instance: Instance = "headrace",
    namespace: Namespace = "default",
    image: Image = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime", help="A ServingRuntime that is there.", show_default="our own, written too"
        ),
    ] = "",
    stable: Annotated[
        bool, typer.Option("--stable", help="Of a split only the first version, for all requests.")
    ] = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write endpoints as KServe's InferenceServices, and our replica as its ServingRuntime.

    For example:

        headrace export kserve -f headrace.yaml --storage s3://models/{model}/{version}/{file}
    """
    from headrace import deploy

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
    )
    check_storage(storage)
    if stable:
        facts = replace(facts, endpoints=tuple(each.stable() for each in facts.endpoints))
    options = deploy.KserveOptions(storage=storage, runtime=runtime, pods=_pods(image, ""))
    write_export(deploy.kserve(facts, place_for(instance, namespace), options), output, form)


def argo_rollouts(
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "-",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    instance: Instance = "headrace",
    namespace: Namespace = "default",
    image: Image = None,
    artifacts: Artifacts = "",
    prometheus: Prometheus = PROMETHEUS,
    gateway: Gateway = "headrace",
    section: Section = "",
    hostname: Hostnames = None,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write endpoints as Rollouts of Argo's, with the steps and metrics of their plans.

    For example:

        headrace export argo-rollouts -f headrace.yaml --artifacts s3://models -o argo/
    """
    from headrace import deploy

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
    )
    options = deploy.ArgoOptions(
        prometheus=prometheus,
        pods=_pods(image, artifacts),
        routes=_routes(gateway, section, hostname),
    )
    write_export(deploy.argo_rollouts(facts, place_for(instance, namespace), options), output, form)


def flagger(
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "-",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    instance: Instance = "headrace",
    namespace: Namespace = "default",
    image: Image = None,
    artifacts: Artifacts = "",
    prometheus: Prometheus = PROMETHEUS,
    gateway: Gateway = "headrace",
    section: Section = "",
    hostname: Hostnames = None,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write endpoints as Canaries of Flagger's, with Deployments and MetricTemplates.

    For example:

        headrace export flagger -f headrace.yaml --artifacts s3://models -o flagger/
    """
    from headrace import deploy

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
    )
    options = deploy.FlaggerOptions(
        prometheus=prometheus,
        pods=_pods(image, artifacts),
        routes=_routes(gateway, section, hostname),
    )
    write_export(deploy.flagger(facts, place_for(instance, namespace), options), output, form)


def kong(
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "-",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    replica: Replicas = None,
    grpc_replica: Annotated[
        list[str] | None,
        typer.Option(
            "--grpc-replica",
            metavar="ENDPOINT:VERSION=HOST:PORT",
            help="Where it serves gRPC; may be repeated.",
            show_default=False,
        ),
    ] = None,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a spec as Kong's declarative configuration.

    For example:

        headrace export kong -f headrace.yaml --replica fraud:1=10.0.0.7:8000 -o kong.yaml
    """
    from headrace import deploy

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
    )
    grpc_replicas = addresses_for("--grpc-replica", grpc_replica, check_host_port)
    check_versions("--grpc-replica", facts, grpc_replicas)
    options = deploy.KongOptions(
        replicas=addresses_for("--replica", replica, check_host_port), grpc_replicas=grpc_replicas
    )
    write_export(deploy.kong(facts, options), output, form)


def aws_apigateway(
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="URL",
            help="Headrace's gateway; with --vpc-link of an HTTP API, a listener's ARN.",
            show_default=False,
        ),
    ],
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "aws/",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    kind: Annotated[
        str, typer.Option("--api", help="http (checks tokens) or rest (checks bodies).")
    ] = "http",
    vpc_link: Annotated[
        str, typer.Option("--vpc-link", metavar="ID", help="Reach it by this.", show_default="none")
    ] = "",
    title: Annotated[str, typer.Option("--title", help="The API's name.")] = "Headrace",
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write an OpenAPI document for Amazon API Gateway, and a template of its stage.

    The API stands before Headrace's own gateway, which goes on splitting and limiting.

    For example:

        headrace export aws-apigateway -f headrace.yaml --backend https://models.example.com -o aws/
    """
    from headrace import deploy

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
    )
    options = deploy.AwsOptions(
        backend=backend, kind=_api_kind(kind), vpc_link=vpc_link, title=title
    )
    write_export(deploy.aws_apigateway(facts, options), output, form)


def envoy(
    *,
    file: File = None,
    from_system: FromSystem = False,
    output: Output = "-",
    form: FormatOption = "",
    allow_loss: AllowLoss = None,
    endpoint: Endpoints = None,
    replica: Replicas = None,
    run_dir: Annotated[
        Path, typer.Option("--run-dir", help="Where Envoy keeps its sockets and its log.")
    ] = Path("/run/headrace-envoy"),
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file", help="Who signs for others' servers.", show_default="the machine's"
        ),
    ] = None,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a spec as one configuration of Envoy's, which needs no control plane.

    For example:

        headrace export envoy -f headrace.yaml --replica fraud:1=10.0.0.7:8000 -o envoy.yaml

        envoy -c envoy.yaml
    """
    from headrace import deploy
    from headrace.protocol import DESCRIPTOR_SET_PATH

    facts = facts_for(
        file,
        from_system=from_system,
        server=server,
        home=home,
        allow_loss=allow_loss,
        only=endpoint,
    )
    options = deploy.EnvoyOptions(
        replicas=addresses_for("--replica", replica, check_socket),
        descriptors=DESCRIPTOR_SET_PATH.read_bytes(),
        run_dir=run_dir,
        ca_file=ca_file,
    )
    write_export(deploy.envoy(facts, options), output, form)


def register(app: typer.Typer) -> None:
    """Add all of them to `headrace export`."""
    for command in (gateway_api, kserve, argo_rollouts, flagger, kong, aws_apigateway, envoy):
        app.command(command.__name__.replace("_", "-"))(command)


def _routes(gateway: str, section: str, hostnames: list[str] | None) -> "GatewayApiOptions":
    from headrace.deploy import GatewayApiOptions

    check_routes(gateway, section, hostnames or ())
    return GatewayApiOptions(gateway=gateway, section=section, hostnames=tuple(hostnames or ()))


def _pods(image: str | None, artifacts: str) -> "PodOptions":
    from headrace.deploy import PodOptions

    check_artifacts(artifacts)
    return PodOptions(image=image or "", artifacts=artifacts)


def _api_kind(kind: str) -> Literal["http", "rest"]:
    match kind:
        case "http" | "rest":
            return kind
        case _:
            msg = f"'{kind}' is neither http nor rest"
            raise typer.BadParameter(msg, param_hint="--api")
