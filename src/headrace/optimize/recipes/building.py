"""Shared steps of recipes: applicability checks, calibration examples, candidate verification."""

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

MAX_EXAMPLES: Final = 128
"""Most calibration examples; 300 did not make a BERT-like model more exact and took twice the time.
"""
_MIN_EXAMPLES: Final = 16
_MIN_S: Final = 1e-6
NO_EXAMPLES: Final = "needs calibration examples, and there are none; pass some with --data"
_MAX_BYTES: Final = 2_000_000_000
"""Size limit of a protobuf message, which the quantizers' copies of a model are."""


def missing_package(*packages: str) -> str:
    """Return how to install a missing package; empty if all can be imported."""
    for package in packages:
        try:
            is_there = find_spec(package) is not None
        except (ImportError, ValueError):
            is_there = False
        if not is_there:
            return f"needs the package '{package}': pip install 'headrace[optimize]'"
    return ""


def versions(*packages: str) -> dict[str, str]:
    """Return package versions for a candidate's recipe."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:  # ONNX Runtime for another device has another package name
            installed[package] = "unknown"
    return installed


@contextmanager
def library_errors(description: str) -> Iterator[None]:
    """Convert any exception of a library into a one-line CannotBuildError.

    Raises:
        CannotBuildError: The block raised.
    """
    try:
        yield
    except CannotBuildError:
        raise
    except HeadraceError as error:
        raise CannotBuildError(reason_of(error)) from error
    except Exception as error:
        # Converters raise arbitrary exceptions.
        kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        msg = f"{description} failed: {kind}{openvino_reason(error)}"
        raise CannotBuildError(msg) from error


def facts_of(context: RecipeContext) -> OnnxFacts:
    """Read the source's graph facts.

    Raises:
        CannotBuildError: It is not an ONNX file, or it is damaged.
    """
    with library_errors("reading the file"):
        return read_onnx_facts(context.source)


def check_can_quantize(facts: OnnxFacts) -> None:
    """Refuse models that no quantizer supports.

    Raises:
        CannotBuildError: The model is unsupported.
    """
    if facts.is_quantized:
        raise CannotBuildError("the model is already quantized")
    if facts.is_half:
        msg = (
            "most of its weights are 16-bit, and quantizers need 32-bit weights; export it as FP32"
        )
        raise CannotBuildError(msg)
    if facts.weights_bytes > _MAX_BYTES:
        msg = f"its weights take {facts.weights_bytes / 1e9:.1f} GB; the quantizers' limit in GB is"
        raise CannotBuildError(f"{msg} {_MAX_BYTES / 1e9:g}")


def check_no_text(facts: OnnxFacts) -> None:
    """Refuse a model with text inputs.

    Raises:
        CannotBuildError: It does.
    """
    if facts.takes_text:
        raise CannotBuildError(
            "it takes text, which OpenVINO does not support; tokenize in a pipeline step"
        )


def examples_in_time(context: RecipeContext, *, runs: float) -> Sequence[Tensors]:
    """Return as many calibration examples as fit half of the remaining time, but at least a few.

    Args:
        runs: Cost of one example, in runs of the source.

    Raises:
        CannotBuildError: The model fails on an example.
    """
    examples = context.calibration[:MAX_EXAMPLES]
    with library_errors("running the model on an example"):
        model = load_model(context.source, context.runtime, _options(context, UNTUNED))
        try:
            model.run(examples[0])  # excludes one-time setup
            started = time.monotonic()
            model.run(examples[0])
            ended = time.monotonic()
        finally:
            model.close()
    fitting = how_many(ended - started, runs=runs, left_s=context.deadline - ended)
    return examples[:fitting]


def how_many(run_s: float, *, runs: float, left_s: float) -> int:
    """Return how many examples fit, each costing `runs` runs of `run_s`."""
    one_s = max(runs * run_s, _MIN_S)
    return int(min(max(left_s / 2 / one_s, _MIN_EXAMPLES), MAX_EXAMPLES))


def verified(candidate: Candidate, context: RecipeContext) -> Candidate:
    """Check that the candidate loads, runs and has the source's signature; return it.

    Raises:
        CannotBuildError: The check fails; the message names the difference.
    """
    example = context.calibration[0] if context.calibration else None
    with library_errors("running the built model"):
        expected, before = _run(context.source, context.runtime, UNTUNED, context, example)
        actual, after = _run(candidate.path, candidate.runtime, candidate.tuning, context, example)
    if reason := _signature_problem(expected, actual) or _output_problem(before, after):
        raise CannotBuildError(f"the built model cannot replace the source: {reason}")
    return candidate


def _run(
    path: Path, runtime: str, tuning: Tuning, context: RecipeContext, example: Tensors | None
) -> tuple[ModelSignature, Tensors]:
    """Return a model's signature and answer."""
    model = load_model(path, runtime, _options(context, tuning))
    try:
        return model.signature, {} if example is None else model.run(example)
    finally:
        model.close()


def _options(context: RecipeContext, tuning: Tuning) -> LoadOptions:
    return LoadOptions(device="cpu", intra_op_threads=max(1, context.threads), tuning=tuning)


def _output_problem(before: Tensors, after: Tensors) -> str:
    for name, expected in before.items():
        actual = after[name]
        if expected.shape != actual.shape:
            return f"output '{name}' has the shape {list(actual.shape)}, not {list(expected.shape)}"
        is_number = expected.dtype.kind == "f"
        if is_number and np.isfinite(expected).all() and not np.isfinite(actual).all():
            return f"output '{name}' is no longer finite"
    return ""


def _signature_problem(expected: ModelSignature, actual: ModelSignature) -> str:
    for kind, expected_specs, actual_specs in (
        ("inputs", expected.inputs, actual.inputs),
        ("outputs", expected.outputs, actual.outputs),
    ):
        before = {spec.name: spec.datatype for spec in expected_specs}
        after = {spec.name: spec.datatype for spec in actual_specs}
        if before != after:
            return f"its {kind} are {_spec_text(after)}, not {_spec_text(before)}"
    return ""


def _spec_text(specs: Mapping[str, object]) -> str:
    return ", ".join(f"'{name}' {datatype}" for name, datatype in specs.items())[:300]
