"""Which units are found, and what stops a cut."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("onnx", reason="needs the extra `optimize`")

from headrace.optimize.prune.graph import as_graph, traced_shapes
from headrace.optimize.prune.groups import PrunableGroups, Unit, find_groups
from tests.small_networks import (
    CHANNELS,
    HEADS,
    HIDDEN,
    SIDE,
    WIDTH,
    conv_net,
    encoder,
    perceptron,
    requests,
)

SEQUENCE = (5, WIDTH)
IMAGE = (1, SIDE, SIDE)


def found(model: Any, shape: tuple[int, ...]) -> PrunableGroups:  # noqa: ANN401  # onnx ships no types
    graph = as_graph(model)
    return find_groups(graph, traced_shapes(graph, requests(shape, 1)[0], threads=1))


def kinds(model: Any, shape: tuple[int, ...]) -> list[tuple[Unit, int]]:  # noqa: ANN401  # as above
    return [(group.unit, group.units) for group in found(model, shape).groups]


@pytest.mark.parametrize("shapes", ["literal", "inferred", "sizes", "open", "packed"])
def test_heads_are_found_however_an_exporter_writes_their_shapes(shapes: str) -> None:
    assert kinds(encoder(shapes=shapes), SEQUENCE) == [(Unit.HEADS, HEADS), (Unit.FFN, HIDDEN)]


@pytest.mark.parametrize("gelu", ["erf", "tanh", "fused", "bias"])
def test_hidden_units_are_found_behind_every_form_of_gelu(gelu: str) -> None:
    assert (Unit.FFN, HIDDEN) in kinds(encoder(gelu=gelu), SEQUENCE)


def test_each_hidden_layer_of_a_perceptron_is_a_group() -> None:
    assert kinds(perceptron(), (WIDTH,)) == [(Unit.FFN, HIDDEN)] * 2


@pytest.mark.parametrize("end", ["pool", "flatten"])
def test_channels_end_in_the_next_convolution_or_matrix(end: str) -> None:
    assert kinds(conv_net(end=end), IMAGE) == [(Unit.CHANNELS, CHANNELS)] * 2


def test_a_depthwise_convolution_belongs_to_the_channels_before_it() -> None:
    groups = found(conv_net(middle="depthwise"), IMAGE).groups

    assert [len(group.producers) for group in groups] == [1, 1]
    assert len(groups[0].cuts) > len(groups[1].cuts)


@pytest.mark.parametrize(
    ("make", "shape", "unit", "why"),
    [
        (
            lambda: conv_net(middle="residual"),
            IMAGE,
            Unit.CHANNELS,
            "a residual sum carries them past a weight",
        ),
        (conv_net, IMAGE, Unit.HEADS, "no reshape splits its features into heads"),
        (perceptron, (WIDTH,), Unit.CHANNELS, "it has no two convolutions in a row"),
        (lambda: perceptron("Softmax"), (WIDTH,), Unit.FFN, "Softmax mixes them (2 times)"),
    ],
)
def test_what_cannot_be_cut_is_told_with_the_reason(
    make: Callable[[], Any], shape: tuple[int, ...], unit: Unit, why: str
) -> None:
    told = found(make(), shape)

    assert all(group.unit is not unit for group in told.groups)
    assert why in told.refusal_summary(unit)
