"""A graph as it is rewritten: what is constant, who reads what, and pieces of it."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.optimize.prune.graph import (
    ActivationCache,
    as_graph,
    open_session,
    run,
    traced_shapes,
)
from headrace.optimize.prune.groups import find_groups
from headrace.optimize.prune.selection import matrix, rows_read, set_matrix
from tests.small_networks import (
    CHANNELS,
    CLASSES,
    HIDDEN,
    SIDE,
    WIDTH,
    Writer,
    conv_net,
    encoder,
    perceptron,
    requests,
)

IMAGE = (1, SIDE, SIDE)


def constant(name: str, value: Any) -> Any:  # noqa: ANN401  # onnx ships no types
    return helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(value))


def test_what_exporters_leave_between_a_weight_and_its_node_is_folded() -> None:
    net = Writer()
    weight = net.random(HIDDEN, WIDTH)
    turned = net.op("Transpose", net.op("Identity", weight), perm=[1, 0])
    x = net.op("Relu", net.op("MatMul", "x", turned))
    x = net.op("MatMul", x, net.random(HIDDEN, CLASSES))
    model = net.model(x, [CLASSES], inner=[WIDTH])
    graph = as_graph(model)
    example = requests((WIDTH,), 1)[0]

    groups = find_groups(graph, traced_shapes(graph, example, threads=1)).groups
    assert [group.units for group in groups] == [HIDDEN]
    assert [node.op_type for node in graph.nodes] == ["MatMul", "Relu", "MatMul", "Identity"]


def test_a_folded_graph_answers_as_before() -> None:
    model = encoder(shapes="sizes")
    example = requests((5, WIDTH), 1)[0]
    before = run(open_session(model, 1), example)[0]

    assert np.array_equal(run(open_session(as_graph(model).proto(), 1), example)[0], before)


def test_a_scalar_constant_stays_a_scalar() -> None:
    net = Writer()
    model = net.model("x", [WIDTH], inner=[WIDTH])
    model.graph.node.insert(0, constant("two", np.array(2, np.float32)))
    model.graph.node[-1].CopyFrom(helper.make_node("Mul", ["x", "two"], ["y"], "last"))
    graph = as_graph(model)
    (two,) = graph.proto().graph.initializer

    assert list(two.dims) == []
    onnx.checker.check_model(graph.proto())


def test_units_that_a_branch_reads_are_left_whole() -> None:
    model = perceptron()
    hidden = model.graph.node[1].output[0]
    inside = helper.make_graph(
        [helper.make_node("ReduceSum", [hidden], ["sum"], "sum", keepdims=0)],
        "branch",
        [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])],
    )
    model.graph.node.insert(2, constant("yes", np.ones((), np.bool_)))
    branch = helper.make_node("If", ["yes"], ["z"], "if", then_branch=inside, else_branch=inside)
    model.graph.node.insert(3, branch)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    graph = as_graph(model)

    found = find_groups(graph, traced_shapes(graph, requests((WIDTH,), 1)[0], threads=1))
    assert [group.units for group in found.groups] == [HIDDEN]
    assert "a loop or branch reads them" in found.refused["ffn"]  # type: ignore[index]


def test_a_sum_of_two_convolutions_is_a_residual_and_left_whole() -> None:
    net = Writer()
    parts = [
        net.op("Conv", "x", net.random(CHANNELS, 1, 3, 3), pads=[1, 1, 1, 1]) for _ in range(2)
    ]
    x = net.op("Relu", net.op("Add", *parts))
    x = net.op("Conv", x, net.random(CLASSES, CHANNELS, 3, 3))
    graph = as_graph(net.model(x, [CLASSES, 4, 4], inner=IMAGE))

    found = find_groups(graph, traced_shapes(graph, requests(IMAGE, 1)[0], threads=1))
    assert found.groups == ()
    assert "a residual sum reads them" in found.refused["channels"]  # type: ignore[index]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    side=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    same=st.sampled_from(["", "SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_rows_times_a_filter_are_what_the_convolution_answers(
    *,
    side: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: list[int],
    same: str,
) -> None:
    net = Writer()
    how: dict[str, Any] = {"auto_pad": same} if same else {"pads": pads}
    if same.startswith("SAME"):
        dilations = (1, 1)  # ONNX Runtime pads dilated ones of this kind otherwise than it says
    x = net.op("Conv", "x", net.random(4, 3, *side), strides=strides, dilations=dilations, **how)
    graph = as_graph(net.model(x, ["C", "H", "W"], inner=[3, 7, 6]))
    example = requests((3, 7, 6), 1)[0]
    wanted = run(open_session(graph.proto(), 1), example)[0]

    rows = rows_read(graph, 0, example["x"]) @ matrix(graph, 0)
    assert np.allclose(rows, np.moveaxis(wanted, 1, -1).reshape(-1, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [perceptron, conv_net])
def test_a_weight_written_back_as_it_was_read_changes_nothing(make: Any) -> None:  # noqa: ANN401  # as above
    graph = as_graph(make())
    shape = (WIDTH,) if make is perceptron else IMAGE
    example = requests(shape, 1)[0]
    before = run(open_session(graph.proto(), 1), example)[0]
    for node, one in enumerate(graph.nodes):
        if one.op_type in {"Gemm", "Conv"}:
            set_matrix(graph, node, matrix(graph, node))

    assert np.array_equal(run(open_session(graph.proto(), 1), example)[0], before)


def test_a_graph_run_in_pieces_gives_what_it_gives_at_once() -> None:
    graph = as_graph(encoder(shapes="sizes", layers=2))
    examples = requests((5, WIDTH), 3)
    course = ActivationCache(examples, threads=1)
    for upto in (3, 17, 17, len(graph.nodes) - 4, len(graph.nodes)):
        course.advance(graph, upto, {"y"})
    wanted = [run(open_session(graph.proto(), 1), example)[0] for example in examples]

    assert all(set(known) == {"y"} for known in course.tensors)
    for known, want in zip(course.tensors, wanted, strict=True):
        assert np.allclose(known["y"], want, rtol=1e-5, atol=1e-6)


def test_a_fork_goes_on_alone_from_where_it_was_made() -> None:
    graph = as_graph(perceptron())
    other = graph.copy()
    name = graph.nodes[-2].input[1]
    other.constants[name] = graph.constants[name] * 0
    course = ActivationCache(requests((WIDTH,), 1), threads=1)
    course.advance(graph, 2, {"y"})
    fork = course.fork()
    course.advance(graph, len(graph.nodes), {"y"})
    fork.advance(other, len(graph.nodes), {"y"})

    bias = graph.constants[graph.nodes[-2].input[2]]
    assert np.allclose(fork.tensors[0]["y"], bias)
    assert not np.allclose(course.tensors[0]["y"], bias)
