"""Runtime of optimized models: several engines as one, if this processor may run them."""

import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import msgspec
import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    check_inputs,
    example_inputs,
    with_weakest_evidence,
)
from headrace.core.devices import ON_CPU, Device, DeviceUse
from headrace.runtimes.base import DeadlineModel, LoadOptions, Model
from headrace.runtimes.check_file import Asked, read_check
from headrace.runtimes.onnx.providers import as_device
from headrace.runtimes.optimized.file import (
    FILE_NAME,
    EngineFile,
    OptimizedManifest,
    OtherProcessor,
    Processor,
    VerificationRequests,
    path_in,
    read_manifest,
    refuse,
)
from headrace.runtimes.optimized.processor import ProcessorDifference, change, plain, this_processor
from headrace.runtimes.plugins import load_model

_SMALLEST = 1e-12


def repeat_request(model: Model, requests: Sequence[Asked], check: VerificationRequests) -> str:
    """Return why a model's outputs differ from the recorded ones; empty if they match.

    A row is off if a value of a float output deviates by more than `check.tolerance` of the largest
    magnitude recorded for this output; no row may be off. A row is changed if a matrix of scores
    has its largest value in another column, or if an output that is not float differs. The share of
    changed rows may be `check.max_changed_ratio`, because two scores may be nearly equal.
    """
    scales: dict[str, float] = {}
    for _, answers in requests:
        for name, array in answers.items():
            if array.dtype.kind == "f":
                magnitudes = np.abs(array[np.isfinite(array)].astype(np.float64))
                scales[name] = max(scales.get(name, _SMALLEST), magnitudes.max(initial=0.0))
    by_request: list[tuple[Array, Array]] = []
    for number, (inputs, recorded) in enumerate(requests):
        try:
            answers_now = model.run(inputs, tuple(recorded))
        except HeadraceError as error:
            return f"request {number}, which it answered at verification, fails: {error}"
        by_request.append(_compared(answers_now, recorded, scales, batched=model.signature.batched))
    ratios, changed = map(np.concatenate, zip(*by_request, strict=True))
    far = ratios > check.tolerance
    if not far.any() and changed.sum() <= check.max_changed_ratio * changed.size:
        return ""
    by = f", by up to {ratios.max():.2g} of the largest value" if far.any() else ""
    return f"{(far | changed).sum()} of {changed.size} answers differ{by}"


def _compared(
    answers: Tensors, recorded: Tensors, scales: dict[str, float], *, batched: bool
) -> tuple[Array, Array]:
    """Return each row's largest deviation, and whether it changed."""
    rows = next(iter(recorded.values())).shape[0] if batched else 1
    ratios, changed = np.zeros(rows), np.zeros(rows, np.bool_)
    for name, expected in recorded.items():
        actual = answers[name]
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return np.full(rows, math.inf), np.ones(rows, np.bool_)
        flat_actual, flat_expected = actual.reshape(rows, -1), expected.reshape(rows, -1)
        if expected.dtype.kind != "f":
            changed |= (flat_actual != flat_expected).any(axis=1)
            continue
        ratios = np.maximum(ratios, _off(flat_actual, flat_expected) / scales[name])
        if batched and expected.ndim == 2 and expected.shape[1] > 1:  # noqa: PLR2004  # rows and classes
            changed |= actual.argmax(axis=1) != expected.argmax(axis=1)
    return ratios, changed


def _off(actual: Array, expected: Array) -> Array:
    """Return each row's largest difference; infinite where only one of two values is NaN."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        off = np.abs(actual - expected)
    off = np.where(same, 0.0, np.where(np.isnan(off), math.inf, off))
    deviation: Array = off.max(axis=1, initial=0.0)
    return deviation


CANDIDATE: Final = "candidate"
"""Key of the manifest's recipe for the name of the chosen candidate, such as `openvino-int8`."""
_DIGEST_SHOWN: Final = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMember:
    """One engine's model within an optimized model."""

    name: str
    model: Model
    up_to_rows: int | None = None
    """Largest batch that it takes; None for no limit."""
    threads: int = 1
    """Threads inside one run."""


def problem_of(
    directory: Path, manifest: OptimizedManifest, members: Sequence[LoadedMember]
) -> str:
    """Return why a member's outputs differ from the recorded ones; empty if all match.

    Raises:
        UnsupportedModelError: The recorded requests are invalid.
    """
    if manifest.check is None:
        return ""
    requests = read_check(path_in(directory, manifest.check.path))
    for member in members:
        _check_fits(directory, requests, member)
        if problem := repeat_request(member.model, requests, manifest.check):
            return f"{problem} of '{member.name}'" if len(members) > 1 else problem
    return ""


