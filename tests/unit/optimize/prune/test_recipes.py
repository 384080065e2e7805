"""Recipes that prune: what they make, and what they say where they do not apply."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from headrace.optimize.candidate import (
    CannotBuildError,
    ModelClass,
    RecipeContext,
    TrainingExamples,
)
from headrace.optimize.prune import COMPRESSION_RECIPES, RECIPES
from headrace.optimize.prune.pruning import gzip_bytes, with_zeros
from headrace.runtimes import load_model
from tests.small_networks import SIDE, WIDTH, conv_net, encoder, perceptron, requests, save

SEQUENCE = (5, WIDTH)


def context(
    tmp_path: Path,
    model: Any,  # noqa: ANN401  # onnx ships no types
    shape: tuple[int, ...] = SEQUENCE,
    kind: ModelClass = ModelClass.TRANSFORMER,
) -> RecipeContext:
    folder = tmp_path / "made"
    folder.mkdir()
    return RecipeContext(
        source=save(model, tmp_path / "model.onnx"),
        runtime="onnx",
        model_class=kind,
        folder=folder,
        calibration=requests(shape, 24),
        threads=1,
        seed=0,
        deadline=float("inf"),
    )


def test_every_recipe_has_a_name_of_its_own_and_begins_with_what_it_does() -> None:
    names = [recipe.name for recipe in (*RECIPES, *COMPRESSION_RECIPES)]

    assert len(set(names)) == len(names)
    assert all(recipe.name.startswith("pruned-") for recipe in RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pruned-ffn-50", "pruned-ffn-50-heads-50"])
def test_an_encoder_becomes_a_smaller_one_that_loads_and_answers(name: str, tmp_path: Path) -> None:
    shop = context(tmp_path, encoder(layers=2))
    recipe = next(one for one in RECIPES if one.name == name)
    (candidate,) = recipe.build(shop)
    model = load_model(candidate.path, candidate.runtime)

    assert recipe.inapplicable_reason(shop) == ""
    assert candidate.name == name
    assert candidate.path.stat().st_size < shop.source.stat().st_size
    assert model.run(shop.calibration[0])["y"].shape == (1, 3)
    assert {"pruned", "layers", "parameters", "importance", "taught", "onnx"} <= set(
        candidate.recipe
    )


@pytest.mark.slow
def test_a_conv_net_loses_channels(tmp_path: Path) -> None:
    shop = context(tmp_path, conv_net(), (1, SIDE, SIDE), ModelClass.CONV_NET)
    recipe = next(one for one in RECIPES if one.name == "pruned-channels-25")
    (candidate,) = recipe.build(shop)

    assert candidate.recipe["layers"] == "2 x channels"


def test_each_class_of_model_is_offered_what_it_has(tmp_path: Path) -> None:
    shop = context(tmp_path, perceptron(), (WIDTH,))
    offered = {
        kind: [
            one.name
            for one in RECIPES
            if not one.inapplicable_reason(replace(shop, model_class=kind))
        ]
        for kind in ModelClass
    }

    assert offered[ModelClass.TREES] == []
    assert "pruned-ffn-50-heads-50" in offered[ModelClass.TRANSFORMER]
    assert offered[ModelClass.CONV_NET] == ["pruned-channels-25", "pruned-channels-50"]
    assert len(offered[ModelClass.OTHER]) == 4


def test_a_recipe_says_why_it_does_not_apply(tmp_path: Path) -> None:
    shop = context(tmp_path, perceptron(), (WIDTH,))
    (sparse,) = COMPRESSION_RECIPES

    for recipe in (RECIPES[0], sparse):
        assert "there are none" in recipe.inapplicable_reason(replace(shop, calibration=[]))
        assert "only 3" in recipe.inapplicable_reason(
            replace(shop, calibration=shop.calibration[:3])
        )
        assert "ONNX form" in recipe.inapplicable_reason(replace(shop, runtime="torchscript"))
    taught = replace(shop, calibration=[], training=TrainingExamples(examples=shop.calibration))
    assert RECIPES[0].inapplicable_reason(taught) == ""


@pytest.mark.slow
def test_zeros_make_a_file_that_packs_better_and_promise_no_speed(tmp_path: Path) -> None:
    shop = context(tmp_path, perceptron(hidden=64), (WIDTH,), ModelClass.OTHER)
    (recipe,) = COMPRESSION_RECIPES
    (candidate,) = recipe.build(shop)
    weights = [
        onnx.numpy_helper.to_array(one) for one in onnx.load(candidate.path).graph.initializer
    ]

    assert gzip_bytes(candidate.path) < 0.8 * gzip_bytes(shop.source)
    assert candidate.recipe["speed"].startswith("none gained")
    assert "no faster" in candidate.title
    assert all(np.mean(one == 0) == 0.5 for one in weights if one.size >= 1024)


def test_a_model_without_large_matrices_is_not_made_sparse(tmp_path: Path) -> None:
    (recipe,) = COMPRESSION_RECIPES

    with pytest.raises(CannotBuildError, match="no matrix of 1,024 weights"):
        recipe.build(context(tmp_path, perceptron(), (WIDTH,)))


def test_of_each_output_the_weights_that_carry_least_become_zero() -> None:
    weight = np.array([[1.0, -4.0], [3.0, 2.0], [-2.0, 1.0], [0.5, 3.0]])
    scales = np.array([10.0, 1.0, 1.0, 1.0])

    made = with_zeros(weight, scales, 0.5)
    assert made.tolist() == [[1.0, -4.0], [3.0, 0.0], [0.0, 0.0], [0.0, 3.0]]


@pytest.mark.slow
def test_a_network_is_pruned_in_a_process_of_its_own_beside_another_framework(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[str] = []
    shop = replace(context(tmp_path, encoder(layers=2)), on_progress=progress.append)
    recipe = RECIPES[0]
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "headrace.optimize.prune.pruning", None)  # not in this one

    (candidate,) = recipe.build(shop)
    model = load_model(candidate.path, candidate.runtime)

    assert model.run(shop.calibration[0])["y"].shape == (1, 3)
    assert "pruned" in candidate.recipe
    assert "checking the cut" in progress


@pytest.mark.slow
def test_why_nothing_is_cut_is_told_by_the_other_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.name == "pruned-channels-50")
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))

    with pytest.raises(CannotBuildError, match="no two convolutions in a row"):
        recipe.build(context(tmp_path, perceptron(), (WIDTH,)))
