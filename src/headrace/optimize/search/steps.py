"""Steps of a search: evaluation, timing and choice of engines."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.core import (
    HeadraceError,
    InvalidArgumentError,
    SystemClock,
    Tensors,
)
from headrace.optimize.accuracy import (
    GateTrial,
    MetricChoice,
    ModelAnswers,
    QualityVerdict,
    choose_metric,
    judge,
    measure_fidelity,
    try_candidate,
    usual_metric,
)
from headrace.optimize.accuracy.inference import answers
from headrace.optimize.accuracy.verdict import SIGNIFICANCE
from headrace.optimize.candidate import Candidate
from headrace.optimize.compare import Comparison
from headrace.optimize.recipes.trees import (
    CallTime,
    Choice,
    choose_by_batch,
    differences,
    mixing_problem,
)
from headrace.optimize.search.inputs import SearchInputs, batch_of, callers, subset_of
from headrace.optimize.search.journal import (
    BaselineScored,
    Built,
    CandidateFailed,
    Compared,
    Event,
    Judged,
    Mixed,
    ProgressNote,
    SearchJournal,
    SearchState,
    Timed,
    Timings,
)
from headrace.optimize.search.plan import SCREENED, SearchStep, asked_until_s
from headrace.optimize.search.process import SearchRequest
from headrace.optimize.timing import (
    CallWindow,
    ProcStat,
    TimedCandidate,
    Timing,
    TimingSettings,
    measure,
    summarize,
)
from headrace.runtimes import LoadOptions, Model, load_model

_MAX_REASON: Final = 400


@dataclass(slots=True, kw_only=True)
class Run:
    """One process's part of a search; the owner closes `resources`."""

    request: SearchRequest
    folder: Path
    journal: SearchJournal
    state: SearchState
    resources: contextlib.ExitStack
    search_inputs: SearchInputs = field(init=False)
    """Set once the inputs are read."""
    timings: Timings = field(init=False)
    rng: np.random.Generator = field(init=False)
    cores: int = field(init=False)
    _before_s: float = field(init=False)
    _began: float = field(init=False)
    _base: Model | None = None
    _pools: dict[int, ThreadPoolExecutor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.timings = Timings(self.request.seed)
        self.rng = np.random.default_rng(self.request.seed)
        self.cores = len(os.sched_getaffinity(0))
        self._before_s = self.state.at_s
        self._began = time.monotonic()

    def now_s(self) -> float:
        """Return the search's elapsed seconds over all its processes."""
        return self._before_s + time.monotonic() - self._began

    def deadline(self, at_s: float) -> float:
        """Return the monotonic time of a search time."""
        return self._began - self._before_s + at_s

    def record(self, event: Event) -> None:
        """Record an event with its time in the journal and the state."""
        event = msgspec.structs.replace(event, at_s=self.now_s())
        self.journal.write(event)
        self.state.apply(event)

    def report_progress(self, text: str) -> None:
        """Record a progress message."""
        self.record(ProgressNote(text=text))

    def give_up(self, name: str, title: str, error: BaseException) -> None:
        """Give up a recipe or candidate."""
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        self.record(CandidateFailed(name=name, title=title, reason=reason))

    def built(self, name: str) -> Built:
        """Return the build event of a candidate."""
        built = self.state.candidates[name].built
        assert built is not None, "it was made"
        return built

    def path(self, built: Built) -> Path:
        """Return a candidate's path."""
        return self.folder / built.path

    def candidate(self, name: str) -> Candidate:
        """Return a built candidate."""
        built = self.built(name)
        return Candidate(
            name=built.name,
            title=built.title,
            runtime=built.runtime,
            path=self.path(built),
            tuning=built.tuning,
            recipe=built.recipe,
        )

    @contextlib.contextmanager
    def loaded(self, name: str) -> Iterator[Model]:
        """Load a candidate for the block; the baseline stays loaded."""
        if name != self.state.baseline:
            with self._opened(name) as model:
                yield model
            return
        if self._base is None:
            self._base = self.resources.enter_context(self._opened(name))
        yield self._base

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Model]:
        built = self.built(name)
        options = LoadOptions(
            device="cpu", intra_op_threads=self.request.threads, tuning=built.tuning
        )
        model = load_model(self.path(built), built.runtime, options)
        try:
            yield model
        finally:
            model.close()

    def timed_candidate(self, name: str, model: Model) -> TimedCandidate:
        """Return a candidate for timing.

        Candidates with equal thread counts share the calling threads.
        """
        result = self.state.candidates.get(name)
        tuned = result.built.tuning.intra_op_threads if result and result.built else None
        maximum = callers(tuned or self.request.threads)
        if maximum not in self._pools:
            self._pools[maximum] = self.resources.enter_context(ThreadPoolExecutor(maximum))
        return TimedCandidate(
            name=name, run=self.search_inputs.load_of(model, self._pools[maximum])
        )

    def threads_for(self, model: Model) -> int:
        """Return the number of concurrent callers of a model."""
        return self.cores if model.concurrent else 1

    def measure(
        self,
        timed: Sequence[TimedCandidate],
        settings: TimingSettings,
        *,
        group: str,
        until: float,
    ) -> list[CallWindow]:
        """Measure windows; those of a group are recorded in the journal.

        Args:
            until: Monotonic time.
        """
        before = self.state.windows.get(group, ())
        return measure(
            timed,
            settings=settings,
            until=until,
            clock=SystemClock(),
            cpu=ProcStat(),
            rng=self.rng,
            on_window=lambda window: self._keep(group, window),
            first_block=max((window.block for window in before), default=-1) + 1,
        )

    def _keep(self, group: str, window: CallWindow) -> None:
        if group:
            self.record(Timed(group=group, window=window))


