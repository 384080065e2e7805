"""From an ONNX file to a smaller one that answers nearly the same, or a reason why not."""

import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

pytest.importorskip("onnx", reason="needs the extra `optimize`")

from headrace.core import Array, InvalidArgumentError, Tensors
from headrace.optimize.candidate import CannotBuildError, TrainingExamples
from headrace.optimize.prune.graph import as_graph, is_compatible, traced_shapes
from headrace.optimize.prune.groups import (
    Cutting,
    PruneCut,
    Unit,
    find_groups,
    kept_count,
    without_units,
)
from headrace.optimize.prune.pruning import check_same_answers, prune
from tests.small_networks import (
    SIDE,
    WIDTH,
    conv_net,
    encoder,
    perceptron,
    requests,
    save,
    with_label,
)

SEQUENCE: Final = (5, WIDTH)
IMAGE: Final = (1, SIDE, SIDE)


def answers(path: Path, examples: list[Tensors]) -> Array:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, example)[0] for example in examples])


def lost(source: Path, target: Path, shape: tuple[int, ...]) -> float:
    """Mean square of the differences, of the mean square of the answers, on other examples."""
    others = requests(shape, 64, seed=9)
    wanted = answers(source, others)
    return float(np.mean((answers(target, others) - wanted) ** 2) / np.mean(wanted**2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "cut"),
    [
        (lambda: encoder(layers=2), SEQUENCE, PruneCut(ffn_ratio=0.5)),
        (lambda: perceptron(hidden=32), (WIDTH,), PruneCut(ffn_ratio=0.5)),
        (conv_net, IMAGE, PruneCut(channels_ratio=0.5)),
    ],
)
def test_units_that_stay_make_up_for_those_that_go(
    make: Callable[[], Any], shape: tuple[int, ...], cut: PruneCut, tmp_path: Path
) -> None:
    source, fitted = save(make(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    examples = requests(shape, 128)
    prune(source, fitted, cut=cut, calibration=examples)
    graph = as_graph(make())
    groups = find_groups(graph, traced_shapes(graph, examples[0], threads=1)).groups
    halved = [
        Cutting(group=group, kept_units=np.arange(group.units // 2))
        for group in groups
        if cut.ratio(group.unit)
    ]
    plain = save(without_units(graph, halved).proto(), tmp_path / "c.onnx")

    assert lost(source, fitted, shape) < 0.5 * lost(source, plain, shape)


def test_what_was_cut_is_told_with_its_size(tmp_path: Path) -> None:
    source = save(encoder(layers=2), tmp_path / "a.onnx")
    pruned = prune(
        source,
        tmp_path / "b.onnx",
        cut=PruneCut(ffn_ratio=0.25, heads_ratio=0.5),
        calibration=requests(SEQUENCE, 20),
    )

    assert pruned.layers == {Unit.HEADS: 2, Unit.FFN: 2}
    assert pruned.parameters_before - pruned.parameters_after == 2 * (6 * 33 + 2 * (12 * 17 + 64))
    assert pruned.facts()["pruned"] == "ffn -25%, heads -50%"
    assert "no training examples" in pruned.distillation


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    source = save(perceptron(), tmp_path / "a.onnx")
    cut, calibration = PruneCut(ffn_ratio=0.5), requests((WIDTH,), 300)
    for name in ("b.onnx", "c.onnx"):
        prune(source, tmp_path / name, cut=cut, calibration=calibration, seed=4)

    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_examples_to_learn_from_are_taken_before_those_to_calibrate_with(tmp_path: Path) -> None:
    source = save(perceptron(), tmp_path / "a.onnx")
    training = TrainingExamples(examples=requests((WIDTH,), 40))
    pruned = prune(
        source,
        tmp_path / "b.onnx",
        cut=PruneCut(ffn_ratio=0.5),
        calibration=[],
        training=training,
        clock=itertools.count().__next__,
    )

    assert pruned.examples == 40


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is here")
def test_without_pytorch_nothing_is_taught(tmp_path: Path) -> None:
    source = save(perceptron(), tmp_path / "a.onnx")
    cut, training = PruneCut(ffn_ratio=0.5), TrainingExamples(examples=requests((WIDTH,), 40))
    pruned = prune(source, tmp_path / "b.onnx", cut=cut, calibration=[], training=training)

    assert "PyTorch is not installed (pip install" in pruned.distillation


@pytest.mark.parametrize(
    ("model", "shape", "cut", "count", "why"),
    [
        (perceptron, (WIDTH,), PruneCut(ffn_ratio=0.5), 15, "needs 16 examples.*has 15"),
        (perceptron, (WIDTH,), PruneCut(heads_ratio=0.5), 16, "no reshape splits its features"),
        (perceptron, (WIDTH,), PruneCut(ffn_ratio=0.01), 16, "too narrow for ffn -1%"),
        (perceptron, (WIDTH + 1,), PruneCut(ffn_ratio=0.5), 16, "does not run on an example"),
        (lambda: conv_net(middle="residual"), IMAGE, PruneCut(channels_ratio=0.5), 16, "residual"),
    ],
)
def test_a_model_that_cannot_be_pruned_is_refused_with_the_reason(
    model: Callable[[], Any],
    shape: tuple[int, ...],
    cut: PruneCut,
    count: int,
    *,
    why: str,
    tmp_path: Path,
) -> None:
    source, target = save(model(), tmp_path / "a.onnx"), tmp_path / "b.onnx"

    with pytest.raises(CannotBuildError, match=why):
        prune(source, target, cut=cut, calibration=requests(shape, count))
    assert not target.exists()


def test_examples_that_overflow_are_refused(tmp_path: Path) -> None:
    source = save(perceptron(), tmp_path / "a.onnx")
    huge = [{"x": np.full((1, WIDTH), 3e38, np.float32)} for _ in range(16)]

    with pytest.raises(CannotBuildError, match="not finite numbers"):
        prune(source, tmp_path / "b.onnx", cut=PruneCut(ffn_ratio=0.5), calibration=huge)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a model"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    source.write_bytes(content)

    with pytest.raises(CannotBuildError):
        prune(
            source,
            tmp_path / "b.onnx",
            cut=PruneCut(ffn_ratio=0.5),
            calibration=requests((WIDTH,), 16),
        )


def test_it_stops_when_its_time_is_over(tmp_path: Path) -> None:
    ticks = itertools.count()
    source = save(encoder(layers=2), tmp_path / "a.onnx")

    with pytest.raises(CannotBuildError, match=r"not enough time: .* fitting ffn, layer 2 of 4"):
        prune(
            source,
            tmp_path / "b.onnx",
            cut=PruneCut(ffn_ratio=0.5, heads_ratio=0.5),
            calibration=requests(SEQUENCE, 16),
            deadline=3,
            clock=lambda: next(ticks),
        )


def test_a_cut_that_changes_answers_is_found() -> None:
    wrong = as_graph(perceptron())
    name = next(iter(wrong.constants))
    wrong.constants[name] = wrong.constants[name] * 1.1

    with pytest.raises(CannotBuildError, match="stays unpruned"):
        check_same_answers(as_graph(perceptron()), wrong, requests((WIDTH,), 1), threads=1)


@given(
    arrays(np.int64, (2, 3), elements=st.integers(-3, 3)),
    arrays(np.int64, (2, 3), elements=st.integers(-3, 3)),
    arrays(np.float32, (2, 4), elements=st.floats(-9, 9, width=32)),
    st.sampled_from([0.0, 1e-5, 1e-2, float("nan")]),
)
def test_floats_decide_whether_answers_are_alike_and_integers_only_where_there_are_none(
    labels: Array, others: Array, scores: Array, noise: float
) -> None:
    moved = scores + np.float32(noise) * np.max(np.abs(scores), initial=1e-6)

    assert is_compatible([labels], [others]) == np.array_equal(labels, others)
    assert is_compatible([labels, moved], [others, scores]) == (noise in {0.0, 1e-5})
    assert not is_compatible([scores[:, :2]], [scores])


@pytest.mark.parametrize("first", [True, False], ids=["label-first", "label-last"])
def test_a_classifier_with_integer_labels_is_cut(first: bool, tmp_path: Path) -> None:  # noqa: FBT001  # a parameter
    source = save(with_label(perceptron(hidden=32), first=first), tmp_path / "a.onnx")
    examples = requests((WIDTH,), 64)
    prune(source, tmp_path / "b.onnx", cut=PruneCut(ffn_ratio=0.5), calibration=examples)
    session = ort.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    whole = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    zeros = [one for one in examples if whole.run(["label"], one)[0][0] == 0]

    for example in examples:
        label, scores = session.run(["label", "y"], example)
        assert label.tolist() == scores.argmax(axis=1).tolist()
    assert len(zeros) >= 2  # labels of nothing but zeros have no scale
    graph, same = as_graph(onnx.load(source)), as_graph(onnx.load(source))
    check_same_answers(graph, same, zeros[:2], threads=1)


def test_a_graph_whose_hidden_size_is_computed_elsewhere_is_left_whole(tmp_path: Path) -> None:
    model = encoder(shapes="literal")
    shapes = [node for node in model.graph.node if node.op_type == "Reshape"]
    size = helper.make_node("Size", ["sized"], ["width"], "width")
    model.graph.initializer.append(
        helper.make_tensor("sized", TensorProto.FLOAT, [WIDTH], np.zeros(WIDTH))
    )
    one = helper.make_tensor("first", TensorProto.INT64, [2], [0, 0])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
    model.graph.initializer.extend([one, axis])
    nodes = [
        size,
        helper.make_node("Unsqueeze", ["width", "axis"], ["wide"], "wide"),
        helper.make_node("Concat", ["first", "wide"], ["shape"], "shape", axis=0),
    ]
    shapes[-1].input[1] = "shape"
    everything = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(everything)
    onnx.checker.check_model(model)

    with pytest.raises(CannotBuildError, match="a size in it does not follow the cut"):
        prune(
            save(model, tmp_path / "a.onnx"),
            tmp_path / "b.onnx",
            cut=PruneCut(heads_ratio=0.5),
            calibration=requests(SEQUENCE, 16),
        )


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 0.0])
def test_a_cut_of_nothing_or_of_all_is_refused(ratio: float) -> None:
    with pytest.raises(InvalidArgumentError, match="must be 0 to below 1"):
        PruneCut(ffn_ratio=ratio)


@pytest.mark.parametrize(
    ("units", "ratio", "kept"),
    [(12, 0.5, 6), (1536, 0.25, 1152), (100, 0.5, 48), (3, 0.9, 1), (64, 0.99, 8), (1, 0.5, 1)],
)
def test_wide_layers_keep_a_multiple_of_eight(units: int, ratio: float, kept: int) -> None:
    assert kept_count(units, ratio) == kept
