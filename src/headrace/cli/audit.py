"""`headrace audit` and `headrace diagram`: checks and a drawing of a whole system."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import itertools
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.model_store import model_store
from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    Home,
    Json,
    argument,
    file_option,
    option,
)
from headrace.cli.base.output import progress, say, show, table, write
from headrace.core.spec.parse import SpecError
from headrace.core.text import bytes_text, printable

if TYPE_CHECKING:
    from headrace.advise.audit.reports import AuditReport

FINDINGS = 3
"""Exit status for a finding of at least the severity of `--fail-on`."""
app = CommandGroup(
    no_args_is_help=False,
    invoke_without_command=True,
    help="Check the system and its spec against a published list of checks.",
)


class ReportFormat(StrEnum):
    """Format of an audit report."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    HTML = "html"


class FailOn(StrEnum):
    """Severity from which an audit fails."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@app.callback()
def audit(
    context: typer.Context,
    *,
    file: Annotated[
        Path | None,
        file_option(
            "Check a spec file only; no system needs to run.",
            "--file",
            "-f",
            shown="the system at --home or --server",
        ),
    ] = None,
    fail_on: Annotated[
        FailOn | None,
        option("Exit with status 3 if a finding has at least this severity.", shown="never"),
    ] = None,
    format_: Annotated[ReportFormat, option("Output format.", "--format")] = ReportFormat.TEXT,
    output: Annotated[
        Path | None,
        option(
            "Write the report to this file.",
            "--output",
            "-o",
            dir_okay=False,
            shown="standard output",
        ),
    ] = None,
    advisories: Annotated[
        Path | None,
        option(
            "Compare installed packages with these OSV documents (JSON); nothing is downloaded.",
            metavar="FILE|DIR",
            exists=True,
        ),
    ] = None,
    list_: Annotated[bool, option("List the checks without running them.", "--list")] = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Check the running system and its spec, or a spec file; each finding includes a remedy.

    Checks that could not be evaluated are listed as not checked. Exit status: 0 for any findings;
    with --fail-on, 3 for a finding at or above that severity. Nothing is changed.

    For example:

        headrace audit --fail-on high

        headrace audit -f headrace.yaml --format sarif -o audit.sarif

        headrace audit models ./models
    """
    if context.invoked_subcommand is not None:
        return
    if json and format_ not in {ReportFormat.TEXT, ReportFormat.JSON}:
        msg = f"--json and --format {format_} exclude each other"
        raise typer.BadParameter(msg, param_hint="--json")
    selected = ReportFormat.JSON if json else format_
    if list_:
        _write(_listed(selected), output)
        return
    report = _report(file, fail_on, advisories, plane=plane)
    _write(_rendered(report, selected), output)
    if output is not None:
        from headrace.advise.audit.reports import summary_line

        say(f"{summary_line(report.audit)}; see {output}")
    if report.fails:
        raise typer.Exit(FINDINGS)


def _report(
    file: Path | None,
    fail_on: FailOn | None,
    advisories: Path | None,
    *,
    plane: ControlPlaneOptions,
) -> "AuditReport":
    from headrace import __version__
    from headrace.advise import FindingSeverity, run_checks
    from headrace.advise.audit.checks import CHECKS
    from headrace.advise.audit.collect import SystemLocation, collect_running, collect_spec_file
    from headrace.advise.audit.reports import AuditReport
    from headrace.advise.audit.software import read_advisories
    from headrace.cli.base.spec_file import read_spec

    known_advisories = None if advisories is None else read_advisories(advisories)
    now = datetime.now(UTC)
    if file is not None:
        name = str(file)
        try:
            facts = collect_spec_file(file, now=now, advisories=known_advisories)
        except (SpecError, UnicodeDecodeError):
            read_spec(file)  # reports mistakes as `headrace check` does
            raise
    else:
        target = plane.target()
        api = target.management()
        location = SystemLocation(
            url=api.url, home=None if target.is_remote else target.home.absolute()
        )
        name = api.url if target.is_remote else str(target.home)
        with progress("checking the system"):
            facts = collect_running(api, location, now=now, advisories=known_advisories)
    return AuditReport(
        audit=run_checks(CHECKS, facts),
        target=name,
        created_at=now,
        version=__version__,
        fail_on=None if fail_on is None else FindingSeverity(fail_on.value),
    )


def _rendered(report: "AuditReport", form: ReportFormat) -> str:
    from headrace.advise.audit.checks import CHECKS
    from headrace.advise.audit.reports import html_report, json_report, sarif_report, text_report

    match form:
        case ReportFormat.TEXT:
            return text_report(report)
        case ReportFormat.JSON:
            return _json(json_report(report))
        case ReportFormat.SARIF:
            return _json(sarif_report(report, CHECKS))
        case ReportFormat.HTML:
            return html_report(report).rstrip("\n")


