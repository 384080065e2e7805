"""Steps that run several models of one signature: ensembles and cascades."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    HeadraceError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    with_weakest_evidence,
)
from headrace.pipeline.context import StepContext
from headrace.pipeline.spec import CascadeSpec, EnsembleSpec
from headrace.runtimes import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberModel:
    """A model, and its path as its name in errors."""

    name: str
    model: Model

    def run(self, inputs: Tensors, outputs: Sequence[str], rows: int) -> Tensors:
        """Return the model's outputs after checking that their number of rows matches the inputs.

        Raises:
            HeadraceError: It failed; a note names it.
        """
        try:
            answers = self.model.run(inputs, outputs)
        except HeadraceError as error:
            error.add_note(f"in '{self.name}'")
            raise
        for name in outputs:
            if answers[name].shape[:1] != (rows,):
                msg = f"'{self.name}' answered {rows} rows with '{name}' of the shape"
                raise RuntimeFailedError(f"{msg} {list(answers[name].shape)}")
        return answers


class Members:
    """The models of one step; closes them."""

    def __init__(self, members: Sequence[MemberModel]) -> None:
        self.all = tuple(members)
        self.concurrent = all(member.model.concurrent for member in members)
        self.may_wait = any(getattr(member.model, "may_wait", False) for member in members)
        first = members[0]
        for each_member in members:
            if not each_member.model.signature.batched:
                msg = f"'{each_member.name}' has no batch axis, so its rows cannot be separated"
                raise UnsupportedModelError(msg)
            _check_inputs(first, each_member)

    @classmethod
    def open(cls, paths: Sequence[str], around: StepContext) -> "Members":
        """Load the models.

        Raises:
            UnsupportedModelError: One cannot be loaded, or they take different inputs.
        """
        with ExitStack() as opened:
            members = []
            for path in paths:
                model = around.model(path)
                opened.callback(model.close)
                members.append(MemberModel(name=path, model=model))
            opened_members = cls(members)
            opened.pop_all()
        return opened_members

    @property
    def signature(self) -> ModelSignature:
        """Signature of the first model."""
        return self.all[0].model.signature

    @property
    def signatures(self) -> list[ModelSignature]:
        """Signatures of all models."""
        return [member.model.signature for member in self.all]

    def agreed(self, names: Sequence[str] | None) -> tuple[TensorSpec, ...]:
        """Return these outputs, or all of the first model, if all models declare them equally.

        Raises:
            UnsupportedModelError: A model does not.
        """
        selected = names or [spec.name for spec in self.signature.outputs]
        return tuple(self._agreed(name) for name in selected)

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return the example inputs of the first model that has its own, else generated ones."""
        for member in self.all:
            example = getattr(member.model, "example_inputs", None)
            if example is not None:
                inputs: Tensors = example(rows=rows, variable=variable)
                return inputs
        return {}

    def close(self) -> None:
        """Close all models."""
        with ExitStack() as closing:
            for member in self.all:
                closing.callback(member.model.close)

    def _agreed(self, name: str) -> TensorSpec:
        first = self.all[0]
        spec = first.model.signature.output(name)
        for member in self.all:
            other = member.model.signature.output(name)
            if spec is None or other is None:
                lacking = member if other is None else first
                names = ", ".join(spec.name for spec in lacking.model.signature.outputs)
                msg = f"'{lacking.name}' has no output '{name}'; it has: {names}"
                raise UnsupportedModelError(msg)
            if (spec.datatype, spec.shape) != (other.datatype, other.shape):
                msg = (
                    f"'{member.name}' outputs {_display(other)}, but '{first.name}' "
                    f"{_display(spec)}"
                )
                raise UnsupportedModelError(msg)
        assert spec is not None
        return spec


