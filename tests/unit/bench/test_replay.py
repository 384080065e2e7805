from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bench.bare import run_replay
from bench.replay import Array, Waiting, replay, rows_of, take

TICK_S = 1e-6


class Clock:
    """Goes on by a tick when it is read, so that who waits awake gets there."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += TICK_S
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


class Runner:
    """Takes a while for each batch, and remembers when it had which lengths."""

    def __init__(self, clock: Clock, *, takes_s: float) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self.batches: list[tuple[float, list[int]]] = []

    def __call__(self, batch: Sequence[Array]) -> None:
        self.batches.append((self._clock.now - 1000, [len(row) for row in batch]))
        self._clock.now += self._takes_s


def tokens(*lengths: int) -> list[Array]:
    return [np.zeros(length, np.int64) for length in lengths]


def waiting(*lengths: int) -> list[Waiting]:
    return [Waiting(float(at), row) for at, row in enumerate(tokens(*lengths))]


def lengths(of: Sequence[Waiting]) -> list[int]:
    return [len(one.tokens) for one in of]


def test_one_by_one_takes_what_came_first() -> None:
    queue = waiting(7, 3, 5)

    assert lengths(take(queue, 1)) == [7]
    assert lengths(queue) == [3, 5]


def test_a_batch_is_the_one_that_came_first_and_those_nearest_to_its_length() -> None:
    queue = waiting(20, 90, 21, 1, 17)

    assert lengths(take(queue, 3)) == [20, 21, 17]
    assert lengths(queue) == [90, 1]


def test_who_waits_longer_goes_first_among_equals() -> None:
    queue = waiting(5, 6, 4, 6)

    assert [one.at for one in take(queue, 2)] == [0, 1]


def test_fewer_than_a_batch_are_taken_as_they_are() -> None:
    queue = waiting(5, 6)

    assert lengths(take(queue, 4)) == [5, 6]
    assert queue == []


def test_a_latency_is_the_wait_and_the_run() -> None:
    clock = Clock()
    run = Runner(clock, takes_s=0.010)

    outcome = replay([0.1, 0.104, 0.5], tokens(4), run, most=1, clock=clock)

    assert outcome.latencies_s == pytest.approx([0.010, 0.016, 0.010], abs=1e-4)


def test_a_batch_holds_nothing_that_has_not_arrived() -> None:
    clock = Clock()
    run = Runner(clock, takes_s=0.010)

    replay([0.1, 0.105, 0.109, 0.111], tokens(1, 2, 3, 4), run, most=8, clock=clock)

    assert [batch for _, batch in run.batches] == [[1], [2, 3], [4]]
    assert [at for at, _ in run.batches] == pytest.approx([0.1, 0.11, 0.12], abs=1e-4)


def test_rows_are_asked_for_in_turn() -> None:
    clock = Clock()
    run = Runner(clock, takes_s=0.001)

    replay([0.1, 0.2, 0.3], tokens(1, 2), run, most=1, clock=clock)

    assert [batch for _, batch in run.batches] == [[1], [2], [1]]


@given(
    gaps=st.lists(st.floats(0, 0.02), max_size=30),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    most=st.integers(1, 5),
)
def test_everything_that_arrives_is_run_once(
    gaps: list[float], sizes: list[int], most: int
) -> None:
    clock = Clock()
    run = Runner(clock, takes_s=0.005)
    times = list(np.cumsum(gaps))

    outcome = replay(times, tokens(*sizes), run, most=most, clock=clock)

    ran = [length for _, batch in run.batches for length in batch]
    assert sorted(ran) == sorted(sizes[at % len(sizes)] for at in range(len(times)))
    assert all(0 < len(batch) <= most for _, batch in run.batches)
    assert len(outcome.latencies_s) == len(times)
    assert all(latency >= 0.005 for latency in outcome.latencies_s)


@pytest.mark.parametrize(("way", "most"), [("one", 1), ("sorted:4", 4)])
def test_a_way_says_how_many_rows_a_batch_has(way: str, most: int) -> None:
    assert rows_of(way) == most


@pytest.mark.parametrize("way", ["", "one:2", "fifo:4", "sorted", "sorted:0", "sorted:x"])
def test_another_way_is_an_error(way: str) -> None:
    with pytest.raises(ValueError, match="one or sorted:N"):
        rows_of(way)


def counting_model() -> bytes:
    """`lengths`, how many tokens each row has."""
    int64 = TensorProto.INT64
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked"], ["lengths"]),
    ]
    graph = helper.make_graph(
        nodes,
        "counting",
        [
            helper.make_tensor_value_info(name, int64, ["rows", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("lengths", int64, None)],
    )
    opset = helper.make_opsetid("", 17)
    whole: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return whole


def test_a_real_model_is_replayed_with_the_figures_of_the_generator() -> None:
    bare: Any = ort.InferenceSession(counting_model(), providers=["CPUExecutionProvider"])

    figures = run_replay(
        bare,
        tokens(3, 9, 4),
        way="sorted:4",
        rate=2000,
        seconds=0.02,
        deadline_s=10,
        seed=1,
    )

    assert figures["sent"] == figures["good"] > 10
    assert figures["goodput"] == figures["good"] / 0.02
    assert 0 < figures["p50_s"] <= figures["p99_s"]
    assert figures["statuses"] == {"200": figures["sent"]}