def _listed(form: ReportFormat) -> str:
    from headrace.advise.audit.checks import CHECKS

    if form is ReportFormat.TEXT:
        return "\n".join(f"{check.id}  {check.severity:<8}  {check.title}" for check in CHECKS)
    if form is not ReportFormat.JSON:
        msg = "the list of checks is available as text or json"
        raise typer.BadParameter(msg, param_hint="--format")
    names = ("id", "title", "severity", "why", "fix", "needs")
    return _json({"checks": [{name: getattr(check, name) for name in names} for check in CHECKS]})


def _json(document: object) -> str:
    import json

    # File names may not be valid text; JSON must be.
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _write(text: str, output: Path | None) -> None:
    if output is None:
        write(text)
    else:
        output.write_text(f"{text}\n", encoding="utf-8", errors="replace")


@app.command()
def models(
    folder: Annotated[
        Path,
        argument(
            "Directory of models, or a Triton-style model repository.",
            metavar="DIR",
            exists=True,
            file_okay=False,
        ),
    ],
    *,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Inventory a directory: each model, its format, the runtime that serves it, and its problems.

    Formats are detected from file content. Models are never loaded, so no code in them runs.

    For example:

        headrace audit models ./models

        headrace audit models ./models --json | jq '.assets[] | select(.runtime == null)'
    """
    from headrace.advise.inventory.walk import (
        HEAD,
        InventoryContext,
        asset_row,
        highest_opset,
        inventory_document,
        open_in_onnx_runtime,
        remarks,
        take_inventory,
    )
    from headrace.cli.base.connection import CommandTarget
    from headrace.runtimes import usable_runtimes

    versions = model_store(CommandTarget(home=home)).list(None)["models"]
    registered = InventoryContext(
        references={
            version["digest"]: (version["reference"], bool(version["signatures"]))
            for version in versions
        },
        runtimes=usable_runtimes(),
        max_opset=highest_opset(open_in_onnx_runtime),
    )
    with progress(f"scanning {folder}"):
        inventory = take_inventory(folder, registered)
    if json:
        write(_json(inventory_document(inventory)))
        return
    if not inventory.assets:
        say(f"no model in {folder}")
        return
    rows = (
        tuple(printable(cell) for cell in asset_row(asset, size=bytes_text(asset.size_bytes)))
        for asset in inventory.assets
    )
    show(table(rows, *HEAD))
    for line in remarks(inventory):
        say(printable(line))


_PAGE = 500


class DiagramFormat(StrEnum):
    """Format of a diagram."""

    SVG = "svg"
    MERMAID = "mermaid"


def diagram(
    *,
    format_: Annotated[
        DiagramFormat | None,
        option(
            "Output format.", "--format", shown="by the file extension of --output, else mermaid"
        ),
    ] = None,
    output: Annotated[
        Path | None, option("A file.", "--output", "-o", dir_okay=False, shown="standard output")
    ] = None,
    search: Annotated[
        str, option("Only endpoints whose name contains this text.", shown="all")
    ] = "",
    limit: Annotated[
        int,
        option(
            "Maximum number of endpoints: those with problems first, then the busiest.",
            min=1,
            max=1000,
        ),
    ] = 40,
    plane: ControlPlaneOptions,
) -> None:
    """Draw a diagram of gateway, endpoints, versions, replicas and control plane.

    For example:

        headrace diagram -o system.svg

        headrace diagram --format mermaid >> README.md
    """
    from headrace.advise.diagram.parts import mermaid, picture_of
    from headrace.advise.diagram.svg import svg

    by_ending = output is not None and output.suffix.lower() == ".svg"
    form = format_ or (DiagramFormat.SVG if by_ending else DiagramFormat.MERMAID)
    api = plane.connect()
    rows: list[dict[str, Any]] = []
    for page in itertools.count(1):
        overview = api.get("/api/v1/overview", page=page, size=_PAGE)
        rows += overview["endpoints"]
        if len(rows) >= overview["total"] or not overview["endpoints"]:
            break
    rollouts = api.get("/api/v1/rollouts", active="true")["rollouts"]
    status = api.get("/api/v1/status")
    picture = picture_of(status, rows, rollouts, search=search, limit=limit)
    content = svg(picture) if form is DiagramFormat.SVG else mermaid(picture)
    if output is None:
        sys.stdout.write(content)
        return
    output.write_text(content, encoding="utf-8")
    say(f"wrote {output}")
