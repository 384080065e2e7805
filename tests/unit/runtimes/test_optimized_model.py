"""Which member runs a batch, and when are members one model?"""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Datatype,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.core.devices import ON_CPU, DeviceUse
from headrace.runtimes import generated_inputs
from headrace.runtimes.optimized.runtime import LoadedMember, OptimizedModel, common_signature

USE = DeviceUse(asked="auto", used=ON_CPU)


def spec(name: str, *shape: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


class Fake:
    """Answers `y` with its own number, a row each; and `z`, in the order that it has them."""

    concurrent = True

    def __init__(
        self,
        number: int = 0,
        inputs: Sequence[TensorSpec] = (spec("x", -1, 4),),
        outputs: Sequence[TensorSpec] = (spec("y", -1, 1), spec("z", -1, 1)),
        *,
        batched: bool = True,
    ) -> None:
        self.number = number
        self.signature = ModelSignature(
            inputs=tuple(inputs), outputs=tuple(outputs), batched=batched
        )
        self.closed = 0

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        rows = len(inputs["x"])
        names = outputs or [one.name for one in self.signature.outputs]
        return {name: np.full((rows, 1), self.number, np.float32) for name in names}

    def close(self) -> None:
        self.closed += 1


class Waiting(Fake):
    """Waits for others, and knows until when."""

    concurrent = False
    may_wait = True
    takes_deadline = True
    deadline: float | None = None

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        self.deadline = deadline
        return super().run(inputs, outputs)

    def example_inputs(self, *, rows: int = 1, variable: int = 1) -> Tensors:
        return {"x": np.full((rows, 4), variable, np.float32)}


def optimized(*members: tuple[Fake, int | None]) -> OptimizedModel:
    return OptimizedModel(
        [
            LoadedMember(name=str(i), model=model, up_to_rows=bound)
            for i, (model, bound) in enumerate(members)
        ],
        USE,
    )


@given(
    st.lists(st.integers(1, 40), unique=True, max_size=4).map(sorted),
    st.integers(1, 50),
)
def test_the_first_member_that_takes_so_many_rows_runs_them(bounds: list[int], rows: int) -> None:
    model = optimized(*((Fake(i), n) for i, n in enumerate([*bounds, None])))

    (answer,) = {float(n) for n in model.run({"x": np.zeros((rows, 4))})["y"].ravel()}
    assert answer == sum(bound < rows for bound in bounds)


def test_a_model_without_a_batch_is_run_by_the_first() -> None:
    members = [
        (Fake(i, [spec("x", 9, 4)], batched=False), bound) for i, bound in enumerate([1, None])
    ]

    assert optimized(*members).run({"x": np.zeros((9, 4))}, ["y"])["y"][0, 0] == 0


def test_outputs_come_in_the_order_of_the_signature() -> None:
    other = Fake(1, outputs=[spec("z", -1, 1), spec("y", -1, 1)])
    model = optimized((Fake(), 1), (other, None))

    assert list(model.run({"x": np.zeros((1, 4))})) == ["y", "z"]
    assert list(model.run({"x": np.zeros((2, 4))})) == ["y", "z"]
    assert list(model.run({"x": np.zeros((2, 4))}, ["z"])) == ["z"]


def test_what_one_member_says_holds_for_all() -> None:
    plain, waiting = Fake(), Waiting()
    model = optimized((plain, 1), (waiting, None))

    assert (model.concurrent, model.may_wait, model.takes_deadline) == (False, True, True)
    assert model.run({"x": np.zeros((1, 4))}, deadline=5.0)
    assert waiting.deadline is None
    model.run({"x": np.zeros((2, 4))}, deadline=5.0)
    assert waiting.deadline == 5.0

    calm = optimized((plain, None))
    assert (calm.concurrent, calm.may_wait, calm.takes_deadline) == (True, False, False)


def test_made_up_inputs_are_those_that_mean_something_to_the_first() -> None:
    assert (generated_inputs(optimized((Waiting(), None)), variable=7)["x"] == 7).all()
    assert generated_inputs(optimized((Fake(), None)), rows=3)["x"].shape == (3, 4)


def test_all_members_are_closed() -> None:
    members = [Fake(), Fake()]
    model = optimized((members[0], 1), (members[1], None))
    model.close()

    assert [one.closed for one in members] == [1, 1]


def test_threads_are_those_of_the_hungriest() -> None:
    members = [
        LoadedMember(name="a", model=Fake(), up_to_rows=1, threads=4),
        LoadedMember(name="b", model=Fake(), threads=1),
    ]
    assert OptimizedModel(members, USE).intra_op_threads == 4


def test_a_size_that_one_member_fixes_is_fixed_and_an_answer_that_one_leaves_open_is_open() -> None:
    loose = Fake(0, [spec("x", -1, -1)], [spec("y", -1, 3)])
    strict = Fake(1, [spec("x", -1, 4)], [spec("y", -1, -1)])
    for pair in ((loose, strict), (strict, loose)):
        signature = optimized((pair[0], 1), (pair[1], None)).signature

        assert [one.shape for one in signature.inputs] == [(-1, 4)]
        assert [one.shape for one in signature.outputs] == [(-1, -1)]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Fake(1, batched=False), "'0' has a batch axis and '1' has none"),
        (Fake(1, [spec("x", -1, 5)]), r"input 'x' is FP32 \[-1, 4\] of '0', and FP32 \[-1, 5\]"),
        (Fake(1, [spec("x", -1)]), "input 'x'"),
        (Fake(1, [spec("x", -1, 4, datatype=Datatype.FP64)]), "FP64"),
        (Fake(1, [spec("ids", -1, 4)]), "inputs 'x', and '1' 'ids'"),
        (Fake(1, [spec("x", -1, 4), spec("mask", -1, 4)]), "'x', 'mask'; members of one model"),
        (Fake(1, outputs=[spec("y", -1, 1)]), "outputs 'y', 'z', and '1' 'y'"),
        (Fake(1, outputs=[spec("y", -1), spec("z", -1, 1)]), "output 'y'"),
        (
            Fake(1, outputs=[spec("y", -1, 1, datatype=Datatype.INT64), spec("z", -1, 1)]),
            "INT64",
        ),
    ],
)
def test_members_that_take_or_give_something_else_are_no_model(other: Fake, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        common_signature([LoadedMember(name=n, model=m) for n, m in (("0", Fake()), ("1", other))])
