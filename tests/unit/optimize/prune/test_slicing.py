"""A cut graph answers as the whole one does without the units that were cut."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="needs the extra `optimize`")

from headrace.core import Array, Tensors
from headrace.optimize.prune.graph import PruningGraph, as_graph, open_session, run, traced_shapes
from headrace.optimize.prune.groups import (
    Cutting,
    UnitGroup,
    find_groups,
    with_units_ignored,
    without_units,
)
from headrace.optimize.prune.ties import UnitLayout, through_reshape
from tests.small_networks import (
    CHANNELS,
    CLASSES,
    HIDDEN,
    SIDE,
    WIDTH,
    conv_net,
    encoder,
    perceptron,
    requests,
)

SEQUENCE: Final = (5, WIDTH)
IMAGE: Final = (1, SIDE, SIDE)
NETWORKS: Final[dict[str, tuple[Callable[[], Any], tuple[int, ...]]]] = {
    "literal": (lambda: encoder(shapes="literal"), SEQUENCE),
    "inferred": (lambda: encoder(shapes="inferred", gelu="tanh"), SEQUENCE),
    "sizes": (lambda: encoder(shapes="sizes", gelu="bias"), SEQUENCE),
    "open": (lambda: encoder(shapes="open", gelu="fused"), SEQUENCE),
    "packed": (lambda: encoder(shapes="packed", layers=2), SEQUENCE),
    "perceptron": (perceptron, (WIDTH,)),
    "pool": (conv_net, IMAGE),
    "flatten": (lambda: conv_net(end="flatten"), IMAGE),
    "depthwise": (lambda: conv_net(middle="depthwise"), IMAGE),
}


def grouped(name: str) -> tuple[PruningGraph, tuple[UnitGroup, ...], list[Tensors]]:
    make, shape = NETWORKS[name]
    graph = as_graph(make())
    examples = requests(shape, 2)
    return graph, find_groups(graph, traced_shapes(graph, examples[0], threads=1)).groups, examples


def answer(graph: PruningGraph, example: Tensors) -> Array:
    return run(open_session(graph.proto(), 1), example)[0]


@st.composite
def cuttings(draw: st.DrawFn, name: str) -> tuple[PruningGraph, list[Cutting], Tensors]:
    graph, groups, examples = grouped(name)
    chosen = []
    for group in groups:
        kept = draw(st.sets(st.integers(0, group.units - 1), min_size=1))
        chosen.append(Cutting(group=group, kept_units=np.array(sorted(kept))))
    return graph, chosen, examples[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_cutting_units_changes_no_more_than_ignoring_them(name: str, data: st.DataObject) -> None:
    graph, chosen, example = data.draw(cuttings(name))
    smaller = without_units(graph, chosen)
    onnx.checker.check_model(smaller.proto())

    wanted = answer(with_units_ignored(graph, chosen), example)
    assert np.allclose(answer(smaller, example), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_units_that_nothing_reads_are_cut_without_a_trace(name: str) -> None:
    graph, groups, examples = grouped(name)
    chosen = [Cutting(group=group, kept_units=np.arange(group.units // 2)) for group in groups]
    dead = with_units_ignored(graph, chosen)
    smaller = without_units(dead, chosen)

    for example in examples:
        assert np.allclose(answer(smaller, example), answer(dead, example), rtol=0, atol=1e-6)


def test_hidden_units_take_their_rows_columns_and_biases_with_them() -> None:
    graph, groups, _ = grouped("literal")
    ffn = next(group for group in groups if group.units == HIDDEN)
    smaller = without_units(graph, [Cutting(group=ffn, kept_units=np.arange(HIDDEN - 7))])

    assert graph.parameters - smaller.parameters == 7 * (WIDTH + 1 + WIDTH)


def test_heads_take_queries_keys_values_and_outputs_with_them() -> None:
    graph, groups, _ = grouped("packed")
    size = WIDTH // groups[0].units
    smaller = without_units(graph, [Cutting(group=groups[0], kept_units=np.array([0, 2, 3]))])

    assert graph.parameters - smaller.parameters == 3 * size * (WIDTH + 1) + size * WIDTH


def test_channels_take_filters_norms_and_every_place_behind_flatten() -> None:
    graph, groups, _ = grouped("flatten")
    smaller = without_units(graph, [Cutting(group=groups[1], kept_units=np.arange(CHANNELS - 1))])

    filters, norm, places = CHANNELS * 9, 4, SIDE * SIDE * CLASSES
    assert graph.parameters - smaller.parameters == filters + norm + places


def test_a_graph_takes_batches_after_it_was_cut() -> None:
    for name in NETWORKS:
        graph, groups, examples = grouped(name)
        smaller = without_units(
            graph, [Cutting(group=one, kept_units=np.array([1])) for one in groups]
        )
        rows = {"x": np.concatenate([example["x"] for example in examples])}

        singly = np.concatenate([answer(smaller, example) for example in examples])
        assert np.allclose(answer(smaller, rows), singly, rtol=1e-5, atol=1e-6)


def test_a_constant_that_others_read_too_stays_whole_for_them() -> None:
    model = perceptron()
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Gemm"]
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[2] == biases[1]:
            node.input[2] = biases[0]
    graph = as_graph(model)
    example = requests((WIDTH,), 1)[0]
    groups = find_groups(graph, traced_shapes(graph, example, threads=1)).groups
    chosen = [Cutting(group=groups[0], kept_units=np.arange(5))]
    smaller = without_units(graph, chosen)

    wanted = answer(with_units_ignored(graph, chosen), example)
    assert np.allclose(answer(smaller, example), wanted, rtol=1e-5, atol=1e-6)


@given(outer=st.integers(1, 3), units=st.integers(2, 5), inner=st.integers(1, 4), data=st.data())
def test_units_keep_their_numbers_through_a_reshape(
    outer: int, units: int, inner: int, data: st.DataObject
) -> None:
    first, last = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    split = (first, outer, units, inner, last)
    merged = data.draw(
        st.sampled_from(
            [
                (first, outer * units * inner, last),
                (first * outer, units, inner * last),
                (first, outer, units * inner * last),
                (first * outer * units * inner * last,),
            ]
        )
    )
    numbers = np.broadcast_to(np.arange(units)[:, None, None], split)
    layout = through_reshape(UnitLayout(axis=2, units=units), split, merged)

    assert layout is not None
    for unit in range(units):
        taken = np.take(numbers.reshape(merged), layout.entries(np.array([unit])), layout.axis)
        assert (taken == unit).all()
        assert taken.size == numbers.size // units


def test_a_reshape_that_tears_units_apart_is_no_layout() -> None:
    assert through_reshape(UnitLayout(axis=1, units=4), (2, 4), (4, 2)) is None
