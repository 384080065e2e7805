"""`headrace optimize`: search for a faster or smaller model within a tolerance."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.cli.connection import Target, find_target
from headrace.cli.models.store import Pushed, home_registry, model_store
from headrace.cli.options import (
    AllowCode,
    ControlPlane,
    Json,
    parse_share,
    seconds,
)
from headrace.cli.output import say, show, write_json
from headrace.cli.up.start import name_from
from headrace.control.sandboxed.search import Given, SandboxedSearch, check_folder
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    SystemClock,
    check_name,
)
from headrace.optimize.accuracy import Fidelity, Verdict
from headrace.optimize.report import OptimizeReport, html_report, text_report
from headrace.optimize.search.journal import (
    Begun,
    Compared,
    Ended,
    Event,
    Failed,
    Judged,
    Said,
    State,
)
from headrace.optimize.search.outcome import lineage, report_of
from headrace.optimize.search.process import SearchRequest
from headrace.registry import read_content

if TYPE_CHECKING:
    from headrace.registry import ModelVersion

_STEPS = {
    "build": "making",
    "try": "timing",
    "score": "asking the baseline for its answers:",
    "screen": "screening",
    "judge": "judging",
    "compare": "comparing the best:",
    "weigh": "weighing",
    "mix": "timing batches of several sizes:",
    "write": "writing",
}


@contextmanager
def search_progress(what: str, budget_s: float) -> Iterator[Callable[[Event, State], None]]:
    """Show how far a search is, where somebody watches; elsewhere, a line for each result."""
    if not sys.stderr.isatty():
        with _lines(say) as on_line:
            yield lambda event, _: on_line(event)
        return

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        _lines(bar.console.print) as on_line,
    ):
        task = bar.add_task(f"optimizing {what}", total=budget_s, left="")
        began: float | None = None

        def on_event(event: Event, state: State) -> None:
            nonlocal began
            if began is None:
                began = time.monotonic() - event.at_s
            if isinstance(event, Begun):
                bar.update(task, description=f"{_STEPS.get(event.step, event.step)} {event.name}")
            if isinstance(event, Said):
                bar.update(task, description=event.text)
            left_s = max(0.0, budget_s - state.at_s)
            bar.update(task, completed=min(state.at_s, budget_s), left=f"{left_s:.0f} s left")
            on_line(event)

        yield on_event


@contextmanager
def _lines(tell: Callable[[str], None]) -> Iterator[Callable[[Event], None]]:
    """Takes events, and tells what was found out, at the latest when it is left."""
    given_up = GivenUp()

    def on_event(event: Event) -> None:
        for line in lines_of(event, given_up):
            tell(line)

    yield on_event
    if line := given_up.told():
        tell(line)


@dataclass(slots=True)
class GivenUp:
    """Recipes and candidates that were given up one after the other, for one reason."""

    names: list[str] = field(default_factory=list)
    reason: str = ""

    def told(self) -> str:
        """The line for them, once; empty if there are none."""
        line = f"  {', '.join(self.names)}: given up: {self.reason}" if self.names else ""
        self.names.clear()
        return line


def lines_of(event: Event, given_up: GivenUp) -> Iterator[str]:
    """The lines for what was found out; those given up wait, as the next may be for the same."""
    if isinstance(event, Begun | Ended | Said):
        return
    if not (isinstance(event, Failed) and event.reason == given_up.reason) and (
        line := given_up.told()
    ):
        yield line
    match event:
        case Failed():
            given_up.names.append(event.name)
            given_up.reason = event.reason
        case Judged(is_part=True):
            yield f"  {event.name}: so far: {event.verdict.reason}"
        case Judged():
            yield _judged(event.name, event.verdict)
        case Compared():
            yield _judged(event.name, event.fidelity)
        case _:
            pass


def _judged(name: str, judged: Verdict | Fidelity) -> str:
    return f"  {name}: {'good' if judged.passes else 'rejected'}: {judged.reason}"


_TOKENIZER: Final = "tokenizer.json"
_KEY_LENGTH: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command was told besides the search itself."""

    data: Path | None
    teach: Path | None
    tokenizer: Path | None
    name: str
    push: bool
    out: Path | None
    report: Path | None
    canary: str
    cost_per_hour: float | None
    resume: bool
    json: bool
    server: str | None
    home: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model: where it lies, what it is called, and its version where it is one."""

    path: Path
    name: str
    reference: str
    runtime: str
    digest: str


def run(model: str, request: SearchRequest, wishes: Wishes) -> None:
    """Search, tell, and store what was found.

    Raises:
        KeyboardInterrupt: It was interrupted; what was measured was told, and is kept.
        HeadraceError: It cannot be done.
    """
    target = find_target(wishes.server, wishes.home)
    source = _source(model, request, wishes, target)
    out = wishes.out
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is there already; --out takes a new directory or an empty one"
        raise FailedPreconditionError(msg)
    given = Given(
        model=source.path,
        data=wishes.data,
        teach=wishes.teach,
        tokenizer=wishes.tokenizer or _beside(source.path),
    )
    request = msgspec.structs.replace(request, runtime=source.runtime, digest=source.digest)
    key = search_key(request, given)
    search = SandboxedSearch.of_home(wishes.home, key)
    if wishes.resume:
        check_folder(wishes.home, key)
    else:
        search.forget()
    state = _searched(search, request, given, source, wishes)
    report = report_of(
        state,
        request,
        reference=source.reference,
        at=SystemClock().now(),
        cost_per_hour=wishes.cost_per_hour,
    )
    version = None
    if state.wrote is not None:
        version = _kept(search, state, report, source=source, wishes=wishes, target=target)
    _tell(report, version, source, wishes)
    search.forget()
    if wishes.canary and version is not None:
        _roll_out(target, wishes.canary, version)


def search_key(request: SearchRequest, given: Given) -> str:
    """What tells a search from others: the model, the data, and what was asked but the budget."""
    digest = hashlib.sha256()
    alike = msgspec.structs.replace(request, budget_s=0.0, source="")
    digest.update(msgspec.json.encode(alike))
    for path in (given.data, given.teach, given.tokenizer):
        digest.update(b"-" if path is None else read_content(path).digest.encode())
    return digest.hexdigest()[:_KEY_LENGTH]


def _searched(
    search: SandboxedSearch, request: SearchRequest, given: Given, source: Source, wishes: Wishes
) -> State:
    try:
        with search_progress(source.reference, request.budget_s) as on_event:
            return search.run(request, given, on_event=on_event)
    except HeadraceError:
        if not search.state().baseline:
            search.forget()  # nothing was found out, and it holds copies of the data
        raise
    except KeyboardInterrupt:
        state = search.state()
        if state.baseline:
            price, reference = wishes.cost_per_hour, source.reference
            report = report_of(state, request, reference=reference, cost_per_hour=price)
            _tell(report, None, source, wishes)
        say("interrupted; what was measured is kept: the same command with --resume goes on")
        raise


def _source(model: str, request: SearchRequest, wishes: Wishes, target: Target) -> Source:
    path = Path(model)
    if path.exists():
        name = wishes.name or name_from(path)
        return Source(
            path=path.absolute(),
            name=name if not wishes.push else check_name(name) or name,
            reference=model,
            runtime=request.runtime,
            digest=read_content(path.absolute()).digest,
        )
    if target.is_remote:
        msg = (
            f"{model}: no such file, and a version is optimized where its registry is: run this "
            "on that machine, or give the model's file"
        )
        raise InvalidArgumentError(msg)
    version = model_store(target).get(model)
    registry = home_registry(wishes.home)
    return Source(
        path=registry.path(version).absolute(),
        name=wishes.name or version.name,
        reference=version.reference,
        runtime=version.runtime,
        digest=version.digest,
    )


def _beside(model: Path) -> Path | None:
    """The tokenizer that lies beside a model."""
    found = (model if model.is_dir() else model.parent) / _TOKENIZER
    return found if found.is_file() else None


def _kept(
    search: SandboxedSearch,
    state: State,
    report: OptimizeReport,
    *,
    source: Source,
    wishes: Wishes,
    target: Target,
) -> "ModelVersion | None":
    """The version that the result became; None with --no-push."""
    with _artifact(search, state, source.name) as made:
        if wishes.out is not None:
            shutil.copytree(made, wishes.out, dirs_exist_ok=True)
        if not wishes.push:
            return None
        return model_store(target).push(
            source.name,
            Pushed(
                path=made,
                runtime="optimized",
                source=source.reference,
                metadata=lineage(report, runtime=_runtime(state), filename=source.path.name),
            ),
        )


def _runtime(state: State) -> str:
    """The source's, as the search found it out."""
    return state.started.runtime if state.started is not None else ""


