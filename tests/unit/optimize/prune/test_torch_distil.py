"""A pruned network is taught to answer as its source, by a graph that PyTorch runs as ONNX does."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from headrace.core import Tensors
from headrace.optimize.candidate import CannotBuildError, TrainingExamples
from headrace.optimize.prune.graph import PruningGraph, as_graph, open_session, run, traced_shapes
from headrace.optimize.prune.groups import (
    Cutting,
    PruneCut,
    find_groups,
    without_units,
)
from headrace.optimize.prune.pruning import prune
from tests.small_networks import (
    SIDE,
    WIDTH,
    Writer,
    conv_net,
    encoder,
    perceptron,
    requests,
    save,
)

NO_TORCH = "PyTorch is not installed: make test SUITE=all installs it"
distil: Any = pytest.importorskip("headrace.optimize.prune.torch_distil", reason=NO_TORCH).distil
torch_graph: Any = pytest.importorskip("headrace.optimize.prune.torch_graph", reason=NO_TORCH)
TorchGraph: Any = torch_graph.TorchGraph
stacked: Any = torch_graph.stacked

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SEQUENCE = (5, WIDTH)
IMAGE = (1, SIDE, SIDE)


def clock() -> Callable[[], float]:
    """Passes a second whenever it is asked."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: encoder(shapes="literal", gelu="erf"), SEQUENCE),
        (lambda: encoder(shapes="inferred", gelu="tanh"), SEQUENCE),
        (lambda: encoder(shapes="sizes", gelu="bias"), SEQUENCE),
        (lambda: encoder(shapes="packed", gelu="fused"), SEQUENCE),
        (perceptron, (WIDTH,)),
        (lambda: perceptron("LeakyRelu"), (WIDTH,)),
        (lambda: perceptron("HardSigmoid"), (WIDTH,)),
        (lambda: conv_net(middle="depthwise"), IMAGE),
        (lambda: conv_net(middle="residual", end="flatten"), IMAGE),
    ],
)
def test_pytorch_answers_as_onnx_runtime_does(
    make: Callable[[], Any], shape: tuple[int, ...]
) -> None:
    graph = as_graph(make())
    example = requests(shape, 1)[0]

    got = TorchGraph(graph)(stacked([example]))[0].detach().numpy()
    assert np.allclose(got, run(open_session(graph.proto(), 1), example)[0], rtol=1e-5, atol=1e-6)