def _check_inputs(first: MemberModel, other: MemberModel) -> None:
    own = {spec.name: spec for spec in first.model.signature.inputs}
    other_inputs = {spec.name: spec for spec in other.model.signature.inputs}
    if own.keys() != other_inputs.keys():
        msg = (
            f"'{other.name}' takes {', '.join(other_inputs)}, but '{first.name}' {', '.join(own)}:"
            " models of one step must have the same input names"
        )
        raise UnsupportedModelError(msg)
    for name, spec in own.items():
        if (spec.datatype, spec.shape) != (other_inputs[name].datatype, other_inputs[name].shape):
            msg = (
                f"'{other.name}' takes {_display(other_inputs[name])}, but '{first.name}' "
                f"{_display(spec)}"
            )
            raise UnsupportedModelError(msg)


def _display(spec: TensorSpec) -> str:
    return f"'{spec.name}' as {spec.datatype} {list(spec.shape)}"


_FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)


class EnsembleStep:
    """Step that runs all models on the same inputs, with combined outputs. Implements `Model`."""

    def __init__(
        self, members: Members, spec: EnsembleSpec, combined: Sequence[TensorSpec]
    ) -> None:
        own = members.signature
        signature = ModelSignature(inputs=own.inputs, outputs=tuple(combined), batched=True)
        self.signature = with_weakest_evidence(signature, members.signatures)
        self.concurrent = members.concurrent
        self.may_wait = members.may_wait
        self._members = members
        self._combine = spec.combine
        count = len(members.all)
        weights = np.array(spec.weights or (1.0,) * count)
        self._weights = weights / weights.sum()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run all models on one batch, one after the other.

        Raises:
            RuntimeFailedError: A model failed, or gave another shape than the others.
        """
        names = outputs or [spec.name for spec in self.signature.outputs]
        rows = len(next(iter(inputs.values())))
        answers = [member.run(inputs, names, rows) for member in self._members.all]
        return {name: self._combined(name, [answer[name] for answer in answers]) for name in names}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return the example inputs of the models."""
        return self._members.example_inputs(rows=rows, variable=variable)

    def close(self) -> None:
        """Close all models."""
        self._members.close()

    def _combined(self, name: str, arrays: Sequence[Array]) -> Array:
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            shapes_text = ", ".join(
                f"'{member.name}' {list(array.shape)}"
                for member, array in zip(self._members.all, arrays, strict=True)
            )
            raise RuntimeFailedError(f"models disagree on the shape of '{name}': {shapes_text}")
        if self._combine == "vote":
            return _vote(arrays)
        if self._combine == "max":
            highest: Array = np.maximum.reduce(arrays)
            return highest
        total = np.zeros(arrays[0].shape, np.float64)
        for weight, array in zip(self._weights, arrays, strict=True):
            if weight:  # an infinity of a model with weight 0 is ignored
                total += weight * array
        return total.astype(arrays[0].dtype)


def open_ensemble(spec: EnsembleSpec, around: StepContext) -> EnsembleStep:
    """Return the step that `spec` describes.

    Raises:
        UnsupportedModelError: A model cannot be loaded, they disagree, or their outputs cannot be
            combined in this way.
    """
    members = Members.open(spec.models, around)
    try:
        combined = members.agreed(spec.combined)
        for output in combined:
            is_float = output.datatype in _FLOATS
            if spec.combine == "vote":
                fits, needed = not is_float, "labels: whole numbers, BOOL or BYTES"
            elif spec.combine == "max":
                fits, needed = output.datatype is not Datatype.BYTES, "numbers"
            else:
                fits, needed = is_float, "floats"
            if not fits:
                msg = (
                    f"'{output.name}' is {output.datatype}, "
                    f"and combine: {spec.combine} needs {needed}"
                )
                raise UnsupportedModelError(f"{msg}; name the outputs to combine in 'combined'")  # noqa: TRY301  # as the others
        return EnsembleStep(members, spec, combined)
    except UnsupportedModelError:
        members.close()
        raise


def _vote(arrays: Sequence[Array]) -> Array:
    """Return the majority value of each element; the first model's among equals."""
    votes = np.stack(arrays)
    agreeing = np.stack([(votes == votes_of_model).sum(axis=0) for votes_of_model in votes])
    winner = agreeing.argmax(axis=0)[np.newaxis]
    winners: Array = np.take_along_axis(votes, winner, axis=0)[0]
    return winners


