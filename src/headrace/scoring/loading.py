"""Model loading, from a path to a verified and warm model. Blocking: runs in a thread."""

import gc
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    ReplicaSettings,
    UnsupportedModelError,
)
from headrace.core.devices import ON_CPU, Device, DeviceUse
from headrace.engine import PaddingPlan, ServiceTimes, padding_plan, warm_up
from headrace.runtimes import (
    LoadOptions,
    Model,
    detect_runtime,
    find_padding,
    get_runtime,
    verify_padding,
)
from headrace.runtimes.base import Tuning

_log = logging.getLogger(__name__)

WARM_UP_S: Final = 1.0
"""How long the warm-up of a process's only model may take beyond its first run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and the results of loading it."""

    model: Model
    runtime: str
    signature: ModelSignature
    times: ServiceTimes
    plan: PaddingPlan | None
    device: DeviceUse | None = None
    """Device that the model runs on; None if its runtime does not report one."""
    intra_op_threads: int | None = None
    """Threads inside one run, if the optimizer chose them; None for the settings' value."""


def load(settings: ReplicaSettings) -> LoadedModel:
    """Load, verify and warm up this process's only model; see `load_model`."""
    loaded = load_model(settings, warm_up_s=WARM_UP_S)
    gc.collect()
    gc.freeze()  # loaded objects are permanent: the garbage collector skips them
    return loaded


def load_model(
    settings: ReplicaSettings, *, warm_up_s: float, device: Device | None = None
) -> LoadedModel:
    """Load, verify and warm up the model that `settings` names.

    Args:
        warm_up_s: How long the warm-up may take beyond its first run.
        device: Device that overrides the one in `settings`; None to use theirs.

    Raises:
        UnsupportedModelError: The file is not a model that can be served.
        ArtifactCorruptError: The file's digest differs from the one in `settings`.
        NotSignedError: A signature is required, and the file has no valid one.
        InvalidArgumentError: The settings do not fit the model.
        FailedPreconditionError: The model cannot run on the requested device.
    """
    requested = device or (settings.device if isinstance(settings.device, Device) else Device.AUTO)
    started = time.monotonic()
    path = Path(settings.path)
    check_readable(path)
    check_digest(path, settings.sha256)
    runtime = get_runtime(settings.runtime) if settings.runtime else detect_runtime(path)
    if settings.signed is not msgspec.UNSET:
        from headrace.registry.signing import verify_signed_settings  # noqa: PLC0415  # few need it

        verify_signed_settings(path, runtime.name, settings.signed)
    # One thread per run and as many parallel runs as cores is faster than the reverse (measured;
    # see docs/explain/batching.md), unless the operator asks for low latency of single runs.
    threads = settings.intra_op_threads
    options = LoadOptions(
        intra_op_threads=threads or 1,
        device=requested,
        tuning=Tuning(intra_op_threads=threads),
        rows_independent=settings.batching.rows_independent is True,
    )
    if settings.features is msgspec.UNSET:
        model = runtime.load(path, options)
    else:
        from headrace.pipeline import load_with_features  # noqa: PLC0415  # few need it

        model = load_with_features(runtime, path, options, settings.features)
    if settings.batching.max_batch_size == 0:
        model.signature = replace(
            model.signature, batched=False, row_independence=None, row_reason=""
        )
    use = device_of(model, runtime.name, requested)
    signature = with_labels(model.signature, settings.labels)
    plan = _padding(model, settings)
    max_batch_size = settings.batching.max_batch_size if signature.batched else 1
    times = ServiceTimes(max_batch_size=max_batch_size)
    if signature.has_tensors:  # a language model warms up when it begins to serve
        warm_up(model, times, max_batch_size=max_batch_size, budget_s=warm_up_s)
    seconds = time.monotonic() - started
    _log.info(
        "model loaded",
        extra={
            "model": settings.model_name,
            "seconds": f"{seconds:.2f}",
            "device": ", ".join(use.used) if use else "not told",
        },
    )
    return LoadedModel(
        model=model,
        runtime=runtime.name,
        signature=signature,
        times=times,
        plan=plan,
        device=use,
        intra_op_threads=getattr(model, "intra_op_threads", None) or None,
    )


def device_of(model: Model, runtime: str, requested: Device) -> DeviceUse | None:
    """Return the device of a loaded model; None if its runtime does not report one.

    Raises:
        FailedPreconditionError: The device is not the requested one; the model is closed.
    """
    use: DeviceUse | None = getattr(model, "device", None)
    if requested in {Device.AUTO, Device.CPU} or (use is not None and use.used != ON_CPU):
        return use and replace(use, asked=requested)
    model.close()
    description = (
        "runs on the CPU only" if use else "leaves the choice of a device to the model's code"
    )
    msg = (
        f"device '{requested}' was requested, but the runtime '{runtime}' {description}; "
        "remove `device`"
    )
    raise FailedPreconditionError(msg)


def check_readable(path: Path, allows: Callable[[Path, int], bool] = os.access) -> None:
    """Check that this process may read a model's file, or a directory and the files in it.

    Args:
        allows: Returns whether a path may be accessed with mode bits such as `os.R_OK`.

    Raises:
        UnsupportedModelError: The process may not read it.
    """
    try:
        inside = [path, *path.iterdir()] if path.is_dir() else [path]
    except PermissionError:
        inside = [path]
    for entry in inside:
        needed = os.R_OK | os.X_OK if entry.is_dir() else os.R_OK
        if entry.exists() and not allows(entry, needed):
            msg = (
                f"{entry}: user {os.getuid()}, which runs this process, may not read it; allow it "
                "with `chmod -R a+rX`, or run this as another user"
            )
            raise UnsupportedModelError(msg)


def check_digest(path: Path, sha256: str) -> None:
    """Check a file's digest; directories are checked by their registry.

    Raises:
        ArtifactCorruptError: The digests differ.
    """
    if not sha256 or not path.is_file():
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256.removeprefix("sha256:"):
        msg = f"{path.name} is damaged: expected sha256 {sha256}, found {actual}"
        raise ArtifactCorruptError(msg)


def with_labels(signature: ModelSignature, labels: dict[str, list[str]]) -> ModelSignature:
    """Return `signature` with class names for its outputs.

    Raises:
        InvalidArgumentError: An output does not exist.
    """
    for name in labels:
        if signature.output(name) is None:
            outputs = ", ".join(spec.name for spec in signature.outputs)
            msg = f"labels name output '{name}', but the model has: {outputs}"
            raise InvalidArgumentError(msg)
    if not labels:
        return signature
    return replace(signature, labels={name: tuple(names) for name, names in labels.items()})


def _padding(model: Model, settings: ReplicaSettings) -> PaddingPlan | None:
    """Return the padding plan: from the settings, verified, or else the detected one."""
    requested = settings.batching.padding
    if requested is None:
        detected = find_padding(model)
        if detected is None:
            return None
        _log.info("requests of near lengths share batches: padding was verified by running")
        return padding_plan(model.signature, detected.settings, detected.length_axes)
    return padding_plan(model.signature, requested, verify_padding(model, requested))
