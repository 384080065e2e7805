"""Requests to a batch and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Datatype,
    InferRequest,
    ModelSignature,
    Packed,
    PaddingSpec,
    RuntimeFailedError,
    TensorSpec,
    arrays_of,
)
from headrace.engine import Ticket, padding_plan
from headrace.engine.collate import Shapes, join, split
from tests.unit.engine.models import LENGTHS, ROWS
from tests.unit.engine.tickets import Recorded

MIXED = ModelSignature(
    inputs=(
        TensorSpec(name="ids", datatype=Datatype.INT64, shape=(-1, -1)),
        TensorSpec(name="side", datatype=Datatype.FP32, shape=(-1, 3)),
        TensorSpec(name="free", datatype=Datatype.FP32, shape=(-1, 2, -1)),
    ),
    outputs=(
        TensorSpec(name="tokens", datatype=Datatype.FP32, shape=(-1, -1, 4)),
        TensorSpec(name="whole", datatype=Datatype.FP32, shape=(-1, 4)),
    ),
    batched=True,
)
PLAN = padding_plan(MIXED, PaddingSpec(axis=1, values={"ids": 7}), {"tokens": (1,), "whole": ()})


def a_ticket(length: int, rows: int = 1, free: int = 5) -> Recorded:
    ticket = Recorded(
        InferRequest(
            model_name="m",
            rows=rows,
            inputs={
                "ids": np.full((rows, length), length, np.int64),
                "side": np.full((rows, 3), length, np.float32),
                "free": np.full((rows, 2, free), length, np.float32),
            },
        )
    )
    Shapes(MIXED, PLAN).mark(ticket)
    return ticket


def test_the_length_and_the_group_come_from_the_variable_axes() -> None:
    first, second, other = a_ticket(3), a_ticket(9), a_ticket(3, free=6)

    assert (first.length, second.length) == (3, 9)
    assert first.group == second.group
    assert first.group != other.group  # `free` varies on an axis that is not padded


def test_fixed_shapes_are_uniform() -> None:
    assert Shapes(ROWS, None).is_uniform
    assert not Shapes(LENGTHS, None).is_uniform


def test_without_a_plan_the_group_is_the_shape() -> None:
    ticket = a_ticket(4)
    Shapes(MIXED, None).mark(ticket)

    assert ticket.group == ((4,), (2, 5))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=8))
def test_joined_and_split_again_each_request_has_its_own_rows(
    wanted: list[tuple[int, int]],
) -> None:
    tickets: list[Ticket] = [a_ticket(length, rows) for length, rows in wanted]

    inputs, longest = join(tickets, PLAN)
    tokens = np.repeat(inputs["ids"][:, :, None], 4, axis=2).astype(np.float32)
    outputs = {"tokens": tokens, "whole": np.repeat(inputs["side"][:, :1], 4, axis=1)}
    parts = split(outputs, tickets, plan=PLAN, padded_to=longest)

    assert longest == max(length for length, _ in wanted)
    for (length, rows), part in zip(wanted, map(arrays_of, parts), strict=True):
        np.testing.assert_array_equal(part["tokens"], np.full((rows, length, 4), length))
        np.testing.assert_array_equal(part["whole"], np.full((rows, 4), length))


def test_padding_uses_the_value_of_the_plan() -> None:
    inputs, _ = join([a_ticket(2), a_ticket(4)], PLAN)

    np.testing.assert_array_equal(inputs["ids"], [[2, 2, 7, 7], [4, 4, 4, 4]])


def test_an_output_without_a_row_for_each_row_is_refused_by_name() -> None:
    tickets = [a_ticket(2), a_ticket(2)]

    with pytest.raises(RuntimeFailedError, match="'whole' has shape"):
        split({"whole": np.zeros((1, 4))}, tickets, plan=None, padded_to=2)


def test_a_plain_ticket_has_nobody_to_tell() -> None:
    with pytest.raises(NotImplementedError):
        Ticket().complete(RuntimeFailedError("x"))


def a_row(number: float, rows: int, *, is_packed: bool) -> Recorded:
    array = np.full((rows, 3), number, np.float32)
    packed = Packed("x", (rows, 3), array.dtype, array.tobytes())
    inputs = packed if is_packed else {"x": array}
    return Recorded(InferRequest(model_name="m", rows=rows, inputs=inputs))


@given(st.lists(st.tuples(st.floats(width=32), st.integers(1, 3), st.booleans()), min_size=1))
def test_bytes_are_joined_as_arrays_are(wanted: list[tuple[float, int, bool]]) -> None:
    tickets: list[Ticket] = [a_row(n, rows, is_packed=packed) for n, rows, packed in wanted]

    inputs, _ = join(tickets, None)

    expected = np.concatenate([np.full((rows, 3), n, np.float32) for n, rows, _ in wanted])
    assert list(inputs) == ["x"]
    assert inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(inputs["x"], expected)
    for ticket, (number, rows, _) in zip(tickets, wanted, strict=True):
        own = np.full((rows, 3), number, np.float32)
        np.testing.assert_array_equal(ticket.request.inputs["x"], own)
