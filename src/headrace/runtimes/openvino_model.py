"""Run a model with OpenVINO, on the CPU."""

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    error_kind,
)
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.probe import probe_batch
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.rows.openvino import analyse_openvino
from headrace.runtimes.tabular import import_library, refuse
from headrace.runtimes.tuning import PRECISIONS, check_tuning

MAX_INPUT_BYTES: Final = 2_000_000_000
"""As much as the gateway's limit of a body may be set to."""
_DATATYPES: Final = {
    "boolean": Datatype.BOOL,
    "u8": Datatype.UINT8,
    "u16": Datatype.UINT16,
    "u32": Datatype.UINT32,
    "u64": Datatype.UINT64,
    "i8": Datatype.INT8,
    "i16": Datatype.INT16,
    "i32": Datatype.INT32,
    "i64": Datatype.INT64,
    "f16": Datatype.FP16,
    "f32": Datatype.FP32,
    "f64": Datatype.FP64,
}
_PRECISION: Final = "INFERENCE_PRECISION_HINT"
_NOISE: Final = re.compile(r"(Exception from|Check '.*?' failed at) \S+?:\d+:?|Exception from \S+")
_log = logging.getLogger(__name__)

Named = Callable[[Sequence[str], str], str]


class OpenvinoModel:
    """A compiled model. Thread-safe: each run takes an infer request of its own."""

    concurrent = True

    def __init__(self, compiled: Any, tensor: Any, signature: ModelSignature) -> None:  # noqa: ANN401  # ships no types that mypy reads
        self.signature = signature
        self._compiled: Any = compiled
        self._tensor = tensor
        self._idle: list[Any] = [compiled.create_infer_request()]
        self._is_stateful = bool(self._idle[0].query_state())
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = {spec.name: place for place, spec in enumerate(signature.outputs)}

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; a run that fails leaves its request behind."""
        compiled = self._compiled
        if compiled is None:
            msg = "the model is closed"
            raise RuntimeFailedError(msg)
        try:
            # Append and pop are atomic, and whoever finds none makes one: no lock is needed.
            request = self._idle.pop() if self._idle else compiled.create_infer_request()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            if self._is_stateful:
                request.reset_state()  # what a caller sent must not reach the next one
            for place, name in enumerate(self._inputs):
                request.set_input_tensor(place, self._wrap(inputs[name]))
            request.infer(share_outputs=True)
            answers = {
                name: request.get_output_tensor(self._outputs[name]).data.copy()
                for name in outputs or self._outputs
            }
        except Exception as error:
            # The binding raises RuntimeError for everything.
            raise RuntimeFailedError(f"the model failed: {openvino_reason(error)}") from error
        self._idle.append(request)
        return answers

    def close(self) -> None:
        """Free the requests and the compiled model; may be called again."""
        self._compiled = None
        self._idle.clear()

    def _wrap(self, array: Array) -> Any:  # noqa: ANN401  # ships no types that mypy reads
        """OpenVINO's tensor of an array; it copies what is read-only, unaligned or not in order."""
        return self._tensor(array, shared_memory=array.flags.carray)


def open_openvino(path: Path, options: LoadOptions, *, named: Named) -> OpenvinoModel:
    """Read, compile and try a model whose file was checked.

    Args:
        path: As OpenVINO takes it.
        named: What callers call each tensor: from its names, and OpenVINO's own for its node.

    Raises:
        UnsupportedModelError: It cannot be served, or its tuning is none; the message says why.
    """
    check_tuning(options.tuning)
    library = import_openvino()
    core = library.Core()
    try:
        # Asked to read whatever it is, OpenVINO tries the parsers of all formats in turn; the one
        # of TensorFlow's text format prints what it cannot parse to standard error.
        if path.suffix.lower() == ".onnx":
            frontends = import_library("openvino.frontend", "openvino").FrontEndManager()
            frontend = frontends.load_by_framework("onnx")
            model = frontend.convert(frontend.load(str(path)))
        else:
            model = core.read_model(path)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        # Of a graph that was read here first it names operators; of an IR it quotes any value.
        is_read = path.suffix.lower() == ".onnx" or path.is_dir()
        what = openvino_reason(error) if is_read else error_kind(error)
        raise refuse(path, f"OpenVINO refuses it: {what}") from None
    inputs = _specs(path, "input", model.inputs, named)
    outputs = _specs(path, "output", model.outputs, named)
    _check(path, inputs, outputs)
    try:
        compiled = core.compile_model(model, "CPU", openvino_settings(model, options))
    except Exception as error:
        raise refuse(path, f"OpenVINO cannot compile it: {openvino_reason(error)}") from error
    _tell_precision(path, compiled, options)
    declared = ModelSignature(inputs=inputs, outputs=outputs, batched=False)
    loaded = OpenvinoModel(compiled, library.Tensor, declared)
    probe = probe_batch(
        loaded.run,
        inputs,
        outputs,
        analyse=lambda: analyse_openvino(model, inputs, outputs),
        declared=options.declared_by,
    )
    if not probe.batched or probe.variable is None:
        how = "batched" if probe.batched else "unbatched"
        _log.info("%s is served %s: %s", path.name, how, probe.reason)
    loaded.signature = probe.signature(inputs)
    return loaded


