"""Execution of a search, step by step, in the sandboxed process."""

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import HeadraceError, RuntimeFailedError, Tensors
from headrace.core.processes import resident_bytes
from headrace.optimize.artifact import files_of, write_artifact
from headrace.optimize.candidate import CannotBuildError, Recipe, RecipeContext
from headrace.optimize.child import run_in_child
from headrace.optimize.search.inputs import (
    batch_of,
    loses_batching,
    open_search_inputs,
    served_run,
    versions,
)
from headrace.optimize.search.journal import (
    AGAIN,
    COLD,
    FINAL,
    Begun,
    Built,
    MemoryMeasured,
    RecipeEnded,
    SearchJournal,
    Unbatched,
    Wrote,
    read_journal,
    state_of,
)
from headrace.optimize.search.plan import SearchStep, StepKind, best, decide, members_of, next_step
from headrace.optimize.search.process import SearchRequest
from headrace.optimize.search.recipes import pruned_then
from headrace.optimize.search.steps import QualityJudge, Run, mix
from headrace.optimize.timing import TimedCandidate, TimingSettings, summarize
from headrace.runtimes import LoadOptions, Model, load_model
from headrace.runtimes.optimized.processor import this_processor

_CANDIDATES: Final = "candidates"
_RESULT: Final = "result"
_QUICK: Final = TimingSettings(blocks=8, window_s=0.06, warmup_s=0.05)
_QUICK_S: Final = 12.0
_FINAL: Final = TimingSettings(blocks=40, window_s=0.15)
_COLD: Final = TimingSettings(blocks=8, window_s=0.1, cold=True)
_COLD_S: Final = 4.0
_BATCH_ROWS: Final = 8
"""Batch size for measuring lost batching; it covers most of a batch's saving."""
_BATCH_S: Final = 6.0
_ALONE: Final = "its rows depend on each other in a batch"
_WEIGHED_WITHIN_S: Final = 120.0
_WEIGHED_RUNS: Final = 3
_CHECKED: Final = 16
"""Requests for verification on other hosts."""


def search(request: SearchRequest, folder: Path) -> None:
    """Search until the budget is used up, and write the chosen candidate to `folder`.

    Raises:
        HeadraceError: The model cannot be loaded, or the data does not fit.
    """
    state = state_of(read_journal(folder))
    with contextlib.closing(SearchJournal(folder)) as journal, contextlib.ExitStack() as resources:
        run = Run(
            request=request,
            folder=folder.resolve(),
            journal=journal,
            state=state,
            resources=resources,
        )
        run.report_progress("loading the model and the data")
        run.search_inputs = open_search_inputs(request, run.folder, on_progress=run.report_progress)
        if state.started is None:
            run.record(run.search_inputs.started)
        judging = QualityJudge(run)
        do: dict[StepKind, Callable[[SearchStep], None]] = {
            StepKind.BUILD: partial(_build, run),
            StepKind.TRY: partial(_try, run),
            StepKind.SCORE: judging.score,
            StepKind.SCREEN: judging.screen,
            StepKind.JUDGE: judging.judge,
            StepKind.COMPARE: partial(_compare, run),
            StepKind.WEIGH: partial(_weigh, run),
            StepKind.MIX: partial(mix, run),
            StepKind.WRITE: partial(_write, run),
        }
        while True:
            step = next_step(state, request, run.timings.individual(state), now_s=run.now_s())
            if step.kind is StepKind.DONE:
                return
            run.record(Begun(step=step.kind, name=step.name or ", ".join(step.names)))
            do[step.kind](step)


