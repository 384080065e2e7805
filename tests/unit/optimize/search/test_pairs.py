"""Pairs of texts with a score: for a model that takes both, and for one that embeds each."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from headrace.optimize.accuracy import RowTexts
from headrace.optimize.search.inputs import SearchInputs, open_search_inputs
from headrace.optimize.search.journal import BaselineScored, Built, SearchJournal, SearchState
from headrace.optimize.search.plan import SearchStep, StepKind
from headrace.optimize.search.process import SearchRequest
from headrace.optimize.search.steps import QualityJudge, Run
from headrace.runtimes import load_model
from headrace.runtimes.base import UNTUNED
from headrace.testing.models import FLOAT, INT64, Node, Value, build
from tests import network_models
from tests.unit.pipeline.conftest import WORDS, tokenizer_json

pytestmark = pytest.mark.slow
WIDTH = 48
N = 120


def embedder() -> bytes:
    """`input_ids` [N, S] to `hidden` [N, S, 48]: a vector for each word."""
    words = np.random.default_rng(0).normal(size=(len(WORDS) + 1, WIDTH)).astype(np.float32)
    nodes: list[Node] = [("Gather", ["words", "input_ids"], ["hidden"], {})]
    hidden: Value = ("hidden", FLOAT, ["N", "S", WIDTH])
    return build(nodes, [("input_ids", INT64, ["N", "S"])], [hidden], {"words": words})


def texts(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [word for word in WORDS if word.isalpha()]
    return [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(N)]


def scored(folder: Path, model: bytes, scores: list[float]) -> tuple[SearchInputs, BaselineScored]:
    """What the model reaches on pairs with these scores."""
    path = network_models.write(folder, model)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    rows = zip(texts(1), texts(2), scores, strict=True)
    data = folder / "pairs.tsv"
    data.write_text("".join(f"{one}\t{other}\t{score:.6f}\n" for one, other, score in rows))
    tokenizer = str(folder / "tokenizer.json")
    request = SearchRequest(source=str(path), data=str(data), tokenizer=tokenizer, budget_s=600.0)
    journal = SearchJournal(folder)
    with contextlib.closing(journal), contextlib.ExitStack() as kept:
        run = Run(
            request=request, folder=folder, journal=journal, state=SearchState(), resources=kept
        )
        run.search_inputs = open_search_inputs(request, folder, on_progress=run.report_progress)
        run.record(run.search_inputs.started)
        run.record(
            Built(
                at_s=0.0,
                recipe_name="base",
                name="base",
                title="base",
                runtime="onnx",
                path=path.name,
                tuning=UNTUNED,
                recipe={},
                size_bytes=1,
                build_s=0.0,
                is_baseline=True,
            )
        )
        QualityJudge(run).score(SearchStep(kind=StepKind.SCORE))
        assert run.state.scored is not None
        return run.search_inputs, run.state.scored


def by_shared_words() -> list[float]:
    """Scores as a reader might give them: by how many words two texts share."""
    found = []
    for one, other in zip(texts(1), texts(2), strict=True):
        mine, theirs = set(one.split()), set(other.split())
        found.append(5 * len(mine & theirs) / len(mine | theirs) + 1e-3)
    return found


def test_an_embedder_is_judged_by_the_cosine_of_two_texts(tmp_path: Path) -> None:
    search_inputs, found = scored(tmp_path, embedder(), by_shared_words())

    assert search_inputs.examples.texts is RowTexts.BI_ENCODER
    assert (found.metric, found.output, found.n) == ("spearman", "hidden, mean", N)
    assert found.value > 0.5
    assert search_inputs.request.keys() == {"input_ids"}
    assert all(one.keys() == {"input_ids"} for one in search_inputs.calibration.inputs)


def test_a_cross_encoder_is_asked_both_texts_in_one_run(tmp_path: Path) -> None:
    model = network_models.encoder_layer()
    made = tmp_path / "asked"
    made.mkdir()
    search_inputs, _ = scored(made, model, by_shared_words())
    loaded = load_model(made / "source.onnx")
    answers = [loaded.run(one)["logits"][0] for one in search_inputs.examples.inputs]
    loaded.close()

    again = tmp_path / "again"
    again.mkdir()
    search_inputs, found = scored(again, model, [float(one[1] - one[0]) for one in answers])

    assert search_inputs.examples.texts is RowTexts.CROSS_ENCODER
    assert (found.metric, found.output, found.n) == ("spearman", "logits", N)
    assert found.value > 0.99
