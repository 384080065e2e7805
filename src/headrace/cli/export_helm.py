"""`headrace export helm`: the chart, filled in for a spec."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.export_names import check_artifacts
from headrace.cli.options import DEFAULT_HOME, Home

if TYPE_CHECKING:
    from headrace.control.desired import DesiredEndpoint
    from headrace.core.spec import SystemSpec
    from headrace.deploy.helm_spec import Stored

_BY_CONTROL = "control"


def helm(
    spec_file: Annotated[
        Path | None,
        typer.Argument(metavar="[SPEC]", exists=True, dir_okay=False, hidden=True),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="The spec file; without one the chart as it is.",
            exists=True,
            dir_okay=False,
            show_default="none",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The folder to write the chart to; made if need be.",
            file_okay=False,
            show_default=False,
        ),
    ],
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="driver: the control plane makes the objects of versions; static: the chart does, "
            "for clusters without one.",
        ),
    ] = "driver",
    artifacts: Annotated[
        str,
        typer.Option(
            "--artifacts",
            envvar="HEADRACE_ARTIFACTS",
            metavar="URL",
            help="The store that pods fetch models from.",
            show_default="none",
        ),
    ] = "",
    jobs: Annotated[
        str, typer.Option("--jobs", help="cronjobs, or control: the control plane runs them.")
    ] = "cronjobs",
    streams: Annotated[
        str,
        typer.Option("--streams", help="deployments, or control: the control plane runs them."),
    ] = "deployments",
    mount: Annotated[
        list[str] | None,
        typer.Option(
            "--mount",
            metavar="KIND:NAME=/PATH",
            help="A secret, config or claim that has the spec's files at that path; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    lag_records: Annotated[
        int | None,
        typer.Option(
            "--lag-records",
            min=1,
            help="How many records a stream's worker may be behind before KEDA adds one.",
            show_default="ten batches",
        ),
    ] = None,
    nats_monitoring: Annotated[
        str,
        typer.Option(
            "--nats-monitoring",
            metavar="HOST:PORT",
            help="Where KEDA reads the statistics of NATS.",
            show_default="none",
        ),
    ] = "",
    keda_authentication: Annotated[
        str,
        typer.Option(
            "--keda-authentication",
            metavar="NAME",
            help="The TriggerAuthentication by which KEDA asks brokers.",
            show_default="none",
        ),
    ] = "",
    allow_loss: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-loss",
            metavar="FIELD",
            help="Leave this setting out, such as endpoints[].sticky; may be repeated.",
            show_default=False,
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write the Helm chart, with values that serve a spec.

    What the chart cannot express is an error that names its place in the spec. Models of jobs and
    streams, and with --mode static of endpoints, are looked up in the registry of --home.

    For example:

        headrace export helm -f headrace.yaml -o chart --artifacts s3://models/prod

        helm upgrade --install headrace ./chart -n models --set agentTls.certManager.enabled=true
    """
    from headrace.cli.export_folder import write_over
    from headrace.cli.output import say
    from headrace.deploy.helm_spec import HelmExport, HelmOptions, Mode, Mount
    from headrace.deploy.helm_values import chart_folder, chart_with, check_folder

    _check_one_of("--mode", mode, tuple(Mode))
    _check_one_of("--jobs", jobs, ("cronjobs", _BY_CONTROL))
    _check_one_of("--streams", streams, ("deployments", _BY_CONTROL))
    if file is not None and spec_file is not None:
        raise typer.BadParameter("the spec is named twice", param_hint="--file")
    file = file or spec_file
    check_artifacts(artifacts)
    check_folder(output)
    options = HelmOptions(
        mode=Mode(mode),
        artifacts=artifacts,
        mounts=tuple(map(Mount.parsed, mount or ())),
        jobs_apart=jobs != _BY_CONTROL,
        streams_apart=streams != _BY_CONTROL,
        lag_records=lag_records,
        nats_monitoring=nats_monitoring,
        keda_authentication=keda_authentication,
        allowed=tuple(allow_loss or ()),
    )
    if file is None:
        export = HelmExport(values={"artifacts": {"url": artifacts}, "workloads": {"mode": mode}})
    else:
        from headrace.cli.spec import read_spec
        from headrace.deploy.helm_values import helm_values

        spec = read_spec(file)
        stored, endpoints = _known(spec, home, is_static=options.mode is Mode.STATIC)
        export = helm_values(spec, options, stored=stored, endpoints=endpoints)
    notes = write_over(output, chart_with(export.values, chart_folder()))
    say(f"{output}: the chart; look at its values.yaml")
    for note in (*notes, *export.notes):
        say(f"  {note}")


def _check_one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise typer.BadParameter(f"'{given}' is neither {' nor '.join(known)}", param_hint=option)


def _known(
    spec: "SystemSpec", home: Path, *, is_static: bool
) -> "tuple[dict[str, Stored], tuple[DesiredEndpoint, ...]]":
    """What the registry has of the spec's models, and with `is_static` every endpoint pinned."""
    from headrace.cli.export_pinned import has_files, pinned_endpoints
    from headrace.control.sandboxed import SandboxedInspector
    from headrace.core import NotFoundError
    from headrace.core.spec import is_model_path
    from headrace.deploy.helm_spec import Stored, models_apart
    from headrace.registry import Registry

    endpoints: tuple[DesiredEndpoint, ...] = ()
    stored: dict[str, Stored] = {}
    with contextlib.closing(SandboxedInspector.of_home(home)) as inspect:
        registry = Registry(home, inspect)
        for _, reference in models_apart(spec):
            if is_model_path(reference):
                continue
            with contextlib.suppress(NotFoundError):  # told with its place later
                found = registry.get(reference)
                stored[reference] = Stored(digest=found.digest, filename=found.filename)
    if is_static and not has_files(spec):
        endpoints = pinned_endpoints(spec, home)
    return stored, endpoints
