"""Run ONNX models with ONNX Runtime.

Both run on the same cores. OpenVINO takes half the time for some networks, and ten times as long
for those that are small, where each run's overhead is all there is.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
)
from headrace.core.devices import ON_CPU, Device, DeviceUse
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.onnx_file import find_onnx_file, looks_like_onnx, scan_onnx
from headrace.runtimes.onnx_providers import OPENVINO, short
from headrace.runtimes.onnx_session import OpenSession, open_session
from headrace.runtimes.probe import Probe, probe_batch
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.rows.onnx import analyse_onnx

Run = Callable[[Tensors], Tensors]
BUDGET_S: Final = 0.2
"""For the runs of each; one run is made in any case."""
_WORTH: Final = 0.9
"""What is not faster by so much is not worth its memory."""


def is_worth_it(
    special: Run, plain: Run, inputs: Tensors, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[bool, str]:
    """Whether `special` is clearly faster than `plain`, and how long each took, in words.

    A model that does not run on made-up inputs cannot be measured: then `special` stays.
    """
    try:
        special_s, plain_s = (_best_s(run, inputs, clock) for run in (special, plain))
    except HeadraceError as error:
        return True, f"it could not be measured: {error}"
    said = (
        f"it takes {special_s * 1e6:.0f} µs for a row, the CPU's own provider {plain_s * 1e6:.0f}"
    )
    return special_s < _WORTH * plain_s, said


def without(use: DeviceUse, name: str, why: str) -> DeviceUse:
    """`use` on the CPU, where `name` was tried and is not worth it."""
    return replace(use, used=ON_CPU, unused={**use.unused, name: why})


def _best_s(run: Run, inputs: Tensors, clock: Callable[[], float]) -> float:
    """The shortest of some runs: whatever disturbs one makes it longer."""
    run(inputs)  # what is set up once
    best = float("inf")
    until = clock() + BUDGET_S
    while True:
        started = clock()
        run(inputs)
        ended = clock()
        best = min(best, ended - started)
        if ended >= until:
            return best


_DATATYPES: Final = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(string)": Datatype.BYTES,
}
MAX_INPUT_BYTES: Final = 2_000_000_000
"""As much as the gateway's limit of a body may be set to."""
_CALLERS_FAULT: Final = ("Got invalid dimensions", "Invalid rank", "Unexpected input data type")
"""How ONNX Runtime begins when the inputs do not fit. It uses the same status code for a node that
fails in the middle of the graph, which is no proof that the caller is wrong."""
_log = logging.getLogger(__name__)


class OnnxRuntime:
    """Loads an `.onnx` or `.ort` file, or a directory with one (weights may lie beside it)."""

    name = "onnx"
    runs_code = False

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like ONNX, by its name and first bytes."""
        return looks_like_onnx(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model; on an accelerator if there is one and `options` allows it."""
        return OnnxModel.open(path, options)


class OnnxModel:
    """A loaded ONNX model. Thread-safe: ONNX Runtime's `run` is, and releases the GIL."""

    concurrent = True

    def __init__(
        self, session: ort.InferenceSession, signature: ModelSignature, device: DeviceUse
    ) -> None:
        self.signature = signature
        self.device = device
        self._session: ort.InferenceSession | None = session
        self._run = session.run
        self._outputs = [spec.name for spec in signature.outputs]
        self._text_inputs = _text_names(signature.inputs)
        self._text_outputs = _text_names(signature.outputs)

    @classmethod
    def open(cls, path: Path, options: LoadOptions) -> "OnnxModel":
        """Load the model and find out by running it whether axis 0 is the batch.

        Raises:
            UnsupportedModelError: It cannot be served; the message says why.
        """
        file = find_onnx_file(path)
        scan_onnx(file)
        model, probe = cls._proved(file, open_session(file, options), options)
        _tell(file, probe)
        if options.device == Device.AUTO and model.device.used[0] == short(OPENVINO):
            return model._or_on_cpu(file, options, variable=probe.variable or 1)  # noqa: SLF001  # its own
        return model

    @classmethod
    def _proved(
        cls, file: Path, opened: OpenSession, options: LoadOptions
    ) -> "tuple[OnnxModel, Probe]":
        session = opened.session
        inputs = tuple(_spec(file, "input", arg) for arg in session.get_inputs())
        outputs = tuple(_spec(file, "output", arg) for arg in session.get_outputs())
        _check_sizes(file, inputs)
        declared = ModelSignature(inputs=inputs, outputs=outputs, batched=False)
        model = cls(session, declared, opened.device)
        probe = probe_batch(
            model.run,
            inputs,
            outputs,
            axis_names=_axis_names(session),
            analyse=lambda: analyse_onnx(file, inputs),
            declared=options.declared_by,
        )
        model.signature = probe.signature(inputs)
        return model, probe

    def _or_on_cpu(self, file: Path, options: LoadOptions, *, variable: int) -> "OnnxModel":
        """Itself, or the same model on the CPU's own provider where that is faster."""
        plain = open_session(file, replace(options, device=Device.CPU))
        other = OnnxModel(plain.session, self.signature, self.device)
        inputs = example_inputs(self.signature, variable=variable)
        worth_it, why = is_worth_it(self.run, other.run, inputs)
        chosen, left = (self, other) if worth_it else (other, self)
        left.close()
        if not worth_it:
            other.device = without(self.device, short(OPENVINO), why)
        _log.info("%s runs on %s: OpenVINO: %s", file.name, chosen.device.used[0], why)
        return chosen

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        names = list(outputs) if outputs else self._outputs
        if self._text_inputs:
            inputs = _with_text(inputs, self._text_inputs)
        try:
            values = self._run(names, inputs)
        except Exception as error:
            # The binding's errors share no base class but Exception.
            raise _run_error(error) from error
        answers = dict(zip(names, values, strict=True))
        if self._text_outputs:
            _encode_text(answers, self._text_outputs)
        return answers

    def close(self) -> None:
        """Free the session; may be called again."""
        self._session = None
        self._run = _closed