def import_openvino() -> ModuleType:
    """OpenVINO, without its telemetry: else each import would be told to its makers.

    Its own code does without where that package is missing. Whoever imported OpenVINO before has
    decided otherwise.

    Raises:
        FailedPreconditionError: It is not installed; the message says how to install it.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as import reads it: there is none
    return import_library("openvino", "openvino")


def openvino_reason(error: BaseException) -> str:
    """OpenVINO's message on one line, without where in its source it arose."""
    return reason_of(RuntimeError(_NOISE.sub("", str(error)).strip() or type(error).__name__))


def openvino_precision(model: Any) -> str:  # noqa: ANN401  # ships no types that mypy reads
    """In what OpenVINO is to compute: what the model's author wrote into it, else `f32`.

    Left alone, OpenVINO takes bf16 wherever the processor has it, and answers differ between
    machines and from the framework's.
    """
    place = ["runtime_options", _PRECISION]
    if not model.has_rt_info(place):
        return PRECISIONS[0]
    wanted = str(model.get_rt_info(place).value).lower()
    if wanted not in PRECISIONS:
        _log.warning("the model asks for the precision %r, which there is not", wanted[:40])
        return PRECISIONS[0]
    return wanted


def openvino_settings(model: Any, options: LoadOptions) -> Mapping[str, object]:  # noqa: ANN401
    """As many streams as there are cores for runs that use `intra_op_threads` each."""
    threads = max(1, options.threads)
    streams = max(1, len(os.sched_getaffinity(0)) // threads)
    return {
        _PRECISION: options.tuning.precision or openvino_precision(model),
        # Activations of models with compressed weights would be rounded to eight bits.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        # Fused attention (of 2026.4) that first ran on a length of 1 answers wrong for others.
        **({"SNIPPETS_MODE": "DISABLE"} if model.is_dynamic() else {}),
        # Each process would pin itself to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }


def _tell_precision(path: Path, compiled: Any, options: LoadOptions) -> None:  # noqa: ANN401  # ships no types that mypy reads
    """Say in the log where the processor cannot do what was asked: OpenVINO then takes another."""
    asked = options.tuning.precision
    if not asked:
        return
    used = str(compiled.get_property(_PRECISION).get_type_name())
    if used != asked:
        _log.warning(
            "%s was tuned to compute in %s, which this processor does not do; OpenVINO takes %s, "
            "and what was measured elsewhere does not hold here",
            path.name,
            asked,
            used,
        )


def _specs(path: Path, kind: str, ports: Sequence[Any], named: Named) -> tuple[TensorSpec, ...]:
    found = []
    for port in ports:
        node = port.get_node()
        own = (
            node.friendly_name
            if kind == "input"
            else node.input(0).get_source_output().get_node().friendly_name
        )
        name = named(sorted(port.names), own)
        datatype = _DATATYPES.get(port.get_element_type().get_type_name())
        if datatype is None:
            msg = (
                f"{kind} '{name}' is {port.get_element_type().get_type_name()}, which is not served"
            )
            raise refuse(path, f"{msg}; cast it in the model")
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic:
            if kind == "input":
                msg = f"input '{name}' says not even how many dimensions it has; convert the model"
                raise refuse(path, f"{msg} with the shapes of its inputs, -1 where they vary")
            found.append(TensorSpec(name=name, datatype=datatype, shape=()))
            continue
        sizes = tuple(VARIABLE if size.is_dynamic else size.get_length() for size in shape)
        found.append(TensorSpec(name=name, datatype=datatype, shape=sizes))
    return tuple(found)


def _check(path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for specs, kind in ((inputs, "input"), (outputs, "output")):
        names = [spec.name for spec in specs]
        if not names:
            raise refuse(path, f"has no {kind}s")
        if len(set(names)) < len(names):
            raise refuse(path, f"calls two {kind}s alike ({', '.join(sorted(names))[:200]})")
    for spec in inputs:
        elements = math.prod(size for size in spec.shape if size != VARIABLE)
        if elements * spec.datatype.dtype.itemsize > MAX_INPUT_BYTES:
            msg = f"input '{spec.name}' declares the shape {list(spec.shape)} of {spec.datatype}"
            raise refuse(path, f"{msg}, and no request may have more than {MAX_INPUT_BYTES} bytes")


def shortest_name(names: Sequence[str], own: str) -> str:
    """What an exporter meant a tensor to be called: `input` rather than `serving_input:0`."""
    return min(names, key=lambda name: (":" in name, len(name), name), default=own)
