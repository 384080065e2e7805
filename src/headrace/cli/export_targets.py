"""`headrace export TARGET`: a spec for other systems, each a function from facts to documents."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headrace.cli.export_command import exports
from headrace.cli.export_names import (
    check_artifacts,
    check_host_port,
    check_routes,
    check_socket,
    check_storage,
    check_versions,
)
from headrace.cli.export_options import (
    Artifacts,
    Gateway,
    Hostnames,
    Image,
    Instance,
    Namespace,
    Prometheus,
    Replicas,
    Section,
    ServiceNames,
    addresses_for,
    place_for,
)
from headrace.core.spec_kubernetes import USUAL_PROMETHEUS

if TYPE_CHECKING:
    from headrace.deploy import Export, Facts, GatewayApiOptions, PodOptions


def gateway_api(
    facts: "Facts",
    *,
    instance: Instance = "headrace",
    namespace: Namespace = "default",
    service: ServiceNames = None,
    gateway: Gateway = "headrace",
    section: Section = "",
    hostname: Hostnames = None,
    no_grpc: Annotated[
        bool, typer.Option("--no-grpc", help="Write no GRPCRoute: replicas serve HTTP only.")
    ] = False,
) -> "Export":
    """Write a traffic split as routes of Kubernetes' Gateway API.

    With `--from-system` the weights are those of a rollout as it is now, and Services have the
    names that the driver gave them. With a file they have those that a control plane with this home
    gives them.

    For example:

        headrace export gateway-api -f headrace.yaml --gateway infra/public -o routes.yaml

        headrace export gateway-api --from-system | kubectl apply -f -
    """
    from headrace import deploy

    options = replace(_routes(gateway, section, hostname), grpc=not no_grpc)
    place = place_for(instance, namespace, service)
    check_versions("--service", facts, place.services or {})
    return deploy.gateway_api(facts, place, options)


def kserve(
    facts: "Facts",
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
) -> "Export":
    """Write endpoints as KServe's InferenceServices, and our replica as its ServingRuntime.

    For example:

        headrace export kserve -f headrace.yaml --storage s3://models/{model}/{version}/{file}
    """
    from headrace import deploy

    check_storage(storage)
    if stable:
        facts = replace(facts, endpoints=tuple(each.stable() for each in facts.endpoints))
    options = deploy.KserveOptions(storage=storage, runtime=runtime, pods=_pods(image, ""))
    return deploy.kserve(facts, place_for(instance, namespace), options)


def argo_rollouts(
    facts: "Facts",
    *,
    instance: Instance = "headrace",
    namespace: Namespace = "default",
    image: Image = None,
    artifacts: Artifacts = "",
    prometheus: Prometheus = USUAL_PROMETHEUS,
    gateway: Gateway = "headrace",
    section: Section = "",
    hostname: Hostnames = None,
) -> "Export":
    """Write endpoints as Rollouts of Argo's, with the steps and metrics of their plans.

    For example:

        headrace export argo-rollouts -f headrace.yaml --artifacts s3://models -o argo/
    """
    from headrace import deploy

    options = deploy.ArgoOptions(
        prometheus=prometheus,
        pods=_pods(image, artifacts),
        routes=_routes(gateway, section, hostname),
    )
    return deploy.argo_rollouts(facts, place_for(instance, namespace), options)


def kong(
    facts: "Facts",
    *,
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
) -> "Export":
    """Write a spec as Kong's declarative configuration.

    For example:

        headrace export kong -f headrace.yaml --replica fraud:1=10.0.0.7:8000 -o kong.yaml
    """
    from headrace import deploy

    grpc_replicas = addresses_for("--grpc-replica", grpc_replica, check_host_port)
    check_versions("--grpc-replica", facts, grpc_replicas)
    options = deploy.KongOptions(
        replicas=addresses_for("--replica", replica, check_host_port), grpc_replicas=grpc_replicas
    )
    return deploy.kong(facts, options)


def aws_apigateway(
    facts: "Facts",
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
    kind: Annotated[
        str, typer.Option("--api", help="http (checks tokens) or rest (checks bodies).")
    ] = "http",
    vpc_link: Annotated[
        str, typer.Option("--vpc-link", metavar="ID", help="Reach it by this.", show_default="none")
    ] = "",
    title: Annotated[str, typer.Option("--title", help="The API's name.")] = "Headrace",
) -> "Export":
    """Write an OpenAPI document for Amazon API Gateway, and a template of its stage.

    The API stands before Headrace's own gateway, which goes on splitting and limiting.

    For example:

        headrace export aws-apigateway -f headrace.yaml --backend https://models.example.com -o aws/
    """
    from headrace import deploy

    options = deploy.AwsOptions(
        backend=backend, kind=_api_kind(kind), vpc_link=vpc_link, title=title
    )
    return deploy.aws_apigateway(facts, options)


def envoy(
    facts: "Facts",
    *,
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
) -> "Export":
    """Write a spec as one configuration of Envoy's, which needs no control plane.

    For example:

        headrace export envoy -f headrace.yaml --replica fraud:1=10.0.0.7:8000 -o envoy.yaml

        envoy -c envoy.yaml
    """
    from headrace import deploy
    from headrace.protocol import DESCRIPTOR_SET_PATH

    options = deploy.EnvoyOptions(
        replicas=addresses_for("--replica", replica, check_socket),
        descriptors=DESCRIPTOR_SET_PATH.read_bytes(),
        run_dir=run_dir,
        ca_file=ca_file,
    )
    return deploy.envoy(facts, options)


def register(app: typer.Typer) -> None:
    """Add all of them to `headrace export`."""
    for command in (
        exports(gateway_api, with_revisions=True),
        exports(kserve),
        exports(argo_rollouts),
        exports(kong),
        exports(aws_apigateway, output="aws/"),
        exports(envoy),
    ):
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