def _build(run: Run, step: SearchStep) -> None:
    """Build a recipe's candidates."""
    recipe = run.search_inputs.recipe(step.name)
    if recipe.prunes:
        recipe = pruned_then(recipe, _best_recipe(run))
    candidate_folder = run.folder / _CANDIDATES / recipe.name
    shutil.rmtree(candidate_folder, ignore_errors=True)
    candidate_folder.mkdir(parents=True)
    search_inputs = run.search_inputs
    context = RecipeContext(
        source=search_inputs.recipe_set.source,
        runtime=search_inputs.recipe_set.runtime,
        model_class=search_inputs.recipe_set.model_class,
        folder=candidate_folder,
        calibration=search_inputs.calibration.inputs,
        threads=run.cores,
        seed=run.request.seed,
        deadline=run.deadline(step.until_s),
        training=search_inputs.training,
        on_progress=run.report_progress,
    )
    started = time.monotonic()
    try:
        if reason := recipe.inapplicable_reason(context):
            raise CannotBuildError(reason)
        candidates = recipe.build(context)
    except HeadraceError as error:
        run.give_up(recipe.name, recipe.title, error)
        return
    for candidate in candidates:
        path = candidate.path.resolve()
        inside = path.is_relative_to(run.folder)
        run.record(
            Built(
                recipe_name=recipe.name,
                name=candidate.name,
                title=candidate.title,
                runtime=candidate.runtime,
                path=str(path.relative_to(run.folder) if inside else path),
                tuning=candidate.tuning,
                recipe=candidate.recipe,
                size_bytes=sum(file.stat().st_size for file in files_of(path)),
                build_s=time.monotonic() - started,
                is_baseline=not run.state.baseline,
                is_reference=recipe.is_reference,
            )
        )
    run.record(RecipeEnded(name=step.name))


def _best_recipe(run: Run) -> Recipe | None:
    """Return the recipe of the best candidate so far."""
    for result in best(run.state, run.request, run.timings.individual(run.state)):
        recipe_name = result.built.recipe_name if result.built else ""
        if recipe_name not in run.search_inputs.started.later:
            return run.search_inputs.recipe(recipe_name)
    return None


def _try(run: Run, step: SearchStep) -> None:
    """Run a candidate once, then time it with the baseline."""
    name, base_name = step.name, run.state.baseline
    title = run.state.candidates[name].title
    until = time.monotonic() + _QUICK_S
    try:
        with run.loaded(base_name) as base, run.loaded(name) as model:
            request = run.search_inputs.request
            run.search_inputs.check(base.run(request), model.run(request))
            timed = [run.timed_candidate(base_name, base), run.timed_candidate(name, model)]
            run.measure(timed, _QUICK, group=name, until=until)
            if loses_batching(model, run.search_inputs.signature):
                _measure_batch(run, name, base, model)
    except HeadraceError as error:
        run.give_up(name, title, error)
        return
    windows = run.state.windows.get(name, [])
    reason = next((w.error for w in windows if w.name == name and w.error), "")
    if reason or name not in run.timings.individual(run.state):
        run.give_up(name, title, CannotBuildError(reason or "no window could be timed"))


def _measure_batch(run: Run, name: str, base: Model, model: Model) -> None:
    """Time a batch in the baseline against its rows one by one in the candidate."""
    search_inputs = run.search_inputs
    rows, request = run.request.rows, search_inputs.request
    if rows == 1:
        rows, request = _BATCH_ROWS, batch_of([request], _BATCH_ROWS)

    timed = [
        TimedCandidate(name=run.state.baseline, run=partial(_once, base.run, request)),
        TimedCandidate(
            name=name, run=partial(_once, served_run(model, search_inputs.signature), request)
        ),
    ]
    until = time.monotonic() + _BATCH_S
    windows = run.measure(timed, _QUICK, group="", until=until)
    timing = None
    if all(any(w.name == c.name and w.readings for w in windows) for c in timed):
        timing = summarize(windows, baseline=run.state.baseline, rng=run.rng)[name]
    run.record(
        Unbatched(
            name=name,
            reason=model.signature.row_reason or _ALONE,
            rows=rows,
            cut_ratio=None if timing is None else timing.cut_ratio,
            cut_ci_ratio=None if timing is None else timing.cut_ci_ratio,
        )
    )


