"""ONNX Runtime session for serving: its options, its provider, its errors in our words."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from headrace.core import UnsupportedModelError
from headrace.core.devices import DeviceUse
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.onnx_providers import (
    CPU,
    NEEDS_GPU,
    NO_GPU,
    check_used,
    lacks_gpu,
    plan,
    short,
    why_not_started,
)
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.tuning import Tuning, check_tuning

_NO_LOGS: Final = 4  # fatal only: what goes wrong comes as an exception, once

_LOAD_PREFIX: Final = re.compile(r"^Load model from .*? failed:")
_LEVELS: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""By what `Tuning.graph_optimizations` calls them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session, and on what it runs."""

    session: ort.InferenceSession
    device: DeviceUse


def open_session(file: Path, options: LoadOptions) -> OpenSession:
    """Load the model on what `options` asks for; what is left out is said in the log, and why.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model, or its tuning is none.
        FailedPreconditionError: It cannot run on the device that was asked for.
    """
    check_tuning(options.tuning)
    planned = plan(options.device, ort.get_available_providers())
    session, failed = _started(file, options, planned.tried)
    used = session.get_providers()
    for name, why in failed.items():
        _log.warning("%s cannot be used, %s is: %s", name, short(used[0]), why)
    check_used(options.device, used, failed)
    return OpenSession(
        session,
        DeviceUse(
            asked=options.device,
            used=tuple(map(short, used)),
            failed={short(name): why for name, why in failed.items()},
            unused=planned.unused,
        ),
    )


def _started(
    file: Path, options: LoadOptions, tried: tuple[str, ...]
) -> tuple[ort.InferenceSession, dict[str, str]]:
    """A session on what of `tried` can be started, or the CPU; what cannot, and why."""
    failed = {name: NO_GPU for name in tried if name in NEEDS_GPU and lacks_gpu()}
    tried = tuple(name for name in tried if name not in failed)
    while tried:
        try:
            session = _create(file, options, [*tried, CPU])
        except Exception as error:  # noqa: BLE001  # drivers and libraries fail in many ways
            # Whose fault it is nobody says: the most particular one is tried no more.
            failed[tried[0]] = reason_of(error)
            tried = tried[1:]
            continue
        # Without its libraries a provider is left out, and nothing is said.
        used = session.get_providers()
        libraries = Path(ort.__file__).parent / "capi"
        failed |= {name: why_not_started(name, libraries) for name in tried if name not in used}
        if set(tried) & set(used):
            return session, failed
        break  # on the CPU alone it is loaded with other options
    try:
        return _create(file, options, [CPU]), failed
    except Exception as error:
        # The binding's errors share no base class but Exception.
        raise UnsupportedModelError(f"{file}: {_load_reason(error)}") from error


def _create(file: Path, options: LoadOptions, providers: list[str]) -> ort.InferenceSession:
    session = ort.InferenceSession(
        str(file),
        _session_options(options),
        providers=providers,
        disabled_optimizers=_disabled(options.tuning, on_cpu=providers == [CPU]),
    )
    # The binding's own fall-back prints to standard output and changes the session under way.
    session.disable_fallback()
    return session


def _disabled(tuning: Tuning, *, on_cpu: bool) -> list[str] | None:
    """Which optimizers are left out; None for none."""
    if tuning.disabled_optimizers is not None:
        return list(tuning.disabled_optimizers) or None
    # On the CPU the fused kernel takes five times as long as the two it replaces: without it a
    # quantised encoder runs 7 % faster.
    return ["SkipLayerNormFusion"] if on_cpu else None


def _session_options(options: LoadOptions) -> ort.SessionOptions:
    tuning = options.tuning
    settings = ort.SessionOptions()
    settings.log_severity_level = _NO_LOGS
    settings.graph_optimization_level = _LEVELS[tuning.graph_optimizations]
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # Threads that spin between runs take the core from every other session and process.
    spinning = "1" if tuning.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The arena keeps the largest batch's memory for ever (+160 MB for a 22 M encoder after one
    # batch of 32), and was no faster than the system's allocator at any size tried.
    settings.enable_cpu_mem_arena = tuning.arena
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
