"""Where throughput counts, several cores may share a run; files are made once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.optimize.candidate import ModelClass, RecipeContext
from headrace.optimize.recipes.catalogue import (
    BASIC,
    SERVED,
    in_more_threads,
    thread_counts,
)
from headrace.optimize.search.process import SearchTarget
from headrace.optimize.search.recipes import find_recipes
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.base import check_tuning
from headrace.testing.models import mlp
from tests.network_models import conv_net, write

ROWS = np.random.default_rng(2).normal(size=(5, 32)).astype(np.float32)


def context(source: Path, cores: int) -> RecipeContext:
    return RecipeContext(
        source=source,
        runtime="onnx",
        model_class=ModelClass.OTHER,
        folder=source.parent,
        calibration=(),
        threads=cores,
        seed=0,
        deadline=float("inf"),
    )


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, ()), (2, (2,)), (3, (2,)), (4, (2, 4)), (8, (4, 8)), (16, (4, 16)), (64, (8, 64))],
)
def test_all_cores_and_some_between_share_a_run(cores: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores) == counts


@given(st.integers(1, 4096))
def test_never_more_threads_than_cores_and_never_one(cores: int) -> None:
    found = thread_counts(cores)

    assert len(found) <= 2
    assert all(1 < count <= cores for count in found)


def test_the_same_file_is_run_in_more_threads_and_answers_the_same(tmp_path: Path) -> None:
    source = write(tmp_path, mlp())

    (threaded,) = in_more_threads([SERVED])
    one, more = threaded.build(context(source, 2))

    assert one.name == SERVED.name
    assert (more.name, more.path) == (f"{SERVED.name}-2-threads", one.path)
    assert more.title.endswith("2 cores for each run")
    assert (one.tuning.intra_op_threads, more.tuning.intra_op_threads) == (None, 2)
    assert more.recipe["intra_op_threads"] == "2"
    check_tuning(more.tuning)
    answers = []
    for candidate in (one, more):
        model = load_model(candidate.path, "onnx", LoadOptions(tuning=candidate.tuning))
        answers.append(model.run({"input": ROWS})["prob"])
        model.close()
    assert np.allclose(answers[0], answers[1], atol=1e-6)


def test_on_one_core_nothing_is_added(tmp_path: Path) -> None:
    source = write(tmp_path, mlp())

    (threaded,) = in_more_threads([SERVED])
    made = threaded.build(context(source, 1))

    assert [candidate.name for candidate in made] == [SERVED.name]


def test_only_the_promising_recipes_get_more_threads() -> None:
    served, basic = in_more_threads([SERVED, BASIC])

    assert (served.name, served == SERVED) == (SERVED.name, False)
    assert basic == BASIC


@pytest.mark.parametrize("target", SearchTarget)
def test_more_threads_are_offered_where_all_cores_work_anyway(
    tmp_path: Path, target: SearchTarget
) -> None:
    source = write(tmp_path, conv_net())

    found = find_recipes(
        source, "onnx", tmp_path, allow_code=False, target=target, examples=(), features=()
    )

    made = {
        candidate.name
        for recipe in found.recipes
        if recipe.name == SERVED.name
        for candidate in recipe.build(context(source, 2))
    }
    has_more = f"{SERVED.name}-2-threads" in made
    assert has_more is (target in {SearchTarget.THROUGHPUT, SearchTarget.COST})
    names = [recipe.name for recipe in found.recipes]
    assert len(set(names)) == len(names)
