"""Conversion of a model of another library to ONNX, compared with its source. Blocking."""

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
from headrace.optimize.compare import TOLERANCES, Comparison, DifferenceLimits, compare, worst
from headrace.optimize.generated_inputs import (
    Thresholds,
    beside_thresholds,
    generated_inputs,
    sizes_that_run,
    tree_thresholds,
    with_missing,
)
from headrace.optimize.sources import ConversionSource, Graph, Way, convertible_runtimes
from headrace.runtimes import LoadOptions, Model, get_runtime
from headrace.runtimes.libraries import reason_of

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
    `differences`: over all rows that were compared. `on_data`: over those that were given; None if
    none were. `beside`: over values that only FP64 tells from a threshold, where the result
    computes in FP32 and answers some of them differently.
    """

    converter: str
    library: str
    opset: int
    computes: Datatype
    tolerance: float
    max_changed_ratio: float
    differences: Comparison
    on_data: Comparison | None = None
    beside: Comparison | None = None

    def metadata(self, *, digest: Digest, runtime: str, filename: str) -> dict[str, str]:
        """What a version keeps of it; the arguments are the source's.

        Figures are those of rows that were given: made-up rows say nothing about others.
        """
        about = {
            "converted_from": digest,
            "converted_file": filename,
            "converted_runtime": runtime,
            "converter": self.converter,
            "converter_library": self.library,
            "converter_opset": str(self.opset),
            "converter_computes": str(self.computes),
            "compared_inputs": self.differences.inputs,
            "compared_rows": str(self.differences.rows),
            "tested_on_data": "no" if self.on_data is None else self.on_data.inputs,
            "tolerance": f"{self.tolerance:g}",
            "max_changed_class_ratio": f"{self.max_changed_ratio:g}",
        }
        if self.beside is not None:
            about["differs_beside_thresholds"] = f"{self.beside.beyond_rows} of {self.beside.rows}"
        if (on_data := self.on_data) is not None:
            about |= {
                "largest_absolute_difference": f"{on_data.largest_absolute:.3g}",
                "largest_relative_difference": f"{on_data.largest_relative:.3g}",
                "changed_class_ratio": f"{on_data.changed_ratio:.3g}",
            }
        return about


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Rows that both models are asked. `what` they are, for people.

    `is_given`: whether they are not made up. `is_fine`: whether only FP64 holds the values.
    """

    what: str
    inputs: Tensors
    want: Tensors
    is_given: bool = False
    is_fine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One way of converting that gave a model, and how that compares."""

    way: Way
    opset: int
    comparisons: list[tuple[_Rows, Comparison]]
    limits: DifferenceLimits

    def problem(self, *, fine: bool) -> str:
        """Why the differences are too large; of values that only FP64 holds, if `fine`."""
        problems = (
            comparison.problem(self.limits)
            for rows, comparison in self.comparisons
            if fine or not rows.is_fine
        )
        return next((why for why in problems if why), "")

    def as_conversion(self, source: ConversionSource) -> Conversion:
        """What is kept of it."""
        on_data = [comparison for rows, comparison in self.comparisons if rows.is_given]
        fine = [
            comparison
            for rows, comparison in self.comparisons
            if rows.is_fine and comparison.problem(self.limits)
        ]
        return Conversion(
            converter=self.way.converter or source.converter,
            library=source.library,
            opset=self.opset,
            computes=self.way.computes,
            tolerance=self.limits.tolerance,
            max_changed_ratio=self.limits.max_changed_ratio,
            differences=worst(
                [comparison for _, comparison in self.comparisons if comparison not in fine]
            ),
            on_data=worst(on_data) if on_data else None,
            beside=worst(fine) if fine else None,
        )


def convert(
    source: ConversionSource,
    target: Path,
    *,
    data_rows: Tensors | None = None,
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
    coarse: tuple[_Attempt, bytes] | None = None
    for way in source.ways:
        limits = DifferenceLimits(
            tolerance=TOLERANCES[way.computes] if tolerance is None else tolerance,
            max_changed_ratio=max_changed_ratio,
        )
        try:
            attempt = _tried(source, way, target, data_rows, limits, no_missing=no_missing)
        except UnsupportedModelError as error:
            problems.append(str(error))
            continue
        if not attempt.problem(fine=True):
            return attempt.as_conversion(source)
        if why := attempt.problem(fine=False):
            hint = (
                _NO_MISSING
                if _MISSING in why and not attempt.comparisons[0][1].problem(limits)
                else ""
            )
            problems.append(
                f"converted to compute in {way.computes} it answers differently: {why}{hint}"
            )
        elif way.computes is Datatype.FP32 and coarse is None:
            coarse = attempt, target.read_bytes()
        else:
            problems.append(
                f"converted to compute in {way.computes} it answers differently: "
                f"{attempt.problem(fine=True)}"
            )
    if coarse is not None:
        target.write_bytes(coarse[1])
        return coarse[0].as_conversion(source)
    target.unlink(missing_ok=True)
    message = "; ".join(dict.fromkeys(problems))  # often one reason in both datatypes
    raise UnsupportedModelError(f"{message}. {source.hint}" if source.hint else message)


def _tried(
    source: ConversionSource,
    way: Way,
    target: Path,
    data_rows: Tensors | None,
    limits: DifferenceLimits,
    *,
    no_missing: bool,
) -> _Attempt:
    """What the comparisons gave; the result lies at `target` then."""
    from headrace.optimize.convert.graph import like_its_source, plain_opset  # noqa: PLC0415  # needs onnx, which an extra brings

    signature = source.model.signature
    by = way.converter or source.converter
    try:
        graph = like_its_source(way.convert(), signature)
        target.write_bytes(graph.SerializeToString(deterministic=True))
        converted = get_runtime("onnx").load(target, LoadOptions(device="cpu"))
    except HeadraceError:
        raise
    except Exception as error:
        # Converters fail in all ways; theirs is no bug of ours.
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UnsupportedModelError(f"{by} {_CANNOT}: {reason}") from error
    try:
        row_sets = _asked(
            source, graph, data_rows, no_missing=no_missing or not source.takes_missing
        )
        comparisons = [
            (
                rows,
                compare(
                    signature,
                    rows.want,
                    _converted_answers(converted, signature, rows.inputs, rows.what),
                    inputs=rows.what,
                    tolerance=limits.tolerance,
                ),
            )
            for rows in row_sets
        ]
    finally:
        converted.close()
    return _Attempt(way=way, opset=plain_opset(graph), comparisons=comparisons, limits=limits)


def _asked(
    source: ConversionSource, graph: Graph, data_rows: Tensors | None, *, no_missing: bool
) -> list[_Rows]:
    """What both models are asked, and what the source answers."""
    model, signature = source.model, source.model.signature
    thresholds = {**tree_thresholds(graph), **source.thresholds}
    row_sets = [
        _Rows(what=what, inputs=inputs, want=model.run(inputs))
        for what, inputs in _made_up(model, thresholds)
    ]
    if thresholds and signature.batched and len(signature.inputs) == 1:
        row_sets += _beside(model, thresholds)
    missing = {} if no_missing or not signature.batched else with_missing(row_sets[0].inputs)
    if missing:
        try:
            answers = model.run(missing)
        except HeadraceError:
            pass  # it knows no missing values, and says so to callers
        else:
            what = f"{_rows(signature, missing)} {_MISSING}"
            row_sets.append(_Rows(what=what, inputs=missing, want=answers))
    if data_rows is not None:
        what = f"{_rows(signature, data_rows)} given rows"
        want = _answers(model, data_rows)
        row_sets.append(_Rows(what=what, inputs=data_rows, want=want, is_given=True))
    return row_sets


def _beside(model: Model, thresholds: Thresholds) -> Iterator[_Rows]:
    """Rows on and beside thresholds, in FP32, and in FP64 where the model takes that."""
    (spec,) = model.signature.inputs
    total = sum(map(len, thresholds.values()))
    for precision in dict.fromkeys((Datatype.FP32, spec.datatype)):
        inputs, tried = beside_thresholds(model.signature, thresholds, precision)
        of_all = "all" if tried == total else f"{tried} of"
        rows = _rows(model.signature, inputs)
        yield _Rows(
            what=f"{rows} rows of {precision} on and beside {of_all} {total} thresholds",
            inputs=inputs,
            want=model.run(inputs),
            is_fine=precision is Datatype.FP64,
        )


def _made_up(model: Model, thresholds: Thresholds) -> Iterator[tuple[str, Tensors]]:
    """Inputs in words and as tensors: of several sizes where one varies, as it may be baked in."""
    signature = model.signature
    sizes = sizes_that_run(model)
    for size in sizes:
        with_size = f" of size {size}" if len(sizes) > 1 else ""
        for draw in range(1 if signature.batched else _REQUESTS):
            inputs = generated_inputs(signature, variable=size, thresholds=thresholds, draw=draw)
            what = f"{_rows(signature, inputs)} made-up rows" if signature.batched else _ALONE
            yield f"{what}{with_size}", inputs


def _converted_answers(
    converted: Model, signature: ModelSignature, inputs: Tensors, what: str
) -> Tensors:
    try:
        return converted.run(inputs, [spec.name for spec in signature.outputs])
    except HeadraceError as error:
        msg = f"converted, it fails on {what}: {error}"
        raise UnsupportedModelError(msg) from error


def _answers(model: Model, data_rows: Tensors) -> Tensors:
    try:
        return model.run(data_rows)
    except HeadraceError as error:
        msg = f"the model does not take the rows that were given: {error}"
        raise InvalidArgumentError(msg) from error


def _rows(signature: ModelSignature, inputs: Tensors) -> int:
    return next(iter(inputs.values())).shape[0] if signature.batched else 1