def _closed(*_: object) -> list[Array]:
    msg = "the model is closed"
    raise RuntimeFailedError(msg)


def _spec(file: Path, kind: str, arg: ort.NodeArg) -> TensorSpec:
    datatype = _DATATYPES.get(arg.type)
    if datatype is None:
        way_out = (
            "export the model with zipmap=False"
            if "map(" in arg.type
            else "export the model with plain tensors"
            if not arg.type.startswith("tensor(")
            else "cast it in the model"
        )
        msg = (
            f"{file}: {kind} '{arg.name}' is {arg.type}, which the Open Inference Protocol cannot "
            f"carry; {way_out}"
        )
        raise UnsupportedModelError(msg)
    shape = tuple(size if isinstance(size, int) and size >= 0 else VARIABLE for size in arg.shape)
    return TensorSpec(name=arg.name, datatype=datatype, shape=shape)


def _check_sizes(file: Path, inputs: tuple[TensorSpec, ...]) -> None:
    """Raise UnsupportedModelError if no request could carry what an input declares."""
    for spec in inputs:
        elements = math.prod(size for size in spec.shape if size != VARIABLE)
        if elements * spec.datatype.dtype.itemsize > MAX_INPUT_BYTES:
            msg = (
                f"{file}: input '{spec.name}' declares the shape {list(spec.shape)} of "
                f"{spec.datatype}, and no request may have more than {MAX_INPUT_BYTES} bytes"
            )
            raise UnsupportedModelError(msg)


def _axis_names(session: ort.InferenceSession) -> dict[str, str]:
    """How the model calls axis 0 of each input; converters' made-up names say nothing."""
    first = {arg.name: arg.shape[0] for arg in session.get_inputs() if arg.shape}
    return {
        name: size
        for name, size in first.items()
        if isinstance(size, str) and not size.startswith("unk__")
    }


def _tell(file: Path, probe: Probe) -> None:
    if probe.variable is None:
        how = "batched" if probe.batched else "unbatched"
        _log.warning("%s is served %s: %s", file.name, how, probe.reason)
    elif not probe.batched:
        _log.info("%s is served unbatched: %s", file.name, probe.reason)


def _run_error(error: Exception) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return error
    reason = reason_of(error)
    if isinstance(error, ort_errors.InvalidArgument) and reason.startswith(_CALLERS_FAULT):
        return InvalidArgumentError(reason)
    return RuntimeFailedError(f"the model failed: {reason}")


def _text_names(specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs if spec.datatype is Datatype.BYTES)


def _with_text(inputs: Mapping[str, Array], names: tuple[str, ...]) -> Tensors:
    """`inputs` with BYTES as `str`, which is what ONNX Runtime's strings are in Python."""
    decoded = dict(inputs)
    for name in names:
        decoded[name] = _decode(name, inputs[name])
    return decoded


def _decode(name: str, array: Array) -> Array:
    text = np.empty(array.size, np.object_)
    try:
        text[:] = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        msg = f"input '{name}' holds bytes that are not UTF-8, and the model takes text: {error}"
        raise InvalidArgumentError(msg) from error
    return text.reshape(array.shape)


def _encode_text(answers: Tensors, names: tuple[str, ...]) -> None:
    for name in names:
        if name in answers:
            array = answers[name]
            encoded = np.empty(array.size, np.object_)
            encoded[:] = [item.encode() for item in array.ravel()]
            answers[name] = encoded.reshape(array.shape)
