"""What do candidates lose? Their answers to the examples, beside the baseline's."""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from headrace.core import HeadraceError, InvalidArgumentError
from headrace.optimize.accuracy import (
    Answers,
    MetricChoice,
    Trial,
    Verdict,
    answers,
    choose_metric,
    judge,
    measure_fidelity,
    try_candidate,
    usual_metric,
)
from headrace.optimize.accuracy.paired import SIGNIFICANCE
from headrace.optimize.search.journal import Compared, Judged, Scored
from headrace.optimize.search.materials import subset_of
from headrace.optimize.search.plan import SCREENED, Step, asked_until_s
from headrace.optimize.search.run import Run
from headrace.runtimes import Model

_ASKED_BY: Final = 0.88
"""The share of the budget after which no more examples are asked: part of them says something."""
_MOST_KEPT_BYTES: Final = 1 << 29
"""Of answers to the first examples, over all candidates; the others' are asked for again."""


@dataclass(slots=True)
class Judging:
    """Asks the baseline once, and every candidate what that was asked.

    `_begun`: trials of candidates that were screened, to go on with in this process.
    """

    run: Run
    _labelled: tuple[Answers, MetricChoice] | None = None
    _unlabelled: Answers | None = None
    _begun: dict[str, Trial] = field(default_factory=dict)

    def score(self, _: Step) -> None:
        """Choose by what candidates are judged, and what the baseline reaches.

        Raises:
            InvalidArgumentError: The labels fit no output, or the model answers no example.
        """
        base, choice = self._baseline()
        labels = self.run.materials.examples.labels
        assert labels is not None, "scored only then"
        answered = np.flatnonzero(base.has(choice.output))
        stacked = base.stacked(choice.output, answered)
        if stacked is None:
            msg = f"the model answers none of the examples in output '{choice.output}'"
            raise InvalidArgumentError(msg)
        self.run.record(
            Scored(
                at_s=self.run.now_s(),
                metric=choice.metric,
                output=choice.output,
                value=choice.score(labels[answered], choice.read(stacked)),
                n=len(answered),
                why=choice.why,
                warning=choice.warning,
            )
        )

    def screen(self, step: Step) -> None:
        """Ask a candidate the first of the examples, which is enough to give up a ruined one."""
        self._lost(step.name, most=SCREENED)

    def judge(self, step: Step) -> None:
        """Ask a candidate, and say what it lost: on labels, or against the baseline's answers."""
        if self.run.materials.examples.labels is None:
            self._changed(step.name)
        else:
            self._lost(step.name, most=None)

    def _lost(self, name: str, *, most: int | None) -> None:
        run = self.run
        try:
            base, choice = self._baseline()
            with run.loaded(name) as model:
                trial = self._tried(model, base, choice, self._begun.pop(name, None), most=most)
                verdict = self._also_unseen(trial, base, choice)
        except HeadraceError as error:
            run.give_up(name, run.state.tried[name].title, error)
            return
        is_part = trial.is_part and not trial.answers.stopped
        if is_part and self._kept_bytes() + trial.answers.size_bytes() <= _MOST_KEPT_BYTES:
            self._begun[name] = trial
        run.record(
            Judged(
                at_s=run.now_s(),
                name=name,
                verdict=verdict,
                early=trial.given_up,
                is_part=trial.is_part,
            )
        )

    def _changed(self, name: str) -> None:
        run = self.run
        try:
            base = self._alone()
            with run.loaded(name) as model:
                asked = self._asked(model, self._deadline())
                found = measure_fidelity(base, asked, max_loss=run.request.max_loss)
                run.record(Compared(at_s=run.now_s(), name=name, fidelity=found))
        except HeadraceError as error:
            run.give_up(name, run.state.tried[name].title, error)

    def _kept_bytes(self) -> int:
        return sum(trial.answers.size_bytes() for trial in self._begun.values())

    def _baseline(self) -> tuple[Answers, MetricChoice]:
        """The baseline's answers to the examples, and by what they are judged."""
        if self._labelled is None:
            base = self._of_baseline()
            examples, request = self.run.materials.examples, self.run.request
            assert examples.labels is not None, "judged only then"
            metric = request.metric or usual_metric(examples)
            wish = ":".join(filter(None, (metric, request.output)))
            choice = choose_metric(examples.labels, base, wish, names=examples.names)
            self._labelled = base, choice
        return self._labelled

    def _alone(self) -> Answers:
        """The baseline's answers, where nobody knows the right ones."""
        if self._unlabelled is None:
            self._unlabelled = self._of_baseline()
        return self._unlabelled

    def _of_baseline(self) -> Answers:
        """Its answers, or what it can answer while there is time left for the candidates."""
        deadline = self.run.deadline(asked_until_s(self.run.now_s(), self.run.request.budget_s))
        with self.run.loaded(self.run.state.baseline) as model:
            return self._asked(model, deadline)

    def _asked(self, model: Model, deadline: float) -> Answers:
        return answers(
            self.run.materials.run_of(model),
            self.run.materials.examples,
            threads=self.run.threads_for(model),
            deadline=deadline,
        )

    def _tried(
        self,
        model: Model,
        base: Answers,
        choice: MetricChoice,
        begun: Trial | None,
        *,
        most: int | None,
    ) -> Trial:
        return try_candidate(
            self.run.materials.run_of(model),
            self.run.materials.examples,
            base,
            metric=choice,
            max_loss=self.run.request.max_loss,
            rng=self.run.rng,
            threads=self.run.threads_for(model),
            deadline=self._deadline(),
            most=most,
            begun=begun,
        )

    def _also_unseen(self, trial: Trial, base: Answers, choice: MetricChoice) -> Verdict:
        """The verdict, unless a candidate is worse on the examples that calibrated nothing."""
        held_out, labels = self.run.materials.held_out, self.run.materials.examples.labels
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
        # Fewer examples may be too few to prove anything, which is no reason to reject.
        if unseen.passes or unseen.loss <= 0 or unseen.p_value >= SIGNIFICANCE:
            return trial.verdict
        return replace(unseen, reason=f"on examples it was not calibrated with, {unseen.reason}")

    def _deadline(self) -> float:
        return self.run.deadline(_ASKED_BY * self.run.request.budget_s)
