"""Shared steps of recipes: check, rewrite, and prove that the signature stays."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import HeadraceError, ModelSignature, Tensors
from headrace.optimize.candidate import Candidate, CannotBuildError, RecipeContext
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.base import UNTUNED, Tuning
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.onnx.facts import OnnxFacts, read_onnx_facts
from headrace.runtimes.openvino import openvino_reason

MOST_EXAMPLES: Final = 128
"""To calibrate with: with 300 a BERT-like was no more exact, and took twice as long to make."""
_LEAST_EXAMPLES: Final = 16
_LEAST_S: Final = 1e-6
NO_EXAMPLES: Final = "needs examples of requests to calibrate with, and there are none"
_MOST_BYTES: Final = 2_000_000_000
"""What a protobuf message may have, and the quantizers' copies of a model are such messages."""


def missing_package(*packages: str) -> str:
    """What to install so that all of these can be imported; empty if they can."""
    for package in packages:
        try:
            is_there = find_spec(package) is not None
        except (ImportError, ValueError):
            is_there = False
        if not is_there:
            return f"needs the package '{package}': pip install 'headrace[optimize]'"
    return ""


def versions(*packages: str) -> dict[str, str]:
    """The versions of packages, for a candidate's recipe."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:  # an ONNX Runtime for another device has another name
            installed[package] = "unknown"
    return installed


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises into a reason on one line.

    Raises:
        CannotBuildError: It did.
    """
    try:
        yield
    except CannotBuildError:
        raise
    except HeadraceError as error:
        raise CannotBuildError(reason_of(error)) from error
    except Exception as error:
        # Converters fail in all ways; theirs is no bug of ours.
        kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        msg = f"{what} cannot do it: {kind}{openvino_reason(error)}"
        raise CannotBuildError(msg) from error


def facts_of(context: RecipeContext) -> OnnxFacts:
    """What the source is made of.

    Raises:
        CannotBuildError: It is no ONNX file, or it is damaged.
    """
    with library_errors("reading the file"):
        return read_onnx_facts(context.source)


def check_can_quantize(facts: OnnxFacts) -> None:
    """Refuse what no quantizer takes, before it fails on it.

    Raises:
        CannotBuildError: The model is such a one.
    """
    if facts.is_quantized:
        raise CannotBuildError("the model computes in small integers already")
    if facts.is_half:
        msg = "most of its weights have 16 bits, and quantizers take those of 32; export it as FP32"
        raise CannotBuildError(msg)
    if facts.weights_bytes > _MOST_BYTES:
        msg = (
            f"its weights have {facts.weights_bytes / 1e9:.1f} GB, and the quantizers take at most"
        )
        raise CannotBuildError(f"{msg} {_MOST_BYTES / 1e9:g}")


def check_no_text(facts: OnnxFacts) -> None:
    """Refuse a model that takes text.

    Raises:
        CannotBuildError: It does.
    """
    if facts.takes_text:
        raise CannotBuildError("it takes text, which OpenVINO does not; leave tokenizing to a step")


def examples_in_time(context: RecipeContext, *, runs: float) -> Sequence[Tensors]:
    """As many examples as can be looked at in half of the time that is left, but a few in any case.

    Args:
        runs: How many runs of the source each of them takes as long as.

    Raises:
        CannotBuildError: The model does not run on one.
    """
    examples = context.calibration[:MOST_EXAMPLES]
    with library_errors("running the model on an example"):
        model = load_model(context.source, context.runtime, _options(context, UNTUNED))
        try:
            model.run(examples[0])  # what is set up once
            began = time.monotonic()
            model.run(examples[0])
            ended = time.monotonic()
        finally:
            model.close()
    fitting = how_many(ended - began, runs=runs, left_s=context.deadline - ended)
    return examples[:fitting]


def how_many(run_s: float, *, runs: float, left_s: float) -> int:
    """How many examples are looked at, each for as long as `runs` runs of `run_s`."""
    one_s = max(runs * run_s, _LEAST_S)
    return int(min(max(left_s / 2 / one_s, _LEAST_EXAMPLES), MOST_EXAMPLES))


def verified(candidate: Candidate, context: RecipeContext) -> Candidate:
    """The candidate, which loads, runs, and takes and gives what the source does.

    Raises:
        CannotBuildError: It does not; the message says what is different.
    """
    example = context.calibration[0] if context.calibration else None
    with library_errors("running what was made"):
        expected, before = _run(context.source, context.runtime, UNTUNED, context, example)
        actual, after = _run(candidate.path, candidate.runtime, candidate.tuning, context, example)
    if why := _why_different(expected, actual) or _why_wrong(before, after):
        raise CannotBuildError(f"what was made cannot take the model's place: {why}")
    return candidate


def _run(
    path: Path, runtime: str, tuning: Tuning, context: RecipeContext, example: Tensors | None
) -> tuple[ModelSignature, Tensors]:
    """A model's signature, and what it answers."""
    model = load_model(path, runtime, _options(context, tuning))
    try:
        return model.signature, {} if example is None else model.run(example)
    finally:
        model.close()


def _options(context: RecipeContext, tuning: Tuning) -> LoadOptions:
    return LoadOptions(device="cpu", intra_op_threads=max(1, context.threads), tuning=tuning)


def _why_wrong(before: Tensors, after: Tensors) -> str:
    for name, expected in before.items():
        actual = after[name]
        if expected.shape != actual.shape:
            return f"output '{name}' has the shape {list(actual.shape)}, not {list(expected.shape)}"
        is_number = expected.dtype.kind == "f"
        if is_number and np.isfinite(expected).all() and not np.isfinite(actual).all():
            return f"output '{name}' is no longer finite"
    return ""


def _why_different(expected: ModelSignature, actual: ModelSignature) -> str:
    for kind, expected_specs, actual_specs in (
        ("inputs", expected.inputs, actual.inputs),
        ("outputs", expected.outputs, actual.outputs),
    ):
        before = {spec.name: spec.datatype for spec in expected_specs}
        after = {spec.name: spec.datatype for spec in actual_specs}
        if before != after:
            return f"its {kind} are {_told(after)}, not {_told(before)}"
    return ""


def _told(specs: Mapping[str, object]) -> str:
    return ", ".join(f"'{name}' {datatype}" for name, datatype in specs.items())[:300]