def _check_fits(directory: Path, requests: Sequence[Asked], member: LoadedMember) -> None:
    signature = member.model.signature
    outputs = {spec.name for spec in signature.outputs}
    for number, (inputs, answers) in enumerate(requests):
        try:
            rows = check_inputs(member.name, signature, inputs)
        except InvalidArgumentError as error:
            raise refuse(
                directory, f"has a check whose request {number} does not match the model: {error}"
            ) from None
        if not answers.keys() <= outputs:
            raise refuse(directory, f"has a check with outputs that '{member.name}' does not have")
        if signature.batched and any(a.shape[:1] != (rows,) for a in answers.values()):
            raise refuse(
                directory, f"has a check whose response {number} does not have {rows} rows"
            )


def _not_here(
    directory: Path, manifest: OptimizedManifest, other: ProcessorDifference, problem: str
) -> FailedPreconditionError:
    source = (
        f" ({plain(manifest.source_digest)[:_DIGEST_SHOWN]}...)" if manifest.source_digest else ""
    )
    verified_on = plain(manifest.processor.name)
    return FailedPreconditionError(
        f"{directory}: the optimized model was verified on {verified_on}; on this processor,"
        f" {other}, {problem}: run `headrace optimize` here, or serve the version that it "
        f"was made of{source}"
    )


class OptimizedModel:
    """Model that runs each batch on the member for its number of rows, and closes the members.

    Raises:
        UnsupportedModelError: The members' signatures differ.
    """

    def __init__(self, members: Sequence[LoadedMember], device: DeviceUse) -> None:
        self.signature = common_signature(members)
        self.device = device
        self.intra_op_threads = max(member.threads for member in members)
        """Threads with which the engine plans its runs."""
        self._models = [member.model for member in members]
        self.concurrent = all(model.concurrent for model in self._models)
        self.may_wait = any(getattr(model, "may_wait", False) for model in self._models)
        self.takes_deadline = any(map(_takes_deadline, self._models))
        self._bounds = tuple((member.up_to_rows, member.model) for member in members)
        self._names = [spec.name for spec in self.signature.outputs]
        self._is_one = len(members) == 1 or not self.signature.batched
        self._is_closed = False

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        """Run one batch."""
        if self._is_closed:
            raise RuntimeFailedError("the model is closed")
        model = self._models[0] if self._is_one else self._for_rows(inputs)
        names = outputs or self._names
        if deadline is not None and _takes_deadline(model):
            return cast("DeadlineModel", model).run(inputs, names, deadline=deadline)
        return model.run(inputs, names)

    def example_inputs(self, *, rows: int = 1, variable: int = 1) -> Tensors:
        """Return the first member's own example inputs if it has any, else generated ones."""
        example = getattr(self._models[0], "example_inputs", None)
        if example is None:
            return example_inputs(self.signature, rows=rows, variable=variable)
        inputs: Tensors = example(rows=rows, variable=variable)
        return inputs

    def close(self) -> None:
        """Close all members; may be called again."""
        self._is_closed = True
        with ExitStack() as closing:
            for model in self._models:
                closing.callback(model.close)

    def _for_rows(self, inputs: Tensors) -> Model:
        rows = next(iter(inputs.values())).shape[0]
        for bound, model in self._bounds:
            if bound is None or rows <= bound:
                return model
        return self._models[-1]


def common_signature(members: Sequence[LoadedMember]) -> ModelSignature:
    """Return the signature of all members; a dimension variable in some may be fixed in others.

    Raises:
        UnsupportedModelError: They differ; the message names the two and the difference.
    """
    first = members[0]
    signature = first.model.signature
    inputs, outputs = list(signature.inputs), list(signature.outputs)
    for other in members[1:]:
        other_signature = other.model.signature
        if other_signature.batched != signature.batched:
            has, lacks = (first, other) if signature.batched else (other, first)
            msg = f"'{has.name}' has a batch axis and '{lacks.name}' has none"
            raise UnsupportedModelError(f"{msg}; they cannot form one model")
        inputs = _merged("input", first, other, inputs, other_signature.inputs)
        outputs = _merged("output", first, other, outputs, other_signature.outputs)
    joined = replace(signature, inputs=tuple(inputs), outputs=tuple(outputs))
    return with_weakest_evidence(joined, [member.model.signature for member in members])


def _takes_deadline(model: Model) -> bool:
    return getattr(model, "takes_deadline", False) is True


def _merged(
    kind: str,
    first: LoadedMember,
    other: LoadedMember,
    own: Sequence[TensorSpec],
    other_specs: Sequence[TensorSpec],
) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in other_specs}
    if by_name.keys() != {spec.name for spec in own}:
        raise UnsupportedModelError(
            f"'{first.name}' has the {kind}s {_names(own)}, and '{other.name}' "
            f"{_names(other_specs)}; members of one model must have the same names"
        )
    return [_both(kind, first, other, spec, by_name[spec.name]) for spec in own]