def pooled(kind: str, **told: Any) -> PruningGraph:
    net = Writer()
    x = net.op("Conv", "x", net.random(4, 1, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    x = net.op(kind, x, kernel_shape=[2, 2], **told)
    return as_graph(net.model(x, ["C", "H", "W"], inner=[1, SIDE, SIDE]))


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize(
    "told", [{}, {"strides": [2, 1]}, {"pads": [1, 0, 0, 1]}, {"auto_pad": "SAME_LOWER"}]
)
def test_pooling_counts_and_pads_as_onnx_says(kind: str, told: dict[str, Any]) -> None:
    graph = pooled(kind, **told)
    example = requests(IMAGE, 1)[0]

    got = TorchGraph(graph)(stacked([example]))[0].detach().numpy()
    assert np.allclose(got, run(open_session(graph.proto(), 1), example)[0], rtol=1e-5, atol=1e-6)


def halved(source: PruningGraph, example: Tensors) -> PruningGraph:
    groups = find_groups(source, traced_shapes(source, example, threads=1)).groups
    cuttings = [Cutting(group=one, kept_units=np.arange(one.units // 2)) for one in groups]
    return without_units(source, cuttings)


def distance(source: PruningGraph, other: PruningGraph, examples: list[Tensors]) -> float:
    pairs = [
        (run(open_session(source.proto(), 1), one)[0], run(open_session(other.proto(), 1), one)[0])
        for one in examples
    ]
    return float(np.mean([np.mean((a - b) ** 2) for a, b in pairs]))


@pytest.mark.parametrize(
    ("make", "shape"), [(lambda: encoder(layers=2), SEQUENCE), (perceptron, (WIDTH,))]
)
def test_teaching_brings_answers_nearer_to_the_source(
    make: Callable[[], Any], shape: tuple[int, ...]
) -> None:
    source = as_graph(make())
    examples = requests(shape, 200)
    smaller = halved(source, examples[0])
    others = requests(shape, 20, seed=8)
    before = distance(source, smaller, others)
    told = distil(
        source,
        smaller,
        TrainingExamples(examples=examples),
        deadline=250,
        threads=1,
        seed=0,
        clock=clock(),
    )

    assert distance(source, smaller, others) < 0.8 * before
    assert "steps of up to 32 rows" in told
    onnx.checker.check_model(smaller.proto())


def test_the_same_seed_and_clock_teach_the_same() -> None:
    examples = requests((WIDTH,), 100)
    made = []
    for _ in range(2):
        source = as_graph(perceptron())
        smaller = halved(source, examples[0])
        training = TrainingExamples(examples=examples)
        distil(source, smaller, training, deadline=60, threads=1, seed=3, clock=clock())
        made.append(smaller.constants)

    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def test_labels_are_learned_too() -> None:
    """The source knows nothing of these classes: only labels can teach them."""
    source = as_graph(perceptron())
    examples = requests((WIDTH,), 400)
    labels = [float(example["x"][0, 0] > 0) for example in examples]
    smaller = halved(source, examples[0])
    silent = [run(open_session(smaller.proto(), 1), one)[0].argmax() for one in examples]
    distil(
        source,
        smaller,
        TrainingExamples(examples=examples[:300], labels=labels[:300]),
        deadline=300,
        threads=1,
        seed=0,
        clock=clock(),
    )
    told = [run(open_session(smaller.proto(), 1), one)[0].argmax() for one in examples]

    assert np.mean(np.equal(told, labels)[300:]) >= np.mean(np.equal(silent, labels)[300:])


def test_masks_tables_and_statistics_are_not_taught() -> None:
    graph = as_graph(conv_net(middle="depthwise"))
    norms = [node for node in graph.nodes if node.op_type == "BatchNormalization"]
    learned = TorchGraph(graph).learned()

    assert all(node.input[1] in learned and node.input[3] not in learned for node in norms)


def test_an_operator_without_gradient_is_told_and_the_cut_stands(tmp_path: Path) -> None:
    model = perceptron()
    model.graph.node[-1].op_type = "Ceil"
    source = save(model, tmp_path / "a.onnx")
    pruned = prune(
        source,
        tmp_path / "b.onnx",
        cut=PruneCut(ffn_ratio=0.5),
        calibration=[],
        training=TrainingExamples(examples=requests((WIDTH,), 32)),
    )

    assert pruned.distillation == "no: Ceil cannot be trained: its gradient is not implemented"
    assert pruned.path.exists()


def test_what_was_learned_by_the_deadline_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    pruned = prune(
        save(perceptron(), tmp_path / "a.onnx"),
        tmp_path / "b.onnx",
        cut=PruneCut(ffn_ratio=0.5),
        calibration=[],
        training=TrainingExamples(examples=requests((WIDTH,), 64)),
        deadline=60,
        clock=clock(),
        on_progress=said.append,
    )

    assert "steps of up to 32 rows" in pruned.distillation
    assert said[-1] == "distilling, 100%"


def test_a_graph_that_pytorch_runs_otherwise_is_not_taught() -> None:
    """Its padding of a mode that is unknown is told, instead of being left out."""
    net = Writer()
    x = net.op("Pad", "x", net.ints(0, 1, 0, 1), mode="reflect")
    graph = as_graph(net.model(x, ["S"], inner=[WIDTH]))
    training = TrainingExamples(examples=requests((WIDTH,), 20))

    with pytest.raises(CannotBuildError, match="PyTorch cannot run it: Pad that mirrors"):
        distil(graph, graph.copy(), training, deadline=9, threads=1, seed=0, clock=clock())


def test_a_table_that_is_looked_up_in_keeps_its_values() -> None:
    net = Writer()
    ids = net.op("Cast", "x", to=TensorProto.INT64)
    table = net.random(7, WIDTH)
    x = net.op("Gather", table, ids, axis=0)
    x = net.op("MatMul", x, net.random(WIDTH, 2))
    graph = as_graph(net.model(x, ["S", 2], inner=["S"]))
    example = {"x": np.array([[1, 6, -1]], np.float32)}
    module = TorchGraph(graph)

    assert table not in module.learned()
    got = module(stacked([example]))[0].detach().numpy()
    assert np.allclose(got, run(open_session(graph.proto(), 1), example)[0], atol=1e-6)