@contextmanager
def _artifact(search: SandboxedSearch, state: State, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="headrace-optimized-") as mine:
        yield search.artifact(state, Path(mine) / name)


def _tell(
    report: OptimizeReport, version: "ModelVersion | None", source: Source, wishes: Wishes
) -> None:
    if version is not None:
        report = msgspec.structs.replace(report, version=version.reference)
    page = wishes.report or wishes.home / f"optimize-{source.name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html_report(report), encoding="utf-8")
    if wishes.json:
        write_json(report)
    else:
        show(text_report(report))
    say(f"the report for a browser: {page}")
    if version is not None:
        say(f"{version.reference} is stored; serve it with `model: {version.reference}`")
    elif wishes.out is not None and report.chosen.name != report.baseline.name:
        say(f"the result lies in {wishes.out}; `headrace serve {wishes.out}` serves it")


def _roll_out(target: Target, endpoint: str, version: "ModelVersion") -> None:
    """Start a canary of a version, by the endpoint's own plan if it has one."""
    body = {"version": "", "rollout": {"strategy": "canary"}, "model": version.reference}
    api = target.management()
    status = api.post(f"/api/v1/endpoints/{endpoint}/rollout", body, timeout_s=300.0)
    say(
        f"rollout {status['id']} of {endpoint}: version {status['from_version']} to "
        f"{status['to_version']}; watch it with `headrace rollout status {endpoint} --watch`"
    )


