"""OpenVINO recipes: precisions, compressed weights, and INT8 by NNCF.

NNCF needs the model type of a transformer. Without it, everything is quantized and many answers are
wrong without a warning; that variant is a recipe too, which the quality gate evaluates.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from headrace.optimize.candidate import Candidate, ModelClass, Recipe, RecipeContext
from headrace.optimize.recipes.building import (
    NO_EXAMPLES,
    check_can_quantize,
    check_no_text,
    examples_in_time,
    facts_of,
    library_errors,
    missing_package,
    verified,
    versions,
)
from headrace.runtimes.base import Tuning
from headrace.runtimes.libraries import without_frameworks
from headrace.runtimes.onnx.file import find_onnx_file
from headrace.runtimes.openvino import import_openvino

FILE: Final = "model.xml"
OPENVINO: Final = "OpenVINO"
Graph = Any  # an `openvino.Model`; OpenVINO ships no types that mypy reads


def in_precision(name: str, title: str, precision: str, *, lacking: str = "") -> Recipe:
    """Return a recipe that runs the unchanged model in a pinned precision.

    Args:
        lacking: Missing processor feature; empty if available.
    """

    def build(context: RecipeContext) -> Sequence[Candidate]:
        # An IR with full-precision weights, whatever precision it is computed in.
        check_no_text(facts_of(context))
        file = save(read_graph(context), context.folder, halve=False)
        return [_candidate(name, title, file, context, precision, {"precision": precision})]

    def inapplicable_reason(_: RecipeContext) -> str:
        if lacking:
            return f"the processor has no {lacking}, so that it would be slower"
        return missing_package("openvino")

    return Recipe(name, title, build, inapplicable_reason)


_HALF: Final = (
    "openvino-fp16-weights",
    "OpenVINO, weights of 16 bits: a smaller file, no faster",
)
_BYTES: Final = ("openvino-int8-weights", "OpenVINO, weights of 8 bits: a smaller file, no faster")


def _half_weights(context: RecipeContext) -> Sequence[Candidate]:
    """Build a model with FP16 weights in the file, computed in FP32."""
    check_no_text(facts_of(context))
    file = save(read_graph(context), context.folder, halve=True)
    details = {"weights": "FP16 in the file, FP32 in memory"}
    return [_candidate(*_HALF, file, context, "f32", details)]


def _byte_weights(context: RecipeContext) -> Sequence[Candidate]:
    """Build a model with INT8 weights, computed in FP32."""
    facts = facts_of(context)
    check_no_text(facts)
    check_can_quantize(facts)
    graph = read_graph(context)
    with library_errors("NNCF"), silent_nncf() as nncf:
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    file = save(graph, context.folder, halve=False)
    details = {"weights": "INT8, a scale for each channel", **versions("nncf")}
    return [_candidate(*_BYTES, file, context, "f32", details)]


SMALL_RECIPES: Final = (
    Recipe(*_HALF, _half_weights, lambda _: missing_package("openvino")),
    Recipe(*_BYTES, _byte_weights, lambda _: missing_package("openvino", "nncf")),
)
"""Recipes that only shrink the file."""


def read_graph(context: RecipeContext) -> Graph:
    """Read the source with OpenVINO.

    Raises:
        CannotBuildError: OpenVINO rejects it.
    """
    with library_errors(OPENVINO):
        return import_openvino().Core().read_model(find_onnx_file(context.source))


def save(graph: Graph, folder: Path, *, halve: bool) -> Path:
    """Write an IR and return its `.xml`; `halve` stores FP16 weights."""
    file = folder / FILE
    with library_errors(OPENVINO):
        import_openvino().save_model(graph, file, compress_to_fp16=halve)
    return file


def _candidate(  # noqa: PLR0917  # as in a candidate
    name: str,
    title: str,
    file: Path,
    context: RecipeContext,
    precision: str,
    details: dict[str, str],
) -> Candidate:
    """Return a verified candidate of an IR."""
    candidate = Candidate(
        name=name,
        title=title,
        runtime="openvino",
        path=file,
        tuning=Tuning(precision=precision),
        recipe={"what": title, **details, **versions("openvino")},
    )
    return verified(candidate, context)


@contextmanager
def silent_nncf() -> Iterator[ModuleType]:
    """Import NNCF without progress bars, logs and telemetry.

    Standard output is discarded in the block. NNCF imports PyTorch only to check model types.
    """
    import_openvino()  # first, to disable the telemetry that NNCF shares
    kind = logging.getLoggerClass()
    with without_frameworks():
        try:
            import nncf  # noqa: PLC0415  # takes seconds, and an extra brings it
        finally:
            logging.setLoggerClass(kind)  # else every later logger would have NNCF's class
        # NNCF's `set_log_level` would also change handlers that other code added.
        logging.getLogger("nncf").setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()):
            yield nncf


_RUNS: Final = 6
"""Cost of calibrating with one example, in runs of the model."""


def post_training_int8(name: str, title: str, *, tells_class: bool, has_bf16: bool) -> Recipe:
    """Return a recipe of post-training INT8, with the rest in FP32 or, as a second candidate, BF16.

    Args:
        tells_class: Whether NNCF gets the model type of a transformer.
        has_bf16: Whether the processor supports BF16.
    """

    def build(context: RecipeContext) -> Sequence[Candidate]:
        facts = facts_of(context)
        check_no_text(facts)
        check_can_quantize(facts)
        graph = read_graph(context)
        examples = examples_in_time(context, runs=_RUNS)
        context.on_progress(f"calibrating with {len(examples)} examples")
        transformer = tells_class and context.model_class is ModelClass.TRANSFORMER
        with library_errors("NNCF"), silent_nncf() as nncf:
            graph = nncf.quantize(
                graph,
                nncf.Dataset(list(examples)),
                subset_size=len(examples),
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                fast_bias_correction=True,
            )
        file = save(graph, context.folder, halve=False)
        details = {
            "model_type": "transformer" if transformer else "not told",
            "bias_correction": "fast",
            "examples": str(len(examples)),
            **versions("nncf"),
        }
        ways = [(name, title, "f32")]
        if has_bf16:
            ways.append((f"{name}-bf16", f"{title}, the rest in BF16", "bf16"))
        return [
            _candidate(variant, description, file, context, precision, details)
            for variant, description, precision in ways
        ]

    def inapplicable_reason(context: RecipeContext) -> str:
        return missing_package("openvino", "nncf") or ("" if context.calibration else NO_EXAMPLES)

    return Recipe(name, title, build, inapplicable_reason)
