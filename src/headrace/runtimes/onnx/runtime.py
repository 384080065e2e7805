"""Runtime of ONNX models, and ONNX Runtime's session for serving."""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

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
from headrace.runtimes.base import LoadOptions, Model, Tuning, check_tuning
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.onnx.file import find_onnx_file, looks_like_onnx, scan_onnx
from headrace.runtimes.onnx.providers import (
    CPU,
    NEEDS_GPU,
    NO_GPU,
    OPENVINO,
    check_used,
    lacks_gpu,
    plan,
    short,
    why_not_started,
)
from headrace.runtimes.probe import BatchProbe, probe_batch
from headrace.runtimes.rows.onnx import analyse_onnx
from headrace.runtimes.tables.tabular import check_input_sizes

_NO_LOGS: Final = 4  # fatal only: errors are raised as exceptions
_LOAD_PREFIX: Final = re.compile(r"^Load model from .*? failed:")
_LEVELS: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""ONNX Runtime's levels by value of `Tuning.graph_optimizations`."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session and the device that runs it."""

    session: ort.InferenceSession
    device: DeviceUse


def open_session(file: Path, options: LoadOptions) -> OpenSession:
    """Load the model on the device in `options`; skipped providers are logged with the reason.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model, or the tuning is not supported.
        FailedPreconditionError: It cannot run on the requested device.
    """
    check_tuning(options.tuning)
    planned = plan(options.device, ort.get_available_providers())
    session, failed = _started(file, options, planned.tried)
    used = session.get_providers()
    for name, reason in failed.items():
        _log.warning("%s cannot be used, %s is: %s", name, short(used[0]), reason)
    check_used(options.device, used, failed)
    return OpenSession(
        session,
        DeviceUse(
            asked=options.device,
            used=tuple(map(short, used)),
            failed={short(name): reason for name, reason in failed.items()},
            unused=planned.unused,
        ),
    )


def _started(
    file: Path, options: LoadOptions, tried: tuple[str, ...]
) -> tuple[ort.InferenceSession, dict[str, str]]:
    """Return a session on the providers that start, and why others do not."""
    failed = {name: NO_GPU for name in tried if name in NEEDS_GPU and lacks_gpu()}
    tried = tuple(name for name in tried if name not in failed)
    while tried:
        try:
            session = _create(file, options, [*tried, CPU])
        except Exception as error:  # noqa: BLE001  # drivers and libraries fail in many ways
            # The error names no provider, so the most specific one is dropped.
            failed[tried[0]] = reason_of(error)
            tried = tried[1:]
            continue
        # ONNX Runtime silently skips a provider whose libraries are missing.
        used = session.get_providers()
        libraries = Path(ort.__file__).parent / "capi"
        failed |= {name: why_not_started(name, libraries) for name in tried if name not in used}
        if set(tried) & set(used):
            return session, failed
        break  # a session on the CPU alone has other options
    try:
        return _create(file, options, [CPU]), failed
    except Exception as error:
        # The binding's errors share no base class but Exception.
        raise UnsupportedModelError(f"{file}: {_load_reason(error)}") from error


def _create(file: Path, options: LoadOptions, providers: list[str]) -> ort.InferenceSession:
    session = ort.InferenceSession(
        str(file),
        session_options(options),
        providers=providers,
        disabled_optimizers=_disabled(options.tuning, on_cpu=providers == [CPU]),
    )
    # The binding's own fall-back prints to standard output and replaces the session in use.
    session.disable_fallback()
    return session


def session_options(options: LoadOptions) -> ort.SessionOptions:
    """Return ONNX Runtime's options for a session of one process among several."""
    tuning = options.tuning
    settings = ort.SessionOptions()
    settings.log_severity_level = _NO_LOGS
    settings.graph_optimization_level = _LEVELS[tuning.graph_optimizations]
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # Threads that spin between runs take CPU time from other sessions and processes.
    spinning = "1" if tuning.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The arena never frees the largest batch's memory (+160 MB for a 22 M encoder after one batch
    # of 32), and was no faster than the system's allocator at any size tried.
    settings.enable_cpu_mem_arena = tuning.arena
    return settings


def _disabled(tuning: Tuning, *, on_cpu: bool) -> list[str] | None:
    """Return the optimizers to disable; None for none."""
    if tuning.disabled_optimizers is not None:
        return list(tuning.disabled_optimizers) or None
    # On the CPU the fused kernel takes five times as long as the two it replaces: a quantised
    # encoder is 7 % faster without it.
    return ["SkipLayerNormFusion"] if on_cpu else None


def _load_reason(error: Exception) -> str:
    text = _LOAD_PREFIX.sub("", reason_of(error))
    if "Protobuf parsing failed" in text:
        return "is truncated or corrupt: it cannot be parsed as ONNX"
    if "External data" in text or "external data" in text:
        return (
            "its weights are in another file, which cannot be read; keep both in one "
            f"directory and name the directory ({text})"
        )
    return f"ONNX Runtime refuses it: {text}"


Run = Callable[[Tensors], Tensors]
BUDGET_S: Final = 0.2
"""Time for the runs of each session; one run always takes place."""
_WORTH: Final = 0.9
"""A session whose time ratio is above this does not justify its memory."""


