"""Several models of one signature, as an ensemble and a cascade have them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from headrace.core import (
    HeadraceError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline.surroundings import Surroundings
from headrace.runtimes import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model, and what it is called in errors: its path."""

    name: str
    model: Model

    def run(self, inputs: Tensors, outputs: Sequence[str], rows: int) -> Tensors:
        """What the model answers, checked: it has as many rows as it was asked about.

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

    def __init__(self, members: Sequence[Member]) -> None:
        self.all = tuple(members)
        self.concurrent = all(one.model.concurrent for one in members)
        self.may_wait = any(getattr(one.model, "may_wait", False) for one in members)
        first = members[0]
        for one in members:
            if not one.model.signature.batched:
                msg = f"'{one.name}' has no batch axis, so its rows cannot be told apart"
                raise UnsupportedModelError(msg)
            _check_inputs(first, one)

    @classmethod
    def open(cls, paths: Sequence[str], around: Surroundings) -> "Members":
        """Load them.

        Raises:
            UnsupportedModelError: One cannot be loaded, or they do not take the same.
        """
        with ExitStack() as opened:
            members = []
            for path in paths:
                model = around.model(path)
                opened.callback(model.close)
                members.append(Member(name=path, model=model))
            made = cls(members)
            opened.pop_all()
        return made

    @property
    def signature(self) -> ModelSignature:
        """The first one's."""
        return self.all[0].model.signature

    @property
    def signatures(self) -> list[ModelSignature]:
        """Of all of them."""
        return [one.model.signature for one in self.all]

    def agreed(self, names: Sequence[str] | None) -> tuple[TensorSpec, ...]:
        """These outputs, or all of the first model, if all give them alike.

        Raises:
            UnsupportedModelError: One does not.
        """
        chosen = names or [spec.name for spec in self.signature.outputs]
        return tuple(self._agreed(name) for name in chosen)

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """What means something to the first of them that knows better than its signature."""
        for one in self.all:
            example = getattr(one.model, "example_inputs", None)
            if example is not None:
                made: Tensors = example(rows=rows, variable=variable)
                return made
        return {}

    def close(self) -> None:
        """Close all of them."""
        with ExitStack() as closing:
            for one in self.all:
                closing.callback(one.model.close)

    def _agreed(self, name: str) -> TensorSpec:
        first = self.all[0]
        spec = first.model.signature.output(name)
        for one in self.all:
            other = one.model.signature.output(name)
            if spec is None or other is None:
                lacking = one if other is None else first
                given = ", ".join(spec.name for spec in lacking.model.signature.outputs)
                msg = f"'{lacking.name}' gives no '{name}'; it gives: {given}"
                raise UnsupportedModelError(msg)
            if (spec.datatype, spec.shape) != (other.datatype, other.shape):
                msg = f"'{one.name}' gives {_shown(other)}, but '{first.name}' {_shown(spec)}"
                raise UnsupportedModelError(msg)
        assert spec is not None
        return spec


def _check_inputs(first: Member, other: Member) -> None:
    mine = {spec.name: spec for spec in first.model.signature.inputs}
    theirs = {spec.name: spec for spec in other.model.signature.inputs}
    if mine.keys() != theirs.keys():
        msg = (
            f"'{other.name}' takes {', '.join(theirs)}, but '{first.name}' {', '.join(mine)}: "
            "models on the same inputs need the same names"
        )
        raise UnsupportedModelError(msg)
    for name, spec in mine.items():
        if (spec.datatype, spec.shape) != (theirs[name].datatype, theirs[name].shape):
            msg = f"'{other.name}' takes {_shown(theirs[name])}, but '{first.name}' {_shown(spec)}"
            raise UnsupportedModelError(msg)


def _shown(spec: TensorSpec) -> str:
    return f"'{spec.name}' as {spec.datatype} {list(spec.shape)}"
