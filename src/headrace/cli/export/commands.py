"""`headrace export`: files for other programs."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit, urlunsplit

from headrace.cli.base.options import CommandGroup, ControlPlaneOptions, file_option, option
from headrace.cli.base.output import say, write
from headrace.cli.export import helm
from headrace.cli.export.options import (
    ExportOptions,
    Image,
    ImageRegistry,
    Output,
    PlaceOptions,
    Replicas,
    RouteOptions,
    addresses_for,
    check_artifacts,
    check_host_port,
    check_socket,
    check_storage,
    check_versions,
)
from headrace.core.spec.kubernetes import USUAL_PROMETHEUS

app = CommandGroup(help="Export configuration for other programs.")


class ApiKind(StrEnum):
    """API types of Amazon API Gateway."""

    HTTP = "http"
    REST = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsExportOptions(ExportOptions):
    """Options of an export of several files."""

    output: Output = "aws/"


@app.command("gateway-api")
def gateway_api(
    *,
    cluster: PlaceOptions,
    service: Annotated[
        list[str] | None,
        option(
            "Service of a version, if it is not the driver's.",
            metavar="ENDPOINT:VERSION=NAME[:PORT]",
            shown=False,
        ),
    ] = None,
    routes: RouteOptions,
    no_grpc: Annotated[
        bool, option("Write no GRPCRoute: replicas serve HTTP only.", "--no-grpc")
    ] = False,
    inference_pool: Annotated[
        bool,
        option(
            "Route language models to InferencePools, whose endpoint pickers choose the pod.",
            "--inference-pool",
        ),
    ] = False,
    options: ExportOptions,
    plane: ControlPlaneOptions,
) -> None:
    """Export a traffic split as routes of the Kubernetes Gateway API.

    With `--from-system`, weights are the current weights of a rollout, and Services have the names
    that the driver assigned. With a file, Services have the names that a control plane with this
    home assigns.

    For example:

        headrace export gateway-api -f headrace.yaml --gateway infra/public -o routes.yaml

        headrace export gateway-api --from-system | kubectl apply -f -
    """
    from headrace import deploy

    facts = options.facts(plane, with_revisions=True)
    target = replace(routes.target(), grpc=not no_grpc, inference_pool=inference_pool)
    namespace = cluster.place(service)
    check_versions("--service", facts, namespace.services)
    options.write(deploy.gateway_api(facts, namespace, target))


@app.command("kserve")
def kserve(
    storage: Annotated[
        str,
        option(
            "Model location with {endpoint}, {model}, {version} and {file}.",
            metavar="URI",
        ),
    ],
    *,
    cluster: PlaceOptions,
    image: Image = None,
    image_registry: ImageRegistry = "",
    runtime: Annotated[
        str, option("Name of an existing ServingRuntime.", shown="export Headrace's ServingRuntime")
    ] = "",
    stable: Annotated[
        bool, option("Export only the first version of a split, for all requests.", "--stable")
    ] = False,
    options: ExportOptions,
    plane: ControlPlaneOptions,
) -> None:
    """Export endpoints as KServe InferenceServices, with the Headrace replica as ServingRuntime.

    For example:

        headrace export kserve -f headrace.yaml --storage s3://models/{model}/{version}/{file}
    """
    from headrace import deploy

    facts = options.facts(plane)
    check_storage(storage)
    if stable:
        facts = replace(facts, endpoints=tuple(endpoint.stable() for endpoint in facts.endpoints))
    target = deploy.KserveOptions(
        storage=storage,
        runtime=runtime,
        pods=deploy.PodOptions(image=image or "", image_registry=image_registry.rstrip("/")),
    )
    options.write(deploy.kserve(facts, cluster.place(), target))


@app.command("kserve-runtime")
def kserve_runtime(*, image: Image = None, image_registry: ImageRegistry = "") -> None:
    """Write KServe's ClusterServingRuntime of Headrace's replica to standard output.

    InferenceServices choose it by `runtime: headrace`, and keep their `storageUri`.

    For example:

        headrace export kserve-runtime --image-registry registry.example/ml | kubectl apply -f -
    """
    from headrace import deploy

    exported = deploy.kserve_runtime(image or "", image_registry)
    write(deploy.text_of(exported, deploy.DocumentFormat.YAML).rstrip("\n"))


@app.command("argo-rollouts")
def argo_rollouts(
    *,
    cluster: PlaceOptions,
    image: Image = None,
    image_registry: ImageRegistry = "",
    artifacts: Annotated[
        str, option("Artifact store that pods fetch models from.", metavar="URL", shown="")
    ] = "",
    prometheus: Annotated[
        str, option("Address of Prometheus within the cluster.", metavar="URL")
    ] = USUAL_PROMETHEUS,
    routes: RouteOptions,
    options: ExportOptions,
    plane: ControlPlaneOptions,
) -> None:
    """Export endpoints as Argo Rollouts, with the steps and metrics of their rollout plans.

    For example:

        headrace export argo-rollouts -f headrace.yaml --artifacts s3://models -o argo/
    """
    from headrace import deploy

    facts = options.facts(plane)
    check_artifacts(artifacts)
    target = deploy.ArgoOptions(
        prometheus=prometheus,
        pods=deploy.PodOptions(
            image=image or "",
            image_registry=image_registry.rstrip("/"),
            artifacts=artifacts,
        ),
        routes=routes.target(),
    )
    options.write(deploy.argo_rollouts(facts, cluster.place(), target))


@app.command("kong")
def kong(
    *,
    replica: Replicas = None,
    grpc_replica: Annotated[
        list[str] | None,
        option(
            "gRPC address of the replica; may be repeated.", metavar="ENDPOINT:VERSION=HOST:PORT"
        ),
    ] = None,
    options: ExportOptions,
    plane: ControlPlaneOptions,
) -> None:
    """Export a spec as Kong declarative configuration.

    For example:

        headrace export kong -f headrace.yaml --replica fraud:1=10.0.0.7:8000 -o kong.yaml
    """
    from headrace import deploy

    facts = options.facts(plane)
    grpc_replicas = addresses_for("--grpc-replica", grpc_replica, check_host_port)
    check_versions("--grpc-replica", facts, grpc_replicas)
    target = deploy.KongOptions(
        replicas=addresses_for("--replica", replica, check_host_port), grpc_replicas=grpc_replicas
    )
    options.write(deploy.kong(facts, target))


@app.command("aws-apigateway")
def aws_apigateway(
    backend: Annotated[
        str,
        option(
            "URL of Headrace's gateway; with --vpc-link of an HTTP API, the ARN of a listener.",
            metavar="URL",
        ),
    ],
    *,
    kind: Annotated[
        ApiKind, option("API type: http (validates tokens) or rest (validates bodies).", "--api")
    ] = ApiKind.HTTP,
    vpc_link: Annotated[str, option("VPC link to the backend.", metavar="ID")] = "",
    title: Annotated[str, option("API name.")] = "Headrace",
    options: AwsExportOptions,
    plane: ControlPlaneOptions,
) -> None:
    """Export an OpenAPI document for Amazon API Gateway, and a template of its stage.

    The API forwards to Headrace's own gateway, which still applies traffic splits and rate limits.

    For example:

        headrace export aws-apigateway -f headrace.yaml --backend https://models.example.com -o aws/
    """
    from headrace import deploy

    facts = options.facts(plane)
    target = deploy.AwsOptions(
        backend=backend,
        kind="rest" if kind is ApiKind.REST else "http",
        vpc_link=vpc_link,
        title=title,
    )
    options.write(deploy.aws_apigateway(facts, target))


@app.command("envoy")
def envoy(
    *,
    replica: Replicas = None,
    run_dir: Annotated[Path, option("Directory for Envoy's sockets and log.")] = Path(
        "/run/headrace-envoy"
    ),
    ca_file: Annotated[
        Path | None,
        option(
            "CA certificates that verify external upstreams.", shown="the system's CA certificates"
        ),
    ] = None,
    options: ExportOptions,
    plane: ControlPlaneOptions,
) -> None:
    """Export a spec as a static Envoy configuration that needs no control plane.

    For example:

        headrace export envoy -f headrace.yaml --replica fraud:1=10.0.0.7:8000 -o envoy.yaml

        envoy -c envoy.yaml
    """
    from headrace import deploy
    from headrace.protocol import DESCRIPTOR_SET_PATH

    facts = options.facts(plane)
    target = deploy.EnvoyOptions(
        replicas=addresses_for("--replica", replica, check_socket),
        descriptors=DESCRIPTOR_SET_PATH.read_bytes(),
        run_dir=run_dir,
        ca_file=ca_file,
    )
    options.write(deploy.envoy(facts, target))


_USUAL_METRICS: Final = "http://127.0.0.1:8002/metrics"
_Output = Annotated[
    Path,
    option(
        "Output directory; created if it does not exist.",
        "--output",
        "-o",
        file_okay=False,
        shown=False,
    ),
]
app.command()(helm.helm)


@app.callback()
def root() -> None:
    """Export files for other programs: Prometheus, Grafana, Kubernetes, other gateways."""


@app.command()
def prometheus(
    output: _Output,
    *,
    file: Annotated[
        Path | None, file_option("A spec file, instead of the running system.", "--file", "-f")
    ] = None,
    token_file: Annotated[
        str,
        option(
            "File with a viewer token that Prometheus reads; needed if the API is not on loopback.",
            "--scrape-token-file",
        ),
    ] = "",
    job: Annotated[
        str,
        option(
            "Scrape job that the rules read; systems in one Prometheus need different jobs.",
            metavar="NAME",
            shown="headrace",
        ),
    ] = "",
    plane: ControlPlaneOptions,
) -> None:
    """Export alert rules and configurations of Prometheus and Alertmanager.

    Alerts are derived from each endpoint's `slo` and each stream's `alerts`, and routes from the
    system's `alerts`. Export them again when those change.

    For example:

        headrace export prometheus -o monitoring

        promtool check rules monitoring/headrace-alerts.yml
    """
    from headrace.cli.base.spec_file import read_spec
    from headrace.core.spec.alerts import AlertsSpec
    from headrace.monitor.prometheus import ScrapeTarget, prometheus_files
    from headrace.monitor.promql import JOB
    from headrace.monitor.slo import objectives_of, stream_promises_of

    if file is not None:
        document: dict[str, Any] = read_spec(file).document()
        target = ScrapeTarget(url=_USUAL_METRICS, token_file=token_file, job=job or JOB)
    else:
        running = plane.target()
        api = running.management()
        document = api.get("/api/v1/spec")["spec"]
        url, ca_file = api.get("/api/v1/status")["addresses"]["metrics"], running.ca_file
        if running.is_remote:
            # The system's own address may be loopback: the address of this request is used.
            parts = urlsplit(url)
            url = urlunsplit(parts._replace(netloc=f"{api.host}:{parts.port}"))
        else:
            ca_file = ca_file or running.control_file().admin_ca
        target = ScrapeTarget(url=url, token_file=token_file, ca_file=ca_file, job=job or JOB)
    alerts = AlertsSpec.model_validate(document.get("alerts") or {})
    streams = stream_promises_of(document)
    files = prometheus_files(objectives_of(document), alerts, target, streams=streams)
    _write(output, {name: _yaml(content) for name, content in files.items()})


@app.command()
def grafana(output: _Output) -> None:
    """Export Grafana dashboards: fleet, endpoint, rollout, replicas, streams and jobs.

    Import them manually, or have Grafana provision the directory. They query a Prometheus with the
    rules of `headrace export prometheus`.

    For example:

        headrace export grafana -o monitoring/dashboards
    """
    import json

    from headrace.monitor.dashboards import DASHBOARDS
    from headrace.monitor.grafana import dashboard_json

    documents = {f"headrace-{d.name}.json": dashboard_json(d) for d in DASHBOARDS}
    _write(output, {name: f"{json.dumps(d, indent=2)}\n" for name, d in documents.items()})


def _yaml(document: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # an order of ours
    writer.width = 100
    text = StringIO()
    text.write(
        "# Generated by `headrace export prometheus`; export it again instead of editing it.\n"
    )
    writer.dump(dict(document), text)
    return text.getvalue()


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        say(f"{folder / name}")