def is_worth_it(
    special: Run, plain: Run, inputs: Tensors, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[bool, str]:
    """Whether `special` is clearly faster than `plain`, and a text with both durations.

    A model that does not run on generated inputs cannot be measured; `special` is then used.
    """
    try:
        special_s, plain_s = (_best_s(run, inputs, clock) for run in (special, plain))
    except HeadraceError as error:
        return True, f"it could not be measured: {error}"
    comparison = (
        f"it takes {special_s * 1e6:.0f} µs per row, the CPU's own provider {plain_s * 1e6:.0f}"
    )
    return special_s < _WORTH * plain_s, comparison


def without(use: DeviceUse, name: str, reason: str) -> DeviceUse:
    """Return `use` on the CPU, where `name` was tried and gained too little."""
    return replace(use, used=ON_CPU, unused={**use.unused, name: reason})


def _best_s(run: Run, inputs: Tensors, clock: Callable[[], float]) -> float:
    """Return the duration of the fastest of some runs: disturbances only lengthen a run."""
    run(inputs)  # the first run includes one-time setup
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
_INVALID: Final = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT"
"""Prefix of an error of this status. Its class is not reliable: once Pulsar's client, which shares
pybind11's exception translators, is imported, ONNX Runtime raises RuntimeError for all.
"""
_CALLERS_FAULT: Final = ("Got invalid dimensions", "Invalid rank", "Unexpected input data type")
"""Prefixes of ONNX Runtime's errors for inputs that do not fit. It uses the same status code for a
node that fails in the middle of the graph, which is not evidence of a caller's mistake.
"""
_log = logging.getLogger(__name__)


class OnnxRuntime:
    """Loader of an `.onnx` or `.ort` file, or a directory with one and its external weights."""

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
        """Load the model and determine by running it whether axis 0 is the batch.

        Raises:
            UnsupportedModelError: It cannot be served; the message says why.
        """
        file = find_onnx_file(path)
        scan_onnx(file)
        model, probe = cls._proved(file, open_session(file, options), options)
        if probe.variable is None:
            how = "batched" if probe.batched else "unbatched"
            _log.warning("%s is served %s: %s", file.name, how, probe.reason)
        elif not probe.batched:
            _log.info("%s is served unbatched: %s", file.name, probe.reason)
        if options.device == Device.AUTO and model.device.used[0] == short(OPENVINO):
            return model._or_on_cpu(file, options, variable=probe.variable or 1)  # noqa: SLF001  # its own
        return model

    @classmethod
    def _proved(
        cls, file: Path, opened: OpenSession, options: LoadOptions
    ) -> "tuple[OnnxModel, BatchProbe]":
        session = opened.session
        inputs = tuple(_spec(file, "input", arg) for arg in session.get_inputs())
        outputs = tuple(_spec(file, "output", arg) for arg in session.get_outputs())
        check_input_sizes(file, inputs)
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
        """Return this model, or the same model on the CPU's own provider if that is faster."""
        plain = open_session(file, replace(options, device=Device.CPU))
        other = OnnxModel(plain.session, self.signature, self.device)
        inputs = example_inputs(self.signature, variable=variable)
        worth_it, reason = is_worth_it(self.run, other.run, inputs)
        selected, left = (self, other) if worth_it else (other, self)
        left.close()
        if not worth_it:
            other.device = without(self.device, short(OPENVINO), reason)
        _log.info("%s runs on %s: OpenVINO: %s", file.name, selected.device.used[0], reason)
        return selected

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
            for name in answers.keys() & self._text_outputs:
                array = answers[name]
                encoded = np.empty(array.size, np.object_)
                encoded[:] = [item.encode() for item in array.ravel()]
                answers[name] = encoded.reshape(array.shape)
        return answers

    def close(self) -> None:
        """Free the session; may be called again."""
        self._session = None
        self._run = _closed


def _closed(*_: object) -> list[Array]:
    raise RuntimeFailedError("the model is closed")


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
        raise UnsupportedModelError(
            f"{file}: {kind} '{arg.name}' is {arg.type}, which the Open Inference Protocol cannot "
            f"carry; {way_out}"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else VARIABLE for size in arg.shape)
    return TensorSpec(name=arg.name, datatype=datatype, shape=shape)


def _axis_names(session: ort.InferenceSession) -> dict[str, str]:
    """Return the model's name of axis 0 by input; generated names are ignored."""
    first = {arg.name: arg.shape[0] for arg in session.get_inputs() if arg.shape}
    return {
        name: size
        for name, size in first.items()
        if isinstance(size, str) and not size.startswith("unk__")
    }


def _run_error(error: Exception) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return error
    reason = reason_of(error)
    if str(error).startswith(_INVALID) and reason.startswith(_CALLERS_FAULT):
        return InvalidArgumentError(reason)
    return RuntimeFailedError(f"the model failed: {reason}")


def _text_names(specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs if spec.datatype is Datatype.BYTES)


def _with_text(inputs: Mapping[str, Array], names: tuple[str, ...]) -> Tensors:
    """Return `inputs` with BYTES as `str`, ONNX Runtime's string type in Python."""
    decoded = dict(inputs)
    for name in names:
        decoded[name] = _decode(name, inputs[name])
    return decoded


def _decode(name: str, array: Array) -> Array:
    text = np.empty(array.size, np.object_)
    try:
        text[:] = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        msg = f"input '{name}' holds bytes that are not UTF-8, but the model takes text: {error}"
        raise InvalidArgumentError(msg) from error
    return text.reshape(array.shape)
