"""Carries out `headrace optimize`: search, report, store, roll out."""

# the command's own modules are loaded when it runs

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.cli.connection import Target, find_target
from headrace.cli.home_registry import home_registry
from headrace.cli.model_store import Pushed, model_store
from headrace.cli.naming import name_from
from headrace.cli.optimize_progress import search_progress
from headrace.cli.output import say, show, write_json
from headrace.control.searching import Given, SandboxedSearch, check_folder
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    SystemClock,
    check_name,
)
from headrace.optimize.report import OptimizeReport, html_report, text_report
from headrace.optimize.search.journal import State
from headrace.optimize.search.outcome import lineage, report_of
from headrace.optimize.search.process import SearchRequest
from headrace.registry import read_content

if TYPE_CHECKING:
    from headrace.registry import ModelVersion

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
    _check_out(wishes.out)
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


def _check_out(out: Path | None) -> None:
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is there already; --out takes a new directory or an empty one"
        raise FailedPreconditionError(msg)


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
