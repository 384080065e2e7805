"""An ONNX Runtime session for serving: its options, its provider, its errors in our words."""

import logging
import re
from pathlib import Path
from typing import Final

import onnxruntime as ort

from headrace.core import UnsupportedModelError
from headrace.runtimes.base import LoadOptions

_ACCELERATORS: Final = {
    "auto": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "cpu": (),
}
_CPU: Final = "CPUExecutionProvider"
_NO_LOGS: Final = 4  # fatal only: what goes wrong comes as an exception, once

_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_LOAD_PREFIX: Final = re.compile(r"^Load model from .*? failed:")
_MAX_REASON: Final = 400

_log = logging.getLogger(__name__)


def open_session(file: Path, options: LoadOptions) -> ort.InferenceSession:
    """Load the model; on an accelerator if `options` wants one and it can be used, else the CPU.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model.
    """
    wanted = _accelerators(options.device)
    if wanted:
        try:
            session = _create(file, options, [*wanted, _CPU])
        except Exception as error:  # noqa: BLE001  # drivers and libraries fail in many ways
            _log.warning("%s cannot be used, the CPU is: %s", wanted[0], reason_of(error))
        else:
            if set(session.get_providers()) & set(wanted):
                return session
            _log.warning("%s could not be started, the CPU is used", wanted[0])
    try:
        return _create(file, options, [_CPU])
    except Exception as error:
        # The binding's errors share no base class but Exception.
        raise UnsupportedModelError(f"{file}: {_load_reason(error)}") from error


def reason_of(error: Exception) -> str:
    """ONNX Runtime's message on one line, without its own prefix."""
    text = " ".join(_PREFIX.sub("", str(error)).split())
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "..."


def _accelerators(device: str) -> list[str]:
    if device not in _ACCELERATORS:
        msg = f"there is no device '{device}'; use one of {', '.join(_ACCELERATORS)}"
        raise UnsupportedModelError(msg)
    installed = ort.get_available_providers()
    found = [name for name in _ACCELERATORS[device] if name in installed]
    if device not in ("auto", "cpu") and not found:
        _log.warning("this build of ONNX Runtime has no %s provider, the CPU is used", device)
    return found


def _create(file: Path, options: LoadOptions, providers: list[str]) -> ort.InferenceSession:
    on_cpu = providers == [_CPU]
    session = ort.InferenceSession(
        str(file),
        _session_options(options),
        providers=providers,
        # On the CPU the fused kernel takes five times as long as the two it replaces: without it
        # a quantised encoder runs 7 % faster.
        disabled_optimizers=["SkipLayerNormFusion"] if on_cpu else None,
    )
    # The binding's own fall-back prints to standard output and changes the session under way.
    session.disable_fallback()
    return session


def _session_options(options: LoadOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _NO_LOGS
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.intra_op_num_threads = options.intra_op_threads
    settings.inter_op_num_threads = 1
    # Threads that spin between runs take the core from every other session and process.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The arena keeps the largest batch's memory for ever (+160 MB for a 22 M encoder after one
    # batch of 32), and was no faster than the system's allocator at any size tried.
    settings.enable_cpu_mem_arena = False
    return settings


def _load_reason(error: Exception) -> str:
    text = _LOAD_PREFIX.sub("", reason_of(error))
    if "Protobuf parsing failed" in text:
        return "is truncated or corrupt: it cannot be parsed as ONNX"
    if "External data" in text or "external data" in text:
        return (
            "its weights are in another file, which cannot be read; keep both in one directory "
            f"and name the directory ({text})"
        )
    return f"ONNX Runtime refuses it: {text}"
