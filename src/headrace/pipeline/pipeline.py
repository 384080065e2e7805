"""Several steps as one model: outputs of a step are inputs of later steps, by name.

A step is a `Model`, as a runtime loads it; a pipeline is one too. So the engine batches a pipeline
like any model, rollouts and registries handle it as one version, and a pipeline may be a step of
another.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from headrace.core import (
    VARIABLE,
    HeadraceError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
    with_weakest_evidence,
)
from headrace.core.devices import ON_CPU, DeviceUse
from headrace.core.encoders import TOKEN_COUNT
from headrace.observe import Histogram
from headrace.pipeline.tokenize import MASK, TokenizerStep
from headrace.runtimes import DeadlineModel, Model


@dataclass(slots=True, kw_only=True)
class PipelineStep:
    """A model as a step of a pipeline."""

    name: str
    model: Model
    reads: Mapping[str, str]
    """By input of the model, the pipeline tensor that it reads."""
    writes: Mapping[str, str]
    """By output of the model, its name in the pipeline."""
    seconds: Histogram = field(default_factory=Histogram)
    """Duration of its runs, one value per batch."""


class Pipeline:
    """Steps that run in order on the same rows. Implements `Model`; closes its steps.

    Raises:
        UnsupportedModelError: The steps do not fit together; the message names the step.
    """

    def __init__(self, steps: Sequence[PipelineStep], outputs: Sequence[str] | None = None) -> None:
        self.steps = tuple(steps)
        self.signature = _signature(self.steps, outputs)
        self.concurrent = all(step.model.concurrent for step in self.steps)
        self.may_wait = any(getattr(step.model, "may_wait", False) for step in self.steps)
        self.takes_features = any(
            getattr(step.model, "takes_features", False) for step in self.steps
        )
        self.takes_deadline = any(_takes_deadline(step.model) for step in self.steps)
        uses = [use for use in (getattr(s.model, "device", None) for s in self.steps) if use]
        self.device: DeviceUse | None = next(
            (use for use in uses if use.used != ON_CPU), uses[0] if uses else None
        )
        self.intra_op_threads = max(
            (getattr(step.model, "intra_op_threads", None) or 0 for step in self.steps), default=0
        )
        self._token_mask = _token_mask(self.steps)
        self.counts_tokens = bool(self._token_mask)
        self._lock = threading.Lock()

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        """Run all steps on one batch; also returns `TOKEN_COUNT` if it is requested."""
        tensors = dict(inputs)
        for step in self.steps:
            started = time.perf_counter()
            step_inputs = {own: tensors[name] for own, name in step.reads.items()}
            try:
                answers = _run(step.model, step_inputs, deadline)
            except HeadraceError as error:
                error.add_note(f"in step '{step.name}' of the pipeline")
                raise
            except Exception as error:
                msg = f"step '{step.name}' of the pipeline failed ({type(error).__name__})"
                raise RuntimeFailedError(msg) from error
            for own, name in step.writes.items():
                tensors[name] = answers[own]
            took_s = time.perf_counter() - started
            with self._lock:
                step.seconds.observe(took_s)
        output_names = outputs or [spec.name for spec in self.signature.outputs]
        if TOKEN_COUNT in output_names:
            tensors[TOKEN_COUNT] = tensors[self._token_mask].sum(axis=1, dtype=np.int64)
        return {name: tensors[name] for name in output_names}

    def example_inputs(self, *, rows: int = 1, variable: int = 1) -> Tensors:
        """Return inputs that the first steps accept, such as an image."""
        inputs = example_inputs(self.signature, rows=rows, variable=variable)
        for step in self.steps:
            example = getattr(step.model, "example_inputs", None)
            if example is None:
                continue
            own = example(rows=rows, variable=variable)
            inputs |= {step.reads[n]: a for n, a in own.items() if step.reads[n] in inputs}
        return inputs

    def close(self) -> None:
        """Close all steps; may be called again."""
        close_all([step.model.close for step in reversed(self.steps)])


def _token_mask(steps: Sequence[PipelineStep]) -> str:
    """Return the pipeline's name of the mask of the only tokenizer's tokens, else an empty text."""
    masks = [step.writes[MASK] for step in steps if isinstance(step.model, TokenizerStep)]
    return masks[0] if len(masks) == 1 else ""


def _takes_deadline(model: Model) -> bool:
    return getattr(model, "takes_deadline", False) is True


def _run(model: Model, inputs: Tensors, deadline: float | None) -> Tensors:
    if _takes_deadline(model):
        return cast("DeadlineModel", model).run(inputs, deadline=deadline)
    return model.run(inputs)


def close_all(closers: Sequence[Callable[[], None]]) -> None:
    """Call all of them, even if one fails."""
    for close in closers:
        with suppress(Exception):  # errors on close are of no use
            close()


def _signature(steps: Sequence[PipelineStep], outputs: Sequence[str] | None) -> ModelSignature:
    """Return the pipeline's signature; tensors that no step gives are inputs."""
    produced: dict[str, TensorSpec] = {}
    required: dict[str, TensorSpec] = {}
    batched = all(step.model.signature.batched for step in steps)
    for step in steps:
        own = step.model.signature
        for spec in own.inputs:
            name = step.reads[spec.name]
            there = produced.get(name)
            if there is None:
                produced[name] = required[name] = _called(spec, name)
            elif name in required:
                produced[name] = required[name] = _both(step, spec, there)
            else:
                _check(step, spec, there)
        for spec in own.outputs:
            name = step.writes[spec.name]
            if name in required:
                msg = f"step '{step.name}' outputs '{name}', which an earlier step already reads"
                raise UnsupportedModelError(f"{msg}; map it to another name")
            produced[name] = _called(spec, name)
    last = steps[-1]
    names = outputs or [last.writes[spec.name] for spec in last.model.signature.outputs]
    missing = [name for name in names if name not in produced or name in required]
    if missing:
        available = ", ".join(name for name in produced if name not in required)
        msg = f"no step outputs '{missing[0]}'; there are: {available}"
        raise UnsupportedModelError(msg)
    labels = {
        step.writes[name]: texts
        for step in steps
        for name, texts in step.model.signature.labels.items()
        if step.writes[name] in names
    }
    signature = ModelSignature(
        inputs=tuple(required.values()),
        outputs=tuple(produced[name] for name in names),
        batched=batched,
        labels=labels,
        columns={
            step.reads[name]: texts
            for step in steps
            for name, texts in step.model.signature.columns.items()
            if step.reads[name] in required
        },
    )
    return with_weakest_evidence(signature, [step.model.signature for step in steps])


def _called(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name=name, datatype=spec.datatype, shape=spec.shape)


def _check(step: PipelineStep, expected: TensorSpec, provided: TensorSpec) -> None:
    """Raise an error unless the provided tensor fits a step's input."""
    subject = f"step '{step.name}' takes '{provided.name}'"
    if expected.datatype is not provided.datatype:
        msg = f"{subject} as {expected.datatype}, but it is {provided.datatype}"
        raise UnsupportedModelError(msg)
    if len(expected.shape) != len(provided.shape) or any(
        VARIABLE not in sizes and sizes[0] != sizes[1]
        for sizes in zip(expected.shape, provided.shape, strict=False)
    ):
        msg = f"{subject} with the shape {list(expected.shape)}, but it has {list(provided.shape)}"
        raise UnsupportedModelError(msg)


def _both(step: PipelineStep, spec: TensorSpec, there: TensorSpec) -> TensorSpec:
    """Return the tensor that fits both of two steps with the same input."""
    _check(step, spec, there)
    shape = tuple(a if b == VARIABLE else b for a, b in zip(spec.shape, there.shape, strict=True))
    return TensorSpec(name=there.name, datatype=there.datatype, shape=shape)
