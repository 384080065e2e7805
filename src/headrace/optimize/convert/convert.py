"""Conversion of a model of another library to ONNX, compared with its source. Blocking."""

from collections.abc import Iterator, Mapping
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
"""Generated requests for a model that takes one request at a time."""
_ALONE: Final = "generated requests"
_MISSING: Final = "with missing values"
_NO_MISSING: Final = "; if no row ever has missing values, use --convert-no-missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Result of a conversion: tools, tolerances and measured differences."""

    converter: str
    library: str
    opset: int
    computes: Datatype
    """Datatype of the converted model's computation."""
    tolerance: float
    max_changed_ratio: float
    differences: Comparison
    """Differences over all compared rows."""
    on_data: Comparison | None = None
    """Differences over the user's rows; None if there were none."""
    beside: Comparison | None = None
    """Differences over values that FP32 cannot distinguish from a threshold; None if none."""

    def metadata(self, *, digest: Digest, runtime: str, filename: str) -> dict[str, str]:
        """Return the metadata of the converted version; the arguments describe the source.

        Figures cover the user's rows only, as generated rows are not representative.
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
    """Rows for both models; `what` describes them."""

    what: str
    inputs: Tensors
    expected: Tensors
    is_data: bool = False
    """Whether the user provided them."""
    is_fine: bool = False
    """Whether FP32 cannot represent the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """A conversion attempt that produced a model, with its comparisons."""

    way: Way
    opset: int
    comparisons: list[tuple[_Rows, Comparison]]
    limits: DifferenceLimits

    def problem(self, *, fine: bool) -> str:
        """Return why the differences are too large, `fine` including FP64-only values."""
        problems = (
            comparison.problem(self.limits)
            for rows, comparison in self.comparisons
            if fine or not rows.is_fine
        )
        return next((reason for reason in problems if reason), "")

    def as_conversion(self, source: ConversionSource) -> Conversion:
        """Return the attempt as a result."""
        on_data = [comparison for rows, comparison in self.comparisons if rows.is_data]
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
    """Convert `source` to ONNX at `target`, and check its answers against the source's.

    Args:
        target: An `.onnx` file; deleted if the conversion is refused.
        data_rows: The user's rows to compare besides generated ones.
        tolerance: Largest relative difference; None for the default of the datatype.
        max_changed_ratio: The share of rows that may get another class.
        no_missing: Whether rows never have missing values, so that none are compared.

    Raises:
        UnsupportedModelError: It cannot be converted, or the answers differ too much.
        InvalidArgumentError: The source does not take the user's rows.
    """
    problems: list[str] = []
    coarse: tuple[_Attempt, bytes] | None = None
    for way in source.ways:
        limits = DifferenceLimits(
            tolerance=TOLERANCES[way.computes] if tolerance is None else tolerance,
            max_changed_ratio=max_changed_ratio,
        )
        try:
            attempt = _attempt(source, way, target, data_rows, limits, no_missing=no_missing)
        except UnsupportedModelError as error:
            problems.append(str(error))
            continue
        if not attempt.problem(fine=True):
            return attempt.as_conversion(source)
        if reason := attempt.problem(fine=False):
            hint = (
                _NO_MISSING
                if _MISSING in reason and not attempt.comparisons[0][1].problem(limits)
                else ""
            )
            problems.append(
                f"converted to compute in {way.computes} its answers differ: {reason}{hint}"
            )
        elif way.computes is Datatype.FP32 and coarse is None:
            coarse = attempt, target.read_bytes()
        else:
            problems.append(
                f"converted to compute in {way.computes} its answers differ: "
                f"{attempt.problem(fine=True)}"
            )
    if coarse is not None:
        target.write_bytes(coarse[1])
        return coarse[0].as_conversion(source)
    target.unlink(missing_ok=True)
    message = "; ".join(dict.fromkeys(problems))  # often the same reason in both datatypes
    raise UnsupportedModelError(f"{message}. {source.hint}" if source.hint else message)