_REQUESTED_BY: Final = 0.88
"""Share of the budget after which no further examples are evaluated."""
_MAX_CACHED_BYTES: Final = 1 << 29
"""Memory limit of stored screening answers; others are computed again."""


@dataclass(slots=True)
class QualityJudge:
    """Evaluation of candidates against the baseline's answers, which are computed once."""

    run: Run
    _labelled: tuple[ModelAnswers, MetricChoice] | None = None
    _unlabelled: ModelAnswers | None = None
    _begun: dict[str, GateTrial] = field(default_factory=dict)
    """Screened trials that can be continued in this process."""

    def score(self, _: SearchStep) -> None:
        """Choose the metric, and score the baseline.

        Raises:
            InvalidArgumentError: The labels fit no output, or the model answers no example.
        """
        base, choice = self._baseline()
        labels = self.run.search_inputs.examples.labels
        assert labels is not None, "scored only then"
        answered = np.flatnonzero(base.has(choice.output))
        stacked = base.stacked(choice.output, answered)
        if stacked is None:
            msg = f"the model answers none of the examples in output '{choice.output}'"
            raise InvalidArgumentError(msg)
        self.run.record(
            BaselineScored(
                metric=choice.metric,
                output=choice.output,
                value=choice.score(labels[answered], choice.read(stacked)),
                n=len(answered),
                why=choice.why,
                warning=choice.warning,
            )
        )

    def screen(self, step: SearchStep) -> None:
        """Evaluate a candidate on the first examples, which suffice to reject a ruined one."""
        self._judge_labelled(step.name, maximum=SCREENED)

    def judge(self, step: SearchStep) -> None:
        """Evaluate a candidate on labels, or by fidelity to the baseline."""
        run, name = self.run, step.name
        if run.search_inputs.examples.labels is not None:
            self._judge_labelled(name, maximum=None)
            return
        try:
            if self._unlabelled is None:
                self._unlabelled = self._of_baseline()
            with run.loaded(name) as model:
                answered = self._ask(model, self._deadline())
            fidelity = measure_fidelity(self._unlabelled, answered, max_loss=run.request.max_loss)
            run.record(Compared(name=name, fidelity=fidelity))
        except HeadraceError as error:
            run.give_up(name, run.state.candidates[name].title, error)

    def _judge_labelled(self, name: str, *, maximum: int | None) -> None:
        run = self.run
        try:
            base, choice = self._baseline()
            with run.loaded(name) as model:
                trial = self._try(model, base, choice, self._begun.pop(name, None), maximum=maximum)
                verdict = self._check_held_out(trial, base, choice)
        except HeadraceError as error:
            run.give_up(name, run.state.candidates[name].title, error)
            return
        is_part = trial.is_part and not trial.answers.stopped
        if is_part and self._cached_bytes() + trial.answers.size_bytes() <= _MAX_CACHED_BYTES:
            self._begun[name] = trial
        run.record(
            Judged(
                name=name,
                verdict=verdict,
                early=trial.given_up,
                is_part=trial.is_part,
            )
        )

    def _cached_bytes(self) -> int:
        return sum(trial.answers.size_bytes() for trial in self._begun.values())

    def _baseline(self) -> tuple[ModelAnswers, MetricChoice]:
        """Return the baseline's answers and the chosen metric."""
        if self._labelled is None:
            base = self._of_baseline()
            examples, request = self.run.search_inputs.examples, self.run.request
            assert examples.labels is not None, "judged only then"
            metric = request.metric or usual_metric(examples)
            requested = ":".join(filter(None, (metric, request.output)))
            choice = choose_metric(examples.labels, base, requested, names=examples.names)
            self._labelled = base, choice
        return self._labelled

    def _of_baseline(self) -> ModelAnswers:
        """Evaluate the baseline, within the time that leaves enough for candidates."""
        deadline = self.run.deadline(asked_until_s(self.run.now_s(), self.run.request.budget_s))
        with self.run.loaded(self.run.state.baseline) as model:
            return self._ask(model, deadline)

    def _ask(self, model: Model, deadline: float) -> ModelAnswers:
        return answers(
            self.run.search_inputs.run_of(model),
            self.run.search_inputs.examples,
            threads=self.run.threads_for(model),
            deadline=deadline,
        )

    def _try(
        self,
        model: Model,
        base: ModelAnswers,
        choice: MetricChoice,
        started: GateTrial | None,
        *,
        maximum: int | None,
    ) -> GateTrial:
        return try_candidate(
            self.run.search_inputs.run_of(model),
            self.run.search_inputs.examples,
            base,
            metric=choice,
            max_loss=self.run.request.max_loss,
            rng=self.run.rng,
            threads=self.run.threads_for(model),
            deadline=self._deadline(),
            maximum=maximum,
            started=started,
        )

    def _check_held_out(
        self, trial: GateTrial, base: ModelAnswers, choice: MetricChoice
    ) -> QualityVerdict:
        """Return the verdict, or a rejection if it is worse on held-out examples."""
        held_out, labels = self.run.search_inputs.held_out, self.run.search_inputs.examples.labels
        assert labels is not None, "judged only then"
        if not trial.verdict.passes or not held_out:
            return trial.verdict
        unseen = judge(
            subset_of(base, held_out),
            subset_of(trial.answers, held_out),
            labels[np.asarray(held_out)],
            metric=choice,
            max_loss=self.run.request.max_loss,
            rng=self.run.rng,
        )
        # Fewer examples may be too few to prove anything, which is not a reason to reject.
        if unseen.passes or unseen.loss <= 0 or unseen.p_value >= SIGNIFICANCE:
            return trial.verdict
        return replace(unseen, reason=f"on examples it was not calibrated with, {unseen.reason}")

    def _deadline(self) -> float:
        return self.run.deadline(_REQUESTED_BY * self.run.request.budget_s)


