"""`headrace control`: a control plane in the foreground, for containers."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from headrace.cli.up.settings import ControlOptions
from headrace.core import InvalidArgumentError

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
            envvar="HEADRACE_DRIVER",
            help="Whether replicas are processes of this machine, or pods.",
        ),
    ] = Driver.LOCAL,
    namespace: Annotated[
        str,
        typer.Option(
            envvar=["HEADRACE_NAMESPACE", "POD_NAMESPACE"],
            help="Of the cluster; pods run there, and nothing outside is looked at.",
            show_default="default",
        ),
    ] = "default",
    instance: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_INSTANCE",
            help="The name of this installation, which objects' names begin with.",
        ),
    ] = "headrace",
    identity: Annotated[
        str,
        typer.Option(
            envvar=["HEADRACE_IDENTITY", "POD_NAME"],
            help="Who this is, among the control planes of an installation, of which one leads.",
            show_default="the host's name",
        ),
    ] = "",
    owner: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_OWNER",
            metavar="KIND/NAME",
            help="The Deployment or ConfigMap whose end takes all pods with it.",
        ),
    ] = "",
    internal_secret: Annotated[
        str,
        typer.Option(
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
            envvar="HEADRACE_KUBE_URL",
            metavar="URL",
            help="A proxy to the API server, such as `kubectl proxy`.",
            show_default="the service account, else the kubeconfig",
        ),
    ] = "",
    kube_context: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_KUBE_CONTEXT",
            help="Of the kubeconfig.",
            show_default="its current one",
        ),
    ] = "",
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
    from headrace.control.settings import ClusterSettings

    document = None
    if spec is not None:
        document = document_for(spec, name=None, replicas=None, home=options.home, has_state=True)
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
    settings = msgspec.structs.replace(
        options.settings(document),
        metrics_port=8002 if options.metrics_port is None else options.metrics_port,
        admin_port=8080 if options.admin_port is None else options.admin_port,
        driver=driver.value,
        cluster=cluster,
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
