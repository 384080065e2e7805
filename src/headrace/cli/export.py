"""`headrace export`: files for the programs that people watch systems with, and other systems."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli import export_helm, export_targets
from headrace.cli.options import DEFAULT_HOME, Home, Server

if TYPE_CHECKING:
    from headrace.monitor.prometheus import ScrapeTarget

app = typer.Typer(no_args_is_help=True, help="Write files for other programs.")

_USUAL_METRICS: Final = "http://127.0.0.1:8002/metrics"

_Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="The folder to write to; made if need be.",
        file_okay=False,
        show_default=False,
    ),
]


app.command()(export_helm.helm)


@app.callback()
def root() -> None:
    """Write files for other programs: Prometheus, Grafana, Kubernetes, other gateways."""


@app.command()
def prometheus(
    output: _Output,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="A spec file, instead of what runs.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        str,
        typer.Option(
            "--scrape-token-file",
            help="Where Prometheus finds the token of a viewer; needed beyond loopback.",
            show_default="none",
        ),
    ] = "",
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write rules, and configurations of Prometheus and Alertmanager.

    Alerts follow from each endpoint's `slo` and each stream's `alerts`, and routes from the
    system's `alerts`. Write them again when those change.

    For example:

        headrace export prometheus -o monitoring

        promtool check rules monitoring/headrace-alerts.yml
    """
    from headrace.core.spec_alerts import AlertsSpec
    from headrace.monitor.prometheus import prometheus_files
    from headrace.monitor.slo import objectives_of, stream_promises_of

    if file is not None:
        from headrace.cli.spec import read_spec

        document, target = read_spec(file).document(), _usual_target(token_file)
    else:
        document, target = _running(server, home, token_file)
    alerts = AlertsSpec.model_validate(document.get("alerts") or {})
    streams = stream_promises_of(document)
    files = prometheus_files(objectives_of(document), alerts, target, streams=streams)
    _write(output, {name: _yaml(content) for name, content in files.items()})


@app.command()
def grafana(output: _Output) -> None:
    """Write Grafana's dashboards: fleet, endpoint, rollout, replicas, streams and jobs.

    Import them by hand, or let Grafana read the folder (provisioning). They ask a Prometheus that
    has the rules of `headrace export prometheus`.

    For example:

        headrace export grafana -o monitoring/dashboards
    """
    import json

    from headrace.monitor.dashboards import DASHBOARDS
    from headrace.monitor.grafana import dashboard_json

    documents = {f"headrace-{d.name}.json": dashboard_json(d) for d in DASHBOARDS}
    _write(output, {name: f"{json.dumps(d, indent=2)}\n" for name, d in documents.items()})


export_targets.register(app)


def _usual_target(token_file: str) -> "ScrapeTarget":
    from headrace.monitor.prometheus import ScrapeTarget

    return ScrapeTarget(url=_USUAL_METRICS, token_file=token_file)


def _running(
    server: str | None, home: Path, token_file: str
) -> "tuple[dict[str, Any], ScrapeTarget]":
    """The spec of what runs, and where its metrics are."""
    from urllib.parse import urlsplit, urlunsplit

    from headrace.cli.connection import connect, find_target
    from headrace.cli.running import control_file
    from headrace.monitor.prometheus import ScrapeTarget

    api, where = connect(server, home), find_target(server, home)
    url = api.get("/api/v1/status")["addresses"]["metrics"]
    ca_file = str(where.ca_file or "")
    if where.is_remote:
        # What it calls itself may be loopback: it is reached under the name that it was asked by.
        parts = urlsplit(url)
        url = urlunsplit(parts._replace(netloc=f"{api.host}:{parts.port}"))
    else:
        ca_file = ca_file or control_file(home).admin_ca
    document = api.get("/api/v1/spec")["spec"]
    return document, ScrapeTarget(url=url, token_file=token_file, ca_file=ca_file)


def _yaml(document: Mapping[str, Any]) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # an order of ours
    writer.width = 100
    text = StringIO()
    text.write("# Written by `headrace export prometheus`; write it again rather than change it.\n")
    writer.dump(dict(document), text)
    return text.getvalue()


def _write(folder: Path, files: Mapping[str, str]) -> None:
    from headrace.cli.output import say

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        say(f"{folder / name}")
