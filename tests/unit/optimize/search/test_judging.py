"""Is a candidate that was screened asked the other examples only?"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from headrace.core import Array
from headrace.optimize.search.inputs import open_search_inputs
from headrace.optimize.search.journal import Built, Judged, SearchJournal, SearchState, read_journal
from headrace.optimize.search.plan import SearchStep, StepKind
from headrace.optimize.search.process import SearchRequest
from headrace.optimize.search.steps import QualityJudge, Run
from headrace.runtimes import load_model
from headrace.runtimes.base import UNTUNED
from tests import small_networks

pytestmark = pytest.mark.slow
N = 1200
BASE, SAME, OTHER = "base", "same", "other"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A search whose baseline, a copy of it, and another net are made and timed already."""
    net = small_networks.perceptron()
    for name in (BASE, SAME):
        onnx.save(net, str(tmp_path / f"{name}.onnx"))
    onnx.save(small_networks.perceptron("Tanh"), str(tmp_path / f"{OTHER}.onnx"))
    rows = np.random.default_rng(0).normal(size=(N, small_networks.WIDTH)).astype(np.float32)
    data = tmp_path / "data.npz"
    np.savez(data, x=rows, label=classes(tmp_path / "base.onnx", rows))
    request = SearchRequest(source=str(tmp_path / "base.onnx"), data=str(data), budget_s=600.0)
    journal = SearchJournal(tmp_path)
    with contextlib.closing(journal), contextlib.ExitStack() as kept:
        made = Run(
            request=request, folder=tmp_path, journal=journal, state=SearchState(), resources=kept
        )
        made.search_inputs = open_search_inputs(request, tmp_path, on_progress=made.report_progress)
        made.record(made.search_inputs.started)
        for name in (BASE, SAME, OTHER):
            made.record(made_of(name))
        yield made


def made_of(name: str) -> Built:
    return Built(
        at_s=0.0,
        recipe_name=name,
        name=name,
        title=name,
        runtime="onnx",
        path=f"{name}.onnx",
        tuning=UNTUNED,
        recipe={},
        size_bytes=1,
        build_s=0.0,
        is_baseline=name == BASE,
    )


def classes(path: Path, rows: Array) -> Array:
    model = load_model(path)
    try:
        found: Array = model.run({"x": rows})["y"].argmax(axis=1)
    finally:
        model.close()
    return found


def screening(name: str) -> SearchStep:
    return SearchStep(kind=StepKind.SCREEN, name=name)


def test_after_screening_only_the_others_are_asked(run: Run) -> None:
    judging = QualityJudge(run)
    judging.score(SearchStep(kind=StepKind.SCORE))
    judging.screen(screening(SAME))
    result = run.state.candidates[SAME]
    so_far = result.screened
    (part,) = judging._begun.values()
    assert so_far is not None
    assert not result.is_judged

    judging.judge(SearchStep(kind=StepKind.JUDGE, name=SAME))

    assert run.state.scored is not None
    assert (run.state.scored.n, part.examples_used, so_far.n) == (N, 512, 512)
    assert result.is_accepted
    assert result.verdict is not None
    assert result.verdict.n == N
    assert not judging._begun


def test_a_ruined_one_is_given_up_by_screening(run: Run) -> None:
    judging = QualityJudge(run)
    judging.screen(screening(OTHER))

    verdict = run.state.candidates[OTHER].verdict
    assert verdict is not None
    assert not verdict.passes
    assert verdict.n <= 512
    assert "rejected early, after" in verdict.reason


def test_another_process_asks_again_what_screening_had_asked(run: Run) -> None:
    QualityJudge(run).screen(screening(SAME))

    QualityJudge(run).judge(SearchStep(kind=StepKind.JUDGE, name=SAME))

    told = [event for event in read_journal(run.folder) if isinstance(event, Judged)]
    assert [(event.is_part, event.verdict.n) for event in told] == [(True, 512), (False, N)]