class For(StrEnum):
    """What is to become better."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    COST = "cost"


class Elsewhere(StrEnum):
    """What to do where the optimized model is loaded on another processor."""

    VERIFY = "verify"
    REFUSE = "refuse"
    ALLOW = "allow"


def optimize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="NAME[:VERSION] of the registry, or a file or directory."
        ),
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled examples (.tsv, .csv, .jsonl, .parquet, .npz) that candidates are "
            "judged by.",
            exists=True,
            show_default="none: answers are compared with the model's own, which is weaker",
        ),
    ] = None,
    teach: Annotated[
        Path | None,
        typer.Option(
            help="Other examples, to calibrate and prune with; none of them are judged by.",
            exists=True,
            show_default="some of --data, without their labels, and no pruning",
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="Column of the label.", show_default="told by its name")
    ] = "",
    text: Annotated[
        str, typer.Option(help="Columns of text, with commas.", show_default="told by names")
    ] = "",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="tokenizer.json, for columns of text.",
            exists=True,
            dir_okay=False,
            show_default="the one beside the model",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="accuracy, auc, spearman, pearson, rmse, mae or r2.",
            show_default="told by the labels",
        ),
    ] = "",
    output: Annotated[
        str, typer.Option(help="The output that is judged.", show_default="told by its shape")
    ] = "",
    calibrate: Annotated[
        int, typer.Option(min=0, max=100_000, help="Examples to calibrate with.")
    ] = 256,
    target: Annotated[For, typer.Option(help="What is to become better.")] = For.LATENCY,
    max_loss: Annotated[
        str, typer.Option(help="How much of the metric may be lost: 1% is one point of accuracy.")
    ] = "1%",
    cost_per_hour: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="What this machine's cores cost in an hour, in any currency.",
            show_default="none: costs are not shown",
        ),
    ] = None,
    budget: Annotated[str, typer.Option(help="How long it may take: 90s, 5m, 1h.")] = "3m",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads inside one run.")] = 1,
    rows: Annotated[int, typer.Option(min=1, max=65_536, help="Rows of a request.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1 << 20,
            help="Size of variable axes besides the rows.",
            show_default="128 for a transformer, else the examples' own",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE",
            help="Try this recipe; * stands for any letters. Repeatable.",
            show_default="all that apply",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="As the next version of which model.", show_default="MODEL's own")
    ] = "",
    push: Annotated[
        bool, typer.Option("--push/--no-push", help="Store the result as a version.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Directory to keep the result in too.", show_default="no")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the report for a browser.",
            dir_okay=False,
            show_default="optimize-NAME.html in --home",
        ),
    ] = None,
    canary: Annotated[
        str, typer.Option(metavar="ENDPOINT", help="Roll the result out there, as a canary.")
    ] = "",
    on_other_processor: Annotated[
        Elsewhere, typer.Option(help="What to do where it is loaded on another processor.")
    ] = Elsewhere.VERIFY,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search that was interrupted.")
    ] = False,
    runtime: Annotated[str, typer.Option(help="Of a file.", show_default="told by the file")] = "",
    allow_code: AllowCode = False,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Make MODEL faster, or smaller, without losing what it knows, and show the proof.

    Candidates - graph options, other precisions, quantized and pruned models, in ONNX Runtime and
    OpenVINO - are timed in turn with the model as it is, while windows that other programs
    disturbed are left out, and judged by a paired test on labels. The best one is stored as the
    model's next version, with its lineage. What was rejected, and why, stands in the report.

    For example:

        headrace optimize sentiment.onnx --data dev.tsv

        headrace optimize fraud:3 --data test.parquet --label is_fraud --target throughput

        headrace optimize fraud:3 --target cost --cost-per-hour 0.17

        headrace optimize sentiment:1 --data dev.tsv --teach train.tsv --canary sentiment
    """
    from headrace.optimize.search.process import Target
    from headrace.runtimes.optimized_file import OtherProcessor

    if canary and not push:
        msg = "--canary rolls out a version, and with --no-push there is none"
        raise typer.BadParameter(msg)
    request = SearchRequest(
        source="",
        runtime=runtime,
        allow_code=allow_code,
        label=label,
        text=text,
        metric=metric,
        output=output,
        calibrate=calibrate,
        target=Target(target),
        max_loss=parse_share(max_loss, "--max-loss"),
        budget_s=seconds(budget, "--budget"),
        threads=threads,
        rows=rows,
        length=length,
        only=tuple(only or ()),
        on_other_processor=OtherProcessor(on_other_processor),
    )
    if cost_per_hour is not None and not isfinite(cost_per_hour):
        raise typer.BadParameter(f"{cost_per_hour} is no price", param_hint="--cost-per-hour")
    if teach is not None and data is None:
        msg = "--teach without --data: there is nothing that candidates could be judged by"
        raise InvalidArgumentError(msg)
    run(
        model,
        request,
        Wishes(
            data=data,
            teach=teach,
            tokenizer=tokenizer,
            name=name,
            push=push,
            out=out,
            report=report,
            canary=canary,
            cost_per_hour=cost_per_hour,
            resume=resume,
            json=json,
            server=plane.server,
            home=plane.home,
        ),
    )
