"""From a model of another library to ONNX, with the proof that it answers the same. Blocking."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core import (
    Datatype,
    Digest,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    UnsupportedModelError,
)
from headrace.optimize.compare import TOLERANCES, Comparison, Limits, compare, worst
from headrace.optimize.generated_inputs import (
    generated_inputs,
    sizes_that_run,
    tree_thresholds,
    with_missing,
)
from headrace.optimize.sources import Graph, Source, Way, convertible_runtimes
from headrace.runtimes import LoadOptions, Model, get_runtime
from headrace.runtimes.reasons import reason_of

__all__ = ["Conversion", "convert", "convertible_runtimes"]
_CANNOT: Final = "cannot convert it"
_REQUESTS: Final = 4
"""To a model that takes one at a time."""
_ALONE: Final = "made-up requests"
_MISSING: Final = "with missing values"
_NO_MISSING: Final = "; if no row ever lacks a value, say --convert-no-missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was converted, by what, and how far the answers are apart.

    `computes`: the datatype that the result computes in; `tolerance` is what was allowed for it.
    """

    converter: str
    library: str
    opset: int
    computes: Datatype
    tolerance: float
    max_changed_ratio: float
    differences: Comparison

    def metadata(self, *, digest: Digest, runtime: str, filename: str) -> dict[str, str]:
        """What a version keeps of it; the arguments are the source's."""
        found = self.differences
        return {
            "converted_from": digest,
            "converted_file": filename,
            "converted_runtime": runtime,
            "converter": self.converter,
            "converter_library": self.library,
            "converter_opset": str(self.opset),
            "converter_computes": str(self.computes),
            "compared_inputs": found.inputs,
            "compared_rows": str(found.rows),
            "largest_absolute_difference": f"{found.largest_absolute:.3g}",
            "largest_relative_difference": f"{found.largest_relative:.3g}",
            "tolerance": f"{self.tolerance:g}",
            "changed_class_ratio": f"{found.changed_ratio:.3g}",
            "max_changed_class_ratio": f"{self.max_changed_ratio:g}",
        }


def convert(
    source: Source,
    target: Path,
    *,
    given: Tensors | None = None,
    tolerance: float | None = None,
    max_changed_ratio: float,
    no_missing: bool = False,
) -> Conversion:
    """Write `source` as ONNX to `target`, whose answers were compared with the source's.

    Args:
        target: An `.onnx` file; there is none afterwards if it is refused.
        given: Rows to compare with besides those that are made up.
        tolerance: Of the relative difference; None goes by the datatype it computes in.
        max_changed_ratio: The share of rows that may get another class.
        no_missing: Whether no row ever lacks a value, so that none such are compared.

    Raises:
        UnsupportedModelError: It cannot be converted, or the answers are too far apart.
        InvalidArgumentError: The source does not take what was given.
    """
    problems: list[str] = []
    for way in source.ways:
        limits = Limits(
            tolerance=TOLERANCES[way.computes] if tolerance is None else tolerance,
            max_changed_ratio=max_changed_ratio,
        )
        try:
            opset, found = _tried(
                source, way, target, given, limits.tolerance, no_missing=no_missing
            )
        except UnsupportedModelError as error:
            problems.append(str(error))
            continue
        why = next((why for one in found if (why := one.problem(limits))), "")
        if not why:
            return Conversion(
                converter=way.converter or source.converter,
                library=source.library,
                opset=opset,
                computes=way.computes,
                tolerance=limits.tolerance,
                max_changed_ratio=max_changed_ratio,
                differences=worst(found),
            )
        hint = _NO_MISSING if not found[0].problem(limits) and _MISSING in why else ""
        what = f"converted to compute in {way.computes} it answers differently: {why}{hint}"
        problems.append(what)
    target.unlink(missing_ok=True)
    if all(_CANNOT in problem for problem in problems):
        problems = problems[:1]  # in one datatype as in the other
    said = "; ".join(problems)
    raise UnsupportedModelError(f"{said}. {source.hint}" if source.hint else said)


def _tried(
    source: Source,
    way: Way,
    target: Path,
    given: Tensors | None,
    tolerance: float,
    *,
    no_missing: bool,
) -> tuple[int, list[Comparison]]:
    """The opset, and what the comparisons gave; the result lies at `target` then."""
    from headrace.optimize.convert_graph import like_its_source, plain_opset  # noqa: PLC0415  # needs onnx, which an extra brings

    signature = source.model.signature
    try:
        graph = like_its_source(way.convert(), signature)
        target.write_bytes(graph.SerializeToString(deterministic=True))
    except HeadraceError:
        raise
    except Exception as error:
        # Converters fail in all ways; theirs is no bug of ours.
        said = f"{type(error).__name__}: {reason_of(error)}"
        by = way.converter or source.converter
        raise UnsupportedModelError(f"{by} cannot convert it: {said}") from error
    made = get_runtime("onnx").load(target, LoadOptions(device="cpu"))
    try:
        asked = _asked(
            source.model, graph, given, no_missing=no_missing or not source.takes_missing
        )
        return plain_opset(graph), [
            compare(
                signature,
                want,
                _converted_answers(made, signature, inputs, what),
                inputs=what,
                tolerance=tolerance,
            )
            for what, inputs, want in asked
        ]
    finally:
        made.close()


def _asked(
    model: Model, graph: Graph, given: Tensors | None, *, no_missing: bool
) -> list[tuple[str, Tensors, Tensors]]:
    """What both models are asked, in words and as tensors, and what the source answers."""
    signature = model.signature
    asked = []
    for what, inputs in _made_up(model, graph):
        asked.append((what, inputs, model.run(inputs)))
    missing = {} if no_missing or not signature.batched else with_missing(asked[0][1])
    if missing:
        try:
            answers = model.run(missing)
        except HeadraceError:
            pass  # it knows no missing values, and says so to callers
        else:
            what = f"{_rows(signature, missing)} {_MISSING}"
            asked.append((what, missing, answers))
    if given is not None:
        asked.append((f"{_rows(signature, given)} given rows", given, _answers(model, given)))
    return asked


def _made_up(model: Model, graph: Graph) -> Iterator[tuple[str, Tensors]]:
    """Inputs in words and as tensors: of several sizes where one varies, as it may be baked in."""
    signature, thresholds = model.signature, tree_thresholds(graph)
    sizes = sizes_that_run(model)
    for size in sizes:
        with_size = f" of size {size}" if len(sizes) > 1 else ""
        for draw in range(1 if signature.batched else _REQUESTS):
            made = generated_inputs(signature, variable=size, thresholds=thresholds, draw=draw)
            what = f"{_rows(signature, made)} made-up rows" if signature.batched else _ALONE
            yield f"{what}{with_size}", made


def _converted_answers(
    made: Model, signature: ModelSignature, inputs: Tensors, what: str
) -> Tensors:
    try:
        return made.run(inputs, [spec.name for spec in signature.outputs])
    except HeadraceError as error:
        msg = f"converted, it fails on {what}: {error}"
        raise UnsupportedModelError(msg) from error


def _answers(model: Model, given: Tensors) -> Tensors:
    try:
        return model.run(given)
    except HeadraceError as error:
        msg = f"the model does not take the rows that were given: {error}"
        raise InvalidArgumentError(msg) from error


def _rows(signature: ModelSignature, inputs: Tensors) -> int:
    return next(iter(inputs.values())).shape[0] if signature.batched else 1