SIZES: Final = (1, 8, 32, 128, 1024)


def choose(
    timings: Mapping[int, Mapping[str, Timing]],
    names: Sequence[str],
    compared: Callable[[str, str], Comparison],
) -> tuple[list[Choice], list[str]]:
    """Choose engines by batch size; return them with notes on incompatible pairs. Pure.

    Args:
        timings: Timings by rows of a batch.
        names: The engines, the preferred one first.
        compared: Compares two engines' answers.
    """
    measured = {
        name: {rows: _span(by_name[name]) for rows, by_name in timings.items() if name in by_name}
        for name in names
    }
    measured = {name: times for name, times in measured.items() if times}
    notes, unlike = [], set()
    engines = list(measured)
    for index, engine in enumerate(engines):
        for other in engines[index + 1 :]:
            if reason := mixing_problem(compared(engine, other)):
                unlike.add(frozenset((engine, other)))
                notes.append(f"{engine} and {other} do not share a model: {reason}")
    return choose_by_batch(measured, unlike=unlike), notes


def _span(timing: Timing) -> CallTime:
    """Return a candidate's median time."""
    return CallTime(timing.p50_s, *(timing.p50_ci_s or (timing.p50_s, timing.p50_s)))


def describe_choices(choices: Sequence[Choice]) -> str:
    """Describe which engine runs which batches."""
    parts = []
    for name, up_to in choices:
        parts.append(f"{name} for larger ones" if up_to is None else f"{name} up to {up_to} rows")
    return "by the batch's size: " + ", ".join(parts)


_SETTINGS: Final = TimingSettings(blocks=8, window_s=0.06, warmup_s=0.05)
_MAX_S: Final = 4.0
"""Longest measurement of one batch size."""
_COMPARED_ROWS: Final = 4096


def mix(run: Run, step: SearchStep) -> None:
    """Measure whether several engines are better than one, and whether their answers agree."""
    search_inputs = run.search_inputs
    inputs = search_inputs.examples.inputs
    choices: list[tuple[str, int | None]] = []
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(run.loaded(name)) for name in step.names}
        timings = _timings(run, step, models) if search_inputs.signature.batched else {}
        if timings:
            many = batch_of(inputs, min(len(inputs), _COMPARED_ROWS))
            choices, notes = choose(
                timings,
                step.names,
                lambda first, other: differences(models[first], models[other], many),
            )
    run.record(
        Mixed(
            members=tuple(choices),
            summary=describe_choices(choices) if len(choices) > 1 else "",
            notes=tuple(notes),
        )
    )


def _timings(
    run: Run, step: SearchStep, models: Mapping[str, Model]
) -> dict[int, Mapping[str, Timing]]:
    """Return timings of all engines by batch size, as far as time allows."""
    first = step.names[0]
    for_each_s = min(max(step.until_s - run.now_s(), 1.0) / len(SIZES), _MAX_S)
    timings: dict[int, Mapping[str, Timing]] = {}
    for rows in SIZES:
        request = batch_of(run.search_inputs.examples.inputs, rows)
        timed = [
            TimedCandidate(name=name, run=partial(_once, model, request))
            for name, model in models.items()
        ]
        windows = run.measure(timed, _SETTINGS, group="", until=time.monotonic() + for_each_s)
        if any(window.name == first and window.readings for window in windows):
            timings[rows] = summarize(windows, baseline=first, rng=run.rng)
    return timings


def _once(model: Model, request: Tensors) -> None:
    model.run(request)
