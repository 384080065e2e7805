"""From a path to a model that is loaded, checked and warm. Blocking: runs in a thread."""

import gc
import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    InvalidArgumentError,
    ModelSignature,
    ReplicaSettings,
)
from headrace.engine import PaddingPlan, ServiceTimes, padding_plan, warm_up
from headrace.runtimes import (
    LoadOptions,
    Model,
    detect_runtime,
    find_padding,
    get_runtime,
    verify_padding,
)

_log = logging.getLogger(__name__)

WARM_UP_S: Final = 1.0
"""How long the warm-up of a process's only model may take beyond its first run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model, ready to run, and what was learned while loading it."""

    model: Model
    runtime: str
    signature: ModelSignature
    times: ServiceTimes
    plan: PaddingPlan | None


def load(settings: ReplicaSettings) -> LoadedModel:
    """Load, verify and warm up the one model of this process, as `load_model`."""
    loaded = load_model(settings, warm_up_s=WARM_UP_S)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    return loaded


def load_model(settings: ReplicaSettings, *, warm_up_s: float, device: str = "auto") -> LoadedModel:
    """Load, verify and warm up the model that `settings` names.

    Args:
        warm_up_s: How long the warm-up may take beyond its first run.
        device: As in `LoadOptions`.

    Raises:
        UnsupportedModelError: The file is no model that can be served.
        ArtifactCorruptError: The file is not the one whose digest `settings` gives.
        NotSignedError: It is not what was signed, where that is asked for.
        InvalidArgumentError: The settings do not fit the model.
    """
    started = time.monotonic()
    path = Path(settings.path)
    check_digest(path, settings.sha256)
    runtime = get_runtime(settings.runtime) if settings.runtime else detect_runtime(path)
    if settings.signed is not msgspec.UNSET:
        from headrace.registry.signing import check_told  # noqa: PLC0415  # few need it

        check_told(path, runtime.name, settings.signed)
    # One thread inside a run and as many runs as cores: faster than the reverse (measured; see
    # docs/explain/batching.md), unless the operator asks for low latency of single runs.
    options = LoadOptions(intra_op_threads=settings.intra_op_threads or 1, device=device)
    if settings.features is msgspec.UNSET:
        model = runtime.load(path, options)
    else:
        from headrace.pipeline import load_with_features  # noqa: PLC0415  # few need it

        model = load_with_features(runtime, path, options, settings.features)
    signature = with_labels(model.signature, settings.labels)
    plan = _padding(model, settings)
    max_batch_size = settings.batching.max_batch_size if signature.batched else 1
    times = ServiceTimes(max_batch_size=max_batch_size)
    warm_up(model, times, max_batch_size=max_batch_size, budget_s=warm_up_s)
    seconds = time.monotonic() - started
    _log.info("model loaded", extra={"model": settings.model_name, "seconds": f"{seconds:.2f}"})
    return LoadedModel(
        model=model, runtime=runtime.name, signature=signature, times=times, plan=plan
    )


def check_digest(path: Path, sha256: str) -> None:
    """Compare a file with the digest that it was stored under; a directory is its registry's work.

    Raises:
        ArtifactCorruptError: They differ.
    """
    if not sha256 or not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.removeprefix("sha256:"):
        msg = f"{path.name} is damaged: expected sha256 {sha256}, found {found}"
        raise ArtifactCorruptError(msg)


def with_labels(signature: ModelSignature, labels: dict[str, list[str]]) -> ModelSignature:
    """`signature` with class names for its outputs.

    Raises:
        InvalidArgumentError: There is no such output.
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
    """How to pad: as the settings say if that is proved to be harmless, else as was found out."""
    wanted = settings.batching.padding
    if wanted is None:
        found = find_padding(model)
        if found is None:
            return None
        _log.info("requests of near lengths share batches: padding was verified by running")
        return padding_plan(model.signature, found.settings, found.length_axes)
    return padding_plan(model.signature, wanted, verify_padding(model, wanted))