def _both(
    kind: str, first: LoadedMember, other: LoadedMember, own: TensorSpec, other_spec: TensorSpec
) -> TensorSpec:
    """Return the stricter of two inputs, or the looser of two outputs."""
    pairs = list(zip(own.shape, other_spec.shape, strict=False))
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    fixed = [pair for pair in differ if VARIABLE not in pair]
    if (
        own.datatype != other_spec.datatype
        or len(own.shape) != len(other_spec.shape)
        or (fixed and kind == "input")
    ):
        raise UnsupportedModelError(
            f"{kind} '{own.name}' is {own.datatype} {list(own.shape)} of '{first.name}', and"
            f" {other_spec.datatype} {list(other_spec.shape)} of '{other.name}'; they cannot form "
            "one model"
        )
    if kind == "input":
        return replace(own, shape=tuple(map(max, pairs)))  # sizes are greater than `VARIABLE`
    return replace(own, shape=tuple(a if a == b else VARIABLE for a, b in pairs))


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)[:300]


_log = logging.getLogger(__name__)


class OptimizedRuntime:
    """Loader of a directory with `optimized.json`."""

    name = "optimized"
    runs_code = False
    has_manifest = True

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a directory with `optimized.json`."""
        return path.is_dir() and (path / FILE_NAME).is_file()

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load each member, and verify the model if this processor differs."""
        return open_optimized(path, options, here=this_processor())


def open_optimized(directory: Path, options: LoadOptions, *, here: Processor) -> OptimizedModel:
    """Return the model of a manifest if the processor matches or its policy allows this one.

    Args:
        here: The processor that runs it.

    Raises:
        UnsupportedModelError: The manifest or a member is invalid.
        FailedPreconditionError: The policy forbids this processor, or the outputs differ.
    """
    manifest = _read(directory, options)
    other, policy = change(manifest.processor, here), manifest.on_other_processor
    if other and policy is OtherProcessor.REFUSE:
        raise _not_here(directory, manifest, other, "its policy refuses it here")
    if other and policy is OtherProcessor.VERIFY and manifest.check is None:
        raise _not_here(directory, manifest, other, "it has no check that could verify it again")
    engines = " and ".join(dict.fromkeys(member.runtime for member in manifest.members))
    description = plain(manifest.recipe.get(CANDIDATE, engines))
    text = f"{description}, verified on {plain(manifest.processor.name)}"
    members = _load_members(directory, manifest.members, options)
    with ExitStack() as opened:
        for member in members:
            opened.callback(member.model.close)
        if other and policy is OtherProcessor.ALLOW:
            text = f"{text}; not verified on this processor, {other}"
        elif other:
            if problem := problem_of(directory, manifest, members):
                raise _not_here(directory, manifest, other, problem)
            text = f"{text}; verified again on this processor, {other}"
        use = DeviceUse(asked=options.device, used=ON_CPU, optimized=text)
        model = _one(directory, members, use)
        opened.pop_all()
    unverified = other and policy is OtherProcessor.ALLOW
    _log.log(logging.WARNING if unverified else logging.INFO, "%s: %s", directory.name, text)
    return model


def prove(directory: Path) -> None:
    """Run the recorded requests on each member, whatever the processor.

    Raises:
        UnsupportedModelError: The manifest or a member is invalid.
        FailedPreconditionError: The outputs differ from the recorded ones.
    """
    options = LoadOptions(device=Device.CPU)
    manifest = _read(directory, options)
    members = _load_members(directory, manifest.members, options)
    with ExitStack() as opened:
        for member in members:
            opened.callback(member.model.close)
        _one(directory, members, DeviceUse(asked=Device.CPU, used=ON_CPU))
        if problem := problem_of(directory, manifest, members):
            raise FailedPreconditionError(f"{directory}: {problem}")


def _read(directory: Path, options: LoadOptions) -> OptimizedManifest:
    if as_device(options.device) not in {Device.AUTO, Device.CPU}:
        msg = f"device '{options.device}' was requested, but {directory} was optimized for the CPU"
        raise FailedPreconditionError(f"{msg}; remove `device`")
    return read_manifest(directory)


def _one(directory: Path, members: Sequence[LoadedMember], use: DeviceUse) -> OptimizedModel:
    try:
        return OptimizedModel(members, use)
    except UnsupportedModelError as error:
        raise refuse(directory, f"is not one model: {error}") from error


def _load_members(
    directory: Path, members: Sequence[EngineFile], options: LoadOptions
) -> list[LoadedMember]:
    with ExitStack() as opened:
        loaded = []
        for member in members:
            own = member_options(member, options)
            model = load_model(path_in(directory, member.path), member.runtime, own)
            opened.callback(model.close)
            loaded.append(
                LoadedMember(
                    name=member.path,
                    model=model,
                    up_to_rows=member.up_to_rows,
                    threads=own.intra_op_threads,
                )
            )
        opened.pop_all()
    return loaded


def member_options(member: EngineFile, options: LoadOptions) -> LoadOptions:
    """Return a member's load options: CPU, its tuning, and its pinned or the requested threads."""
    pinned, member_threads = options.tuning.intra_op_threads, member.tuning.intra_op_threads
    threads = pinned or (member_threads and min(member_threads, len(os.sched_getaffinity(0))))
    return LoadOptions(
        intra_op_threads=threads or options.intra_op_threads,
        device=Device.CPU,
        tuning=msgspec.structs.replace(member.tuning, intra_op_threads=threads),
    )