def _once(run_rows: Callable[[Tensors], Tensors], request: Tensors) -> None:
    run_rows(request)


def _compare(run: Run, step: SearchStep) -> None:
    """Time the finalists and the baseline (twice), interleaved."""
    until = run.deadline(step.until_s)
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(run.loaded(name)) for name in step.names}
        timed = [run.timed_candidate(name, model) for name, model in models.items()]
        timed.append(run.timed_candidate(AGAIN, models[run.state.baseline]))
        run.measure(timed, _FINAL, group=FINAL, until=until)
        alone, final = run.timings.individual(run.state), run.timings.of_group(run.state, FINAL)
        selected = decide(run.state, run.request, alone, final).chosen
        pair = [
            timed_candidate
            for timed_candidate in timed
            if timed_candidate.name in {run.state.baseline, selected}
        ]
        run.measure(pair, _COLD, group=COLD, until=time.monotonic() + _COLD_S)
    run.record(RecipeEnded(name=FINAL))


def _weigh(run: Run, step: SearchStep) -> None:
    """Measure a candidate's memory and load time in a child process."""
    built = run.built(step.name)
    options = LoadOptions(device="cpu", intra_op_threads=run.request.threads, tuning=built.tuning)
    memory_bytes, load_s = 0, 0.0
    try:
        memory_bytes, load_s = run_in_child(
            *(_weighed, run.path(built), built.runtime, options, run.search_inputs.request),
            returns=tuple[int, float],
            raises=RuntimeFailedError,
            deadline=time.monotonic() + _WEIGHED_WITHIN_S,
        )
    except HeadraceError as error:
        if step.name != run.state.baseline:
            run.give_up(step.name, built.title, error)
            return
    run.record(MemoryMeasured(name=step.name, memory_bytes=memory_bytes, load_s=load_s))


def _weighed(
    _: Callable[[str], None], path: Path, runtime: str, options: LoadOptions, request: Tensors
) -> tuple[int, float]:
    """Return the resident memory added by a model, and its load time."""
    before, started = resident_bytes(), time.perf_counter()
    model = load_model(path, runtime, options)
    load_s = time.perf_counter() - started
    for _run in range(_WEIGHED_RUNS):
        model.run(request)
    return resident_bytes() - before, load_s


def _write(run: Run, step: SearchStep) -> None:
    """Write the chosen candidates as an artifact, which verifies that they load."""
    alone, final = run.timings.individual(run.state), run.timings.of_group(run.state, FINAL)
    decision = decide(run.state, run.request, alone, final)
    members = members_of(run.state, decision.chosen)
    if [name for name, _ in members] != [run.state.baseline]:
        first = members[0][0]
        timing = decision.timings[first]
        target = run.folder / _RESULT
        shutil.rmtree(target, ignore_errors=True)
        write_artifact(
            target,
            [(run.candidate(name), up_to) for name, up_to in members],
            processor=this_processor(),
            check=_check(run, first),
            policy=run.request.on_other_processor,
            source_digest=run.request.digest,
            calibration_sha256=run.search_inputs.started.calibration_sha256,
            versions=versions(),
            figures={"p50_s": timing.p50_s, "cut_ratio": timing.cut_ratio},
        )
        run.record(Wrote(name=first, path=_RESULT))
    run.record(RecipeEnded(name=step.kind))


def _check(run: Run, name: str) -> list[tuple[Tensors, Tensors]]:
    """Return requests with the chosen candidate's answers, for verification on other hosts."""
    inputs = run.search_inputs.examples.as_model_requests().inputs
    locations = np.linspace(0, len(inputs) - 1, min(len(inputs), _CHECKED), dtype=int)
    with run.loaded(name) as model:
        return [(inputs[index], model.run(inputs[index])) for index in locations.tolist()]
