"""`headrace optimize`: search for a faster or smaller model within a tolerance."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from headrace.cli.base.model_store import model_store
from headrace.cli.base.offline import Pushed, home_registry
from headrace.cli.base.options import (
    AllowCode,
    ControlPlaneOptions,
    Json,
    argument,
    file_option,
    name_from,
    option,
    parse_share,
    seconds,
)
from headrace.cli.base.output import progress_bar, say, show, write_json
from headrace.control.sandboxed.search import SandboxedSearch, SearchArguments, check_folder
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    SystemClock,
    check_name,
)
from headrace.optimize.accuracy import Fidelity, QualityVerdict
from headrace.optimize.report import OptimizeReport, html_report, text_report
from headrace.optimize.search.journal import (
    Begun,
    CandidateFailed,
    Compared,
    Event,
    Judged,
    ProgressNote,
    RecipeEnded,
    SearchState,
)
from headrace.optimize.search.outcome import lineage, report_of
from headrace.optimize.search.process import SearchRequest
from headrace.optimize.search.process import SearchTarget as Goal
from headrace.registry import ModelVersion, read_content
from headrace.runtimes.optimized.file import OtherProcessor

if TYPE_CHECKING:
    from headrace.cli.base.connection import CommandTarget

_TOKENIZER: Final = "tokenizer.json"
_KEY_LENGTH: Final = 24
_STEPS = {
    "build": "making",
    "try": "timing",
    "score": "running the baseline on the examples:",
    "screen": "screening",
    "judge": "judging",
    "compare": "comparing the best:",
    "weigh": "weighing",
    "mix": "timing batches of several sizes:",
    "write": "writing",
}


@contextmanager
def search_progress(
    description: str, budget_s: float
) -> Iterator[Callable[[Event, SearchState], None]]:
    """Show the progress of a search on a terminal, and a line per result."""
    notes = SearchNotes()
    with progress_bar(f"optimizing {description}", budget_s) as update:

        def on_event(event: Event, state: SearchState) -> None:
            if isinstance(event, Begun):
                update(description=f"{_STEPS.get(event.step, event.step)} {event.name}")
            if isinstance(event, ProgressNote):
                update(description=event.text)
            left_s = max(0.0, budget_s - state.at_s)
            update(completed=min(state.at_s, budget_s), note=f"{left_s:.0f} s left")
            for line in lines_of(event, notes):
                say(line)

        yield on_event
    if line := notes.flush():
        say(line)


@dataclass(slots=True)
class SearchNotes:
    """Consecutive recipes and candidates that were skipped for the same reason."""

    names: list[str] = field(default_factory=list)
    reason: str = ""

    def flush(self) -> str:
        """Return the line for the collected names and clear them; empty without names."""
        line = f"  {', '.join(self.names)}: skipped: {self.reason}" if self.names else ""
        self.names.clear()
        return line


def lines_of(event: Event, notes: SearchNotes) -> Iterator[str]:
    """Yield the lines of a result; skipped names wait, as the next may have the same reason."""
    if isinstance(event, Begun | RecipeEnded | ProgressNote):
        return
    if not (isinstance(event, CandidateFailed) and event.reason == notes.reason) and (
        line := notes.flush()
    ):
        yield line
    match event:
        case CandidateFailed():
            notes.names.append(event.name)
            notes.reason = event.reason
        case Judged(is_part=True):
            yield f"  {event.name}: so far: {event.verdict.reason}"
        case Judged():
            yield _judged(event.name, event.verdict)
        case Compared():
            yield _judged(event.name, event.fidelity)
        case _:
            pass


def _judged(name: str, judged: QualityVerdict | Fidelity) -> str:
    return f"  {name}: {'good' if judged.passes else 'rejected'}: {judged.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Options of the search itself."""

    label: Annotated[str, option("Label column.", shown="detected by name")] = ""
    text: Annotated[str, option("Text columns, separated by commas.", shown="detected by name")] = (
        ""
    )
    metric: Annotated[
        str,
        option("accuracy, auc, spearman, pearson, rmse, mae or r2.", shown="chosen by the labels"),
    ] = ""
    output: Annotated[str, option("Output that is evaluated.", shown="chosen by its shape")] = ""
    calibrate: Annotated[int, option("Number of examples for calibration.", min=0, max=100_000)] = (
        256
    )
    target: Annotated[Goal, option("Optimization target.")] = Goal.LATENCY
    max_loss: Annotated[
        str, option("Tolerated loss of the metric: 1% is one percentage point of accuracy.")
    ] = "1%"
    budget: Annotated[str, option("Time budget: 90s, 5m, 1h.")] = "3m"
    threads: Annotated[int, option("Threads per model run.", min=1, max=1024)] = 1
    rows: Annotated[int, option("Rows per request.", min=1, max=65_536)] = 1
    length: Annotated[
        int | None,
        option(
            "Size of variable axes other than rows.",
            min=1,
            max=1 << 20,
            shown="128 for a transformer, else the size in the examples",
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        option(
            "Only this recipe; * matches any characters. May be repeated.",
            metavar="RECIPE",
            shown="all applicable recipes",
        ),
    ] = None
    on_other_processor: Annotated[
        OtherProcessor, option("Behaviour when the result is loaded on a different processor.")
    ] = OtherProcessor.VERIFY
    runtime: Annotated[
        str, option("Input format of the model.", shown="detected from the file")
    ] = ""
    allow_code: AllowCode = False

    def request(self) -> SearchRequest:
        """Return the search without its model."""
        return SearchRequest(
            source="",
            runtime=self.runtime,
            allow_code=self.allow_code,
            label=self.label,
            text=self.text,
            metric=self.metric,
            output=self.output,
            calibrate=self.calibrate,
            target=self.target,
            max_loss=parse_share(self.max_loss, "--max-loss"),
            budget_s=seconds(self.budget, "--budget"),
            threads=self.threads,
            rows=self.rows,
            length=self.length,
            only=tuple(self.only or ()),
            on_other_processor=self.on_other_processor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Options for the result of the search."""

    cost_per_hour: Annotated[
        float | None,
        option(
            "Cost per hour of this machine's cores, in any currency.",
            min=0.0,
            shown="none: costs are not shown",
        ),
    ] = None
    name: Annotated[
        str, option("Store the result as the next version of this model.", shown="MODEL's own")
    ] = ""
    push: Annotated[bool, option("Store the result as a version.", "--push/--no-push")] = True
    out: Annotated[Path | None, option("Also write the result to this directory.", shown="no")] = (
        None
    )
    report: Annotated[
        Path | None,
        option(
            "Write the HTML report to this file.",
            dir_okay=False,
            shown="optimize-NAME.html in --home",
        ),
    ] = None
    canary: Annotated[
        str, option("Start a canary rollout of the result on this endpoint.", metavar="ENDPOINT")
    ] = ""
    json: Json = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Model: its path, its name, and its version if it has one."""

    path: Path
    name: str
    reference: str
    runtime: str
    digest: str


def optimize(
    model: Annotated[
        str, argument("NAME[:VERSION] of the registry, or a file or directory.", metavar="MODEL")
    ],
    *,
    data: Annotated[
        Path | None,
        option(
            "Labelled examples (.tsv, .csv, .jsonl, .parquet, .npz) for evaluating candidates.",
            exists=True,
            shown="none: answers are compared with the original model, which is weaker evidence",
        ),
    ] = None,
    teach: Annotated[
        Path | None,
        option(
            "Other examples for calibration and pruning; never used for evaluation.",
            exists=True,
            shown="part of --data without labels, and no pruning",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        file_option("tokenizer.json, for text columns.", shown="the file next to the model"),
    ] = None,
    options: SearchOptions,
    result_options: ResultOptions,
    resume: Annotated[bool, option("Resume an interrupted search.", "--resume")] = False,
    plane: ControlPlaneOptions,
) -> None:
    """Optimize MODEL for speed or size within an accuracy tolerance.

    Candidates - graph options, other precisions, quantized and pruned models, in ONNX Runtime and
    OpenVINO - are timed alternately with the original model, excluding intervals that other
    programs disturbed, and evaluated by a paired test on labels. The best one is stored as the
    model's next version, with its lineage. The report lists rejected candidates with the reason.

    For example:

        headrace optimize sentiment.onnx --data dev.tsv

        headrace optimize fraud:3 --data test.parquet --label is_fraud --target throughput

        headrace optimize fraud:3 --target cost --cost-per-hour 0.17

        headrace optimize sentiment:1 --data dev.tsv --teach train.tsv --canary sentiment
    """
    out, cost_per_hour = result_options.out, result_options.cost_per_hour
    if result_options.canary and not result_options.push:
        raise typer.BadParameter("--canary needs a stored version, and --no-push stores none")
    request = options.request()
    if cost_per_hour is not None and not isfinite(cost_per_hour):
        raise typer.BadParameter(f"{cost_per_hour} is not a price", param_hint="--cost-per-hour")
    if teach is not None and data is None:
        msg = "--teach needs --data: without it candidates cannot be evaluated"
        raise InvalidArgumentError(msg)
    target = plane.target()
    source = _source(model, request.runtime, result_options, target)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} already exists; --out needs a new or empty directory"
        raise FailedPreconditionError(msg)
    beside = (source.path if source.path.is_dir() else source.path.parent) / _TOKENIZER
    arguments = SearchArguments(
        model=source.path,
        data=data,
        teach=teach,
        tokenizer=tokenizer or (beside if beside.is_file() else None),
    )
    request = msgspec.structs.replace(request, runtime=source.runtime, digest=source.digest)
    key = search_key(request, arguments)
    search = SandboxedSearch.of_home(plane.home, key)
    if resume:
        check_folder(plane.home, key)
    else:
        search.forget()
    state = _searched(search, request, arguments, source, result_options, home=plane.home)
    report = report_of(
        state,
        request,
        reference=source.reference,
        created_at=SystemClock().now(),
        cost_per_hour=cost_per_hour,
    )
    version = ""
    if state.wrote is not None:
        with tempfile.TemporaryDirectory(prefix="headrace-optimized-") as folder:
            artifact = search.artifact(state, Path(folder) / source.name)
            if out is not None:
                shutil.copytree(artifact, out, dirs_exist_ok=True)
            if result_options.push:
                runtime = state.started.runtime if state.started is not None else ""
                pushed = Pushed(
                    path=artifact,
                    runtime="optimized",
                    source=source.reference,
                    metadata=lineage(report, runtime=runtime, filename=source.path.name),
                )
                version = model_store(target).push(source.name, pushed)["reference"]
    _show_report(report, version, source, result_options, home=plane.home)
    search.forget()
    if result_options.canary and version:
        # According to the endpoint's own plan if it has one.
        body = {"version": "", "rollout": {"strategy": "canary"}, "model": version}
        path = f"/api/v1/endpoints/{result_options.canary}/rollout"
        status = target.management().post(path, body, timeout_s=300.0)
        say(
            f"rollout {status['id']} of {result_options.canary}: version {status['from_version']} "
            f"to {status['to_version']}; watch it with "
            f"`headrace rollout status {result_options.canary} --watch`"
        )


def search_key(request: SearchRequest, arguments: SearchArguments) -> str:
    """Return the identity of a search: model, data, and all options but the budget."""
    digest = hashlib.sha256()
    comparable = msgspec.structs.replace(request, budget_s=0.0, source="")
    digest.update(msgspec.json.encode(comparable))
    for path in (arguments.data, arguments.teach, arguments.tokenizer):
        digest.update(b"-" if path is None else read_content(path).digest.encode())
    return digest.hexdigest()[:_KEY_LENGTH]


def _source(
    model: str, runtime: str, result_options: ResultOptions, target: "CommandTarget"
) -> ModelSource:
    path = Path(model)
    if path.exists():
        name = result_options.name or name_from(path)
        if result_options.push:
            check_name(name)
        return ModelSource(
            path=path.absolute(),
            name=name,
            reference=model,
            runtime=runtime,
            digest=read_content(path.absolute()).digest,
        )
    if target.is_remote:
        msg = (
            f"{model}: no such file, and versions are optimized on the host of their registry: "
            "run this command there, or pass the model's file"
        )
        raise InvalidArgumentError(msg)
    version = msgspec.convert(model_store(target).get(model), ModelVersion)
    return ModelSource(
        path=home_registry(target.home).path(version).absolute(),
        name=result_options.name or version.name,
        reference=version.reference,
        runtime=version.runtime,
        digest=version.digest,
    )


def _searched(
    search: SandboxedSearch,
    request: SearchRequest,
    arguments: SearchArguments,
    source: ModelSource,
    result_options: ResultOptions,
    *,
    home: Path,
) -> SearchState:
    """Return the result of a search; an interrupted one returns its measurements."""
    try:
        with search_progress(source.reference, request.budget_s) as on_event:
            return search.run(request, arguments, on_event=on_event)
    except HeadraceError:
        if not search.state().baseline:
            search.forget()  # no results, and it holds copies of the data
        raise
    except KeyboardInterrupt:
        state = search.state()
        if state.baseline:
            price, reference = result_options.cost_per_hour, source.reference
            report = report_of(state, request, reference=reference, cost_per_hour=price)
            _show_report(report, "", source, result_options, home=home)
        say("interrupted; measurements are stored. Continue by repeating the command with --resume")
        raise


def _show_report(
    report: OptimizeReport,
    version: str,
    source: ModelSource,
    result_options: ResultOptions,
    *,
    home: Path,
) -> None:
    if version:
        report = msgspec.structs.replace(report, version=version)
    page = result_options.report or home / f"optimize-{source.name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html_report(report), encoding="utf-8")
    if result_options.json:
        write_json(report)
    else:
        show(text_report(report))
    say(f"HTML report: {page}")
    if version:
        say(f"{version} is stored; serve it with `model: {version}`")
    elif result_options.out is not None and report.chosen.name != report.baseline.name:
        say(
            f"the result is in {result_options.out}; "
            f"serve it with `headrace serve {result_options.out}`"
        )
