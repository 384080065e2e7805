"""Run TFLite files with LiteRT."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from headrace.core import (
    VARIABLE,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.probe import Probe, probe_batch
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.rows.tflite import analyse_tflite
from headrace.runtimes.tabular import import_library, refuse
from headrace.runtimes.tflite_file import (
    TfliteFile,
    find_tflite_file,
    looks_like_tflite,
    read_tflite,
)

_MODULE: Final = "ai_edge_litert.interpreter"
_log = logging.getLogger(__name__)


class TfliteRuntime:
    """Loads a `.tflite` file."""

    name = "tflite"
    runs_code = False
    libraries = ("ai_edge_litert",)
    extra = "tflite"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like TFLite, by its name and first bytes."""
        return looks_like_tflite(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


@dataclass(slots=True)
class _Interpreter:
    """An interpreter, and the shapes that its memory is laid out for."""

    library: Any
    shapes: list[tuple[int, ...]]


class TfliteModel:
    """A loaded file. Thread-safe: each run takes its own interpreter, which releases the GIL."""

    concurrent = True

    def __init__(self, make: Any, found: TfliteFile, threads: int) -> None:  # noqa: ANN401  # ships no types
        self._make: Any = make
        self._found = found
        self._threads = threads
        self._inputs = [(one.spec.name, one.tensor) for one in found.inputs]
        self._outputs = {one.spec.name: one.tensor for one in found.outputs}
        self._idle = [self._new()]
        self.signature = ModelSignature(
            inputs=tuple(one.spec for one in found.inputs),
            outputs=tuple(one.spec for one in found.outputs),
            batched=False,
        )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; an interpreter that failed is left behind."""
        if self._make is None:
            msg = "the model is closed"
            raise RuntimeFailedError(msg)
        try:
            one = self._take()
            self._lay_out(one, inputs)
            for name, tensor in self._inputs:
                one.library.set_tensor(tensor, inputs[name])
            one.library.invoke()
            answers = {
                name: one.library.get_tensor(self._outputs[name])
                for name in outputs or self._outputs
            }
        except Exception as error:
            # The binding raises RuntimeError and ValueError for everything.
            raise RuntimeFailedError(f"the model failed: {reason_of(error)}") from error
        self._idle.append(one)
        return answers

    def close(self) -> None:
        """Free the interpreters; may be called again."""
        self._make = None
        self._idle.clear()

    def _take(self) -> _Interpreter:
        try:
            return self._idle.pop()  # it is atomic
        except IndexError:
            return self._new()

    def _new(self) -> _Interpreter:
        made = self._make(model_content=self._found.data, num_threads=self._threads)
        made.allocate_tensors()
        return _Interpreter(made, [])

    def _lay_out(self, one: _Interpreter, inputs: Tensors) -> None:
        shapes = [inputs[name].shape for name, _ in self._inputs]
        if shapes != one.shapes:
            for (_, tensor), shape in zip(self._inputs, shapes, strict=True):
                one.library.resize_tensor_input(tensor, shape)
            one.library.allocate_tensors()
            one.shapes = shapes
        one.library.reset_all_variables()  # what a caller sent must not reach the next one


def _open(path: Path, options: LoadOptions) -> TfliteModel:
    file = find_tflite_file(path)
    found = read_tflite(file)
    library = import_library(_MODULE, "tflite")
    try:
        model = TfliteModel(library.Interpreter, found, max(1, options.intra_op_threads))
    except Exception as error:
        # The binding's errors share no base class but Exception.
        raise refuse(file, f"LiteRT refuses it: {reason_of(error)}") from error
    probe, inputs = _probe(model, found, options.declared_by)
    if not probe.batched:
        _log.info("%s is served unbatched: %s", file.name, probe.reason)
    for one in found.inputs + found.outputs:
        if one.quantised:
            _log.info("%s: '%s' is quantised: %s", file.name, one.spec.name, one.quantised)
    model.signature = probe.signature(inputs)
    return model


def _probe(
    model: TfliteModel, found: TfliteFile, declared_by: str
) -> tuple[Probe, tuple[TensorSpec, ...]]:
    """Whether axis 0 is the batch, and the inputs then.

    Converters fix the batch at one row by default; most such models take any number if asked.
    """
    declared = model.signature

    def probed(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Probe:
        sides = ((found.inputs, inputs), (found.outputs, outputs))
        named = [
            {place.tensor: spec for place, spec in zip(places, specs, strict=True)}
            for places, specs in sides
        ]
        return probe_batch(
            model.run,
            inputs,
            outputs,
            analyse=lambda: analyse_tflite(found.data, *named),
            declared=declared_by,
        )

    fixed = probed(declared.inputs, declared.outputs)
    every = (*declared.inputs, *declared.outputs)
    if not all(spec.shape[:1] == (1,) for spec in every):
        return fixed, declared.inputs
    inputs, outputs = (
        tuple(replace(spec, shape=(VARIABLE, *spec.shape[1:])) for spec in specs)
        for specs in (declared.inputs, declared.outputs)
    )
    probe = probed(inputs, outputs)
    if probe.batched and probe.variable is not None:
        return probe, inputs
    reason = probe.reason if probe.variable is not None else fixed.reason
    return replace(fixed, row_independence=probe.row_independence, reason=reason), declared.inputs
