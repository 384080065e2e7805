"""Several engines as one model: which of them runs a batch is a matter of its rows."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import cast

from headrace.core import (
    VARIABLE,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
    with_weakest_evidence,
)
from headrace.core.devices import DeviceUse
from headrace.runtimes.base import DeadlineModel, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMember:
    """An engine's model. `up_to_rows`: None for all; `threads`: inside one run."""

    name: str
    model: Model
    up_to_rows: int | None = None
    threads: int = 1


class OptimizedModel:
    """Runs each batch by the member for so many rows. Implements `Model`; closes the members.

    Raises:
        UnsupportedModelError: The members do not take and give the same.
    """

    def __init__(self, members: Sequence[LoadedMember], device: DeviceUse) -> None:
        self.signature = common_signature(members)
        self.device = device
        self.intra_op_threads = max(one.threads for one in members)
        """What the engine plans its runs with."""
        self._models = [one.model for one in members]
        self.concurrent = all(model.concurrent for model in self._models)
        self.may_wait = any(getattr(model, "may_wait", False) for model in self._models)
        self.takes_deadline = any(map(_takes_deadline, self._models))
        self._bounds = tuple((one.up_to_rows, one.model) for one in members)
        self._names = [spec.name for spec in self.signature.outputs]
        self._is_one = len(members) == 1 or not self.signature.batched
        self._is_closed = False

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        """Run one batch."""
        if self._is_closed:
            msg = "the model is closed"
            raise RuntimeFailedError(msg)
        model = self._models[0] if self._is_one else self._for_rows(inputs)
        names = outputs or self._names
        if deadline is not None and _takes_deadline(model):
            return cast("DeadlineModel", model).run(inputs, names, deadline=deadline)
        return model.run(inputs, names)

    def example_inputs(self, *, rows: int = 1, variable: int = 1) -> Tensors:
        """Inputs that mean something to the first member, if it knows such, else ones that fit."""
        example = getattr(self._models[0], "example_inputs", None)
        if example is None:
            return example_inputs(self.signature, rows=rows, variable=variable)
        made: Tensors = example(rows=rows, variable=variable)
        return made

    def close(self) -> None:
        """Close all members; may be called again."""
        self._is_closed = True
        with ExitStack() as closing:
            for model in self._models:
                closing.callback(model.close)

    def _for_rows(self, inputs: Tensors) -> Model:
        rows = next(iter(inputs.values())).shape[0]
        for bound, model in self._bounds:
            if bound is None or rows <= bound:
                return model
        return self._models[-1]


def common_signature(members: Sequence[LoadedMember]) -> ModelSignature:
    """What all members take and give: dimensions that some of them leave open, others may fix.

    Raises:
        UnsupportedModelError: They differ; the message says which two, and in what.
    """
    first = members[0]
    signature = first.model.signature
    inputs, outputs = list(signature.inputs), list(signature.outputs)
    for other in members[1:]:
        theirs = other.model.signature
        if theirs.batched != signature.batched:
            has, lacks = (first, other) if signature.batched else (other, first)
            msg = f"'{has.name}' has a batch axis and '{lacks.name}' has none"
            raise UnsupportedModelError(f"{msg}; they cannot be one model")
        inputs = _merged("input", first, other, inputs, theirs.inputs)
        outputs = _merged("output", first, other, outputs, theirs.outputs)
    joined = replace(signature, inputs=tuple(inputs), outputs=tuple(outputs))
    return with_weakest_evidence(joined, [one.model.signature for one in members])


def _takes_deadline(model: Model) -> bool:
    return getattr(model, "takes_deadline", False) is True


def _merged(
    kind: str,
    first: LoadedMember,
    other: LoadedMember,
    mine: Sequence[TensorSpec],
    theirs: Sequence[TensorSpec],
) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in theirs}
    if by_name.keys() != {spec.name for spec in mine}:
        msg = (
            f"'{first.name}' has the {kind}s {_names(mine)}, and '{other.name}' {_names(theirs)}; "
            "members of one model need the same names"
        )
        raise UnsupportedModelError(msg)
    return [_both(kind, first, other, spec, by_name[spec.name]) for spec in mine]


def _both(
    kind: str, first: LoadedMember, other: LoadedMember, mine: TensorSpec, theirs: TensorSpec
) -> TensorSpec:
    """The stricter of two inputs; the looser of two outputs."""
    pairs = list(zip(mine.shape, theirs.shape, strict=False))
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    fixed = [pair for pair in differ if VARIABLE not in pair]
    if (
        mine.datatype != theirs.datatype
        or len(mine.shape) != len(theirs.shape)
        or (fixed and kind == "input")
    ):
        msg = (
            f"{kind} '{mine.name}' is {mine.datatype} {list(mine.shape)} of '{first.name}', and "
            f"{theirs.datatype} {list(theirs.shape)} of '{other.name}'; they cannot be one model"
        )
        raise UnsupportedModelError(msg)
    if kind == "input":
        return replace(mine, shape=tuple(map(max, pairs)))  # a size stands above `VARIABLE`
    return replace(mine, shape=tuple(a if a == b else VARIABLE for a, b in pairs))


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)[:300]