STAGE: Final = "stage"


class CascadeStep:
    """Step with the models' outputs, and `stage` INT64 [N]: the model that served a row, from 0.

    Implements `Model`.
    """

    def __init__(self, members: Members, spec: CascadeSpec, outputs: Sequence[TensorSpec]) -> None:
        stage = TensorSpec(name=STAGE, datatype=Datatype.INT64, shape=(VARIABLE,))
        signature = ModelSignature(
            inputs=members.signature.inputs, outputs=(*outputs, stage), batched=True
        )
        self.signature = with_weakest_evidence(signature, members.signatures)
        self.concurrent = members.concurrent
        self.may_wait = members.may_wait
        self._members = members
        self._confidence = spec.confidence
        self._threshold = spec.threshold

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch: each model on the remaining rows.

        Raises:
            RuntimeFailedError: A model failed, or gave another shape than those before it.
        """
        output_names = outputs or [spec.name for spec in self.signature.outputs]
        names = [name for name in output_names if name != STAGE]
        needed_names = [*names, *({self._confidence} - set(names))]
        rows = len(next(iter(inputs.values())))
        merged: Tensors = {STAGE: np.zeros(rows, np.int64)}
        left = np.arange(rows)
        for stage, member in enumerate(self._members.all):
            is_all = len(left) == rows
            stage_inputs = (
                inputs if is_all else {name: array[left] for name, array in inputs.items()}
            )
            answers = member.run(stage_inputs, needed_names, len(left))
            # Per row; a confidence of NaN counts as unsure.
            values = answers[self._confidence]
            best = values.max(axis=1, initial=-np.inf) if values.ndim > 1 else values
            sure: Array = best >= self._threshold
            if stage == len(self._members.all) - 1:
                sure = np.ones(len(left), np.bool_)
            if is_all and sure.all():
                merged |= answers
                merged[STAGE][:] = stage
                break
            taken = left[sure]
            merged[STAGE][taken] = stage
            for name in names:
                _place(merged, name, answers[name][sure], taken, rows, member.name)
            left = left[~sure]
            if not len(left):
                break
        return {name: merged[name] for name in output_names}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return the example inputs of the models."""
        return self._members.example_inputs(rows=rows, variable=variable)

    def close(self) -> None:
        """Close all models."""
        self._members.close()


def open_cascade(spec: CascadeSpec, around: StepContext) -> CascadeStep:
    """Return the step that `spec` describes.

    Raises:
        UnsupportedModelError: A model cannot be loaded, they disagree, or none gives a confidence.
    """
    members = Members.open(spec.models, around)
    try:
        return CascadeStep(members, spec, _outputs(members, spec))
    except UnsupportedModelError:
        members.close()
        raise


def _outputs(members: Members, spec: CascadeSpec) -> tuple[TensorSpec, ...]:
    """Return the outputs that all models share; one of them must be the confidence."""
    outputs = members.agreed(None)
    (sure,) = members.agreed([spec.confidence])
    if sure.datatype not in _FLOATS or len(sure.shape) not in {1, 2}:
        msg = f"'{sure.name}' is {sure.datatype} with shape {list(sure.shape)}"
        raise UnsupportedModelError(
            f"{msg}; a confidence must be floats with shape [-1] or [-1, classes]"
        )
    if any(output.name == STAGE for output in outputs):
        msg = f"a model has an output '{STAGE}', a name reserved for the model that answered"
        raise UnsupportedModelError(msg)
    return outputs


def _place(  # noqa: PLR0917  # one loop's body
    merged: Tensors, name: str, answers: Array, rows: Array, total: int, model: str
) -> None:
    there = merged.get(name)
    if there is None:
        there = merged[name] = np.zeros((total, *answers.shape[1:]), answers.dtype)
    if there.shape[1:] != answers.shape[1:]:
        msg = (
            f"'{model}' returned '{name}' with {list(answers.shape[1:])} per row, but a "
            f"previous model {list(there.shape[1:])}"
        )
        raise RuntimeFailedError(msg)
    there[rows] = answers