def _attempt(
    source: ConversionSource,
    way: Way,
    target: Path,
    data_rows: Tensors | None,
    limits: DifferenceLimits,
    *,
    no_missing: bool,
) -> _Attempt:
    """Convert in one way, leave the model at `target`, and compare it."""
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
        # Converters raise arbitrary exceptions.
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UnsupportedModelError(f"{by} {_CANNOT}: {reason}") from error
    try:
        row_sets = _row_sets(
            source, graph, data_rows, no_missing=no_missing or not source.takes_missing
        )
        comparisons = [
            (
                rows,
                compare(
                    signature,
                    rows.expected,
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


def _row_sets(
    source: ConversionSource, graph: Graph, data_rows: Tensors | None, *, no_missing: bool
) -> list[_Rows]:
    """Return the rows to compare with the source's answers."""
    model, signature = source.model, source.model.signature
    thresholds = {**tree_thresholds(graph), **source.thresholds}
    row_sets = [
        _Rows(what=description, inputs=inputs, expected=model.run(inputs))
        for description, inputs in _generated_rows(model, thresholds, source.index_sizes)
    ]
    if thresholds and signature.batched and len(signature.inputs) == 1:
        row_sets += _threshold_rows(model, thresholds)
    missing = {} if no_missing or not signature.batched else with_missing(row_sets[0].inputs)
    if missing:
        try:
            answers = model.run(missing)
        except HeadraceError:
            pass  # the source rejects missing values
        else:
            subject = f"{_rows(signature, missing)} {_MISSING}"
            row_sets.append(_Rows(what=subject, inputs=missing, expected=answers))
    if data_rows is not None:
        subject = f"{_rows(signature, data_rows)} given rows"
        expected = _answers(model, data_rows)
        row_sets.append(_Rows(what=subject, inputs=data_rows, expected=expected, is_data=True))
    return row_sets


def _threshold_rows(model: Model, thresholds: Thresholds) -> Iterator[_Rows]:
    """Yield rows on and beside thresholds, in FP32 and in the input's datatype."""
    (spec,) = model.signature.inputs
    total = sum(map(len, thresholds.values()))
    for precision in dict.fromkeys((Datatype.FP32, spec.datatype)):
        inputs, tried = beside_thresholds(model.signature, thresholds, precision)
        of_all = "all" if tried == total else f"{tried} of"
        rows = _rows(model.signature, inputs)
        yield _Rows(
            what=f"{rows} rows of {precision} on and beside {of_all} {total} thresholds",
            inputs=inputs,
            expected=model.run(inputs),
            is_fine=precision is Datatype.FP64,
        )


def _generated_rows(
    model: Model, thresholds: Thresholds, index_sizes: Mapping[str, int]
) -> Iterator[tuple[str, Tensors]]:
    """Yield generated inputs with descriptions, in several sizes if an axis is variable."""
    signature = model.signature
    sizes = sizes_that_run(model)
    for size in sizes:
        with_size = f" of size {size}" if len(sizes) > 1 else ""
        for draw in range(1 if signature.batched else _REQUESTS):
            inputs = generated_inputs(
                signature,
                variable=size,
                thresholds=thresholds,
                index_sizes=index_sizes,
                draw=draw,
            )
            description = (
                f"{_rows(signature, inputs)} generated rows" if signature.batched else _ALONE
            )
            yield f"{description}{with_size}", inputs


def _converted_answers(
    converted: Model, signature: ModelSignature, inputs: Tensors, description: str
) -> Tensors:
    try:
        return converted.run(inputs, [spec.name for spec in signature.outputs])
    except HeadraceError as error:
        msg = f"converted, it fails on {description}: {error}"
        raise UnsupportedModelError(msg) from error


def _answers(model: Model, data_rows: Tensors) -> Tensors:
    try:
        return model.run(data_rows)
    except HeadraceError as error:
        msg = f"the model does not take the given rows: {error}"
        raise InvalidArgumentError(msg) from error


def _rows(signature: ModelSignature, inputs: Tensors) -> int:
    return next(iter(inputs.values())).shape[0] if signature.batched else 1
