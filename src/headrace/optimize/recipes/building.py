"""What do recipes have in common? They check, rewrite, and prove that callers notice nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import onnxruntime as ort

from headrace.core import HeadraceError, ModelSignature
from headrace.optimize.candidate import Candidate, CannotBuildError, Workshop
from headrace.optimize.onnx_facts import OnnxFacts, read_onnx_facts
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.onnx_file import find_onnx_file
from headrace.runtimes.tabular import reason_of
from headrace.runtimes.tuning import UNTUNED, Tuning

MOST_EXAMPLES: Final = 128
"""To calibrate with: with 300 a BERT-like was no more exact, and took twice as long to make."""
NO_EXAMPLES: Final = "needs examples of requests to calibrate with, and there are none"
_MOST_BYTES: Final = 2_000_000_000
"""What a protobuf message may have, and the quantizers' copies of a model are such messages."""
_SIMPLE: Final = "simple.onnx"
_NO_LOGS: Final = 4
_ALONE: Final = "none: rows answer differently together than alone, so that each is run by itself"


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
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an ONNX Runtime for another device has another name
            found[package] = "unknown"
    return found


@contextmanager
def told_by(what: str) -> Iterator[None]:
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
        msg = f"{what} cannot do it: {type(error).__name__}: {reason_of(error)}"
        raise CannotBuildError(msg) from error


def facts_of(workshop: Workshop) -> OnnxFacts:
    """What the source is made of.

    Raises:
        CannotBuildError: It is no ONNX file, or it is damaged.
    """
    with told_by("reading the file"):
        return read_onnx_facts(workshop.source)


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


def simplified(workshop: Workshop) -> Path:
    """The source with constants folded and layers merged, as one file in the recipe's folder.

    A normalisation beside a convolution that is quantized can no longer be merged into it, so this
    comes first; nor do the quantizers read weights that lie in other files.

    Raises:
        CannotBuildError: ONNX Runtime does not load the model.
    """
    target = workshop.folder / _SIMPLE
    options = ort.SessionOptions()
    options.log_severity_level = _NO_LOGS
    options.intra_op_num_threads = max(1, workshop.threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    with told_by("ONNX Runtime"):
        file = str(find_onnx_file(workshop.source))
        ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return target


def checked(candidate: Candidate, workshop: Workshop) -> Candidate:
    """The candidate, which loads and takes and gives what the source does; what differs is told.

    Raises:
        CannotBuildError: It is called in another way; the message says how.
    """
    with told_by("loading what was made"):
        wanted = _signature(workshop.source, workshop.runtime, workshop, UNTUNED)
        found = _signature(candidate.path, candidate.runtime, workshop, candidate.tuning)
    if why := _why_different(wanted, found):
        raise CannotBuildError(f"what was made is called in another way: {why}")
    if wanted.batched and not found.batched:
        return replace(candidate, recipe={**candidate.recipe, "batches": _ALONE})
    return candidate


def _signature(path: Path, runtime: str, workshop: Workshop, tuning: Tuning) -> ModelSignature:
    threads = max(1, workshop.threads)
    options = LoadOptions(device="cpu", intra_op_threads=threads, tuning=tuning)
    model = load_model(path, runtime, options)
    try:
        return model.signature
    finally:
        model.close()


def _why_different(wanted: ModelSignature, found: ModelSignature) -> str:
    for kind, want, got in (
        ("inputs", wanted.inputs, found.inputs),
        ("outputs", wanted.outputs, found.outputs),
    ):
        before = {spec.name: spec.datatype for spec in want}
        after = {spec.name: spec.datatype for spec in got}
        if before != after:
            return f"its {kind} are {_told(after)}, not {_told(before)}"
    return ""


def _told(specs: Mapping[str, object]) -> str:
    return ", ".join(f"'{name}' {datatype}" for name, datatype in specs.items())[:300]


def remove(*files: Path) -> None:
    """Delete what a recipe needed only on the way."""
    for file in files:
        file.unlink(missing_ok=True)
