"""INT8 in ONNX Runtime: activations measured as they come, or beforehand by examples.

Its tools' defaults, one scale for a whole weight and every operator in INT8, are recipes too: they
cost a transformer answers, which is for the gate to find out.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, CannotBuildError, Workshop
from headrace.optimize.onnx_facts import read_onnx_facts
from headrace.optimize.recipes.building import (
    NO_EXAMPLES,
    check_can_quantize,
    checked,
    examples_in_time,
    facts_of,
    missing_package,
    told_by,
    versions,
)
from headrace.optimize.recipes.simplify import simplified

_FILE: Final = "model.onnx"
_WARNING, _FATAL = 2, 4
"""Of ONNX Runtime's levels: its own default, and what comes as an exception too."""
_RUNS: Final = 3
"""Of the model, as long as which it takes to see the range of every tensor for an example."""
_FLOAT: Final = 1
"""What operators of ONNX Runtime's own give, of which it cannot tell: `TensorProto.FLOAT`."""
_WHAT: Final = "ONNX Runtime's quantizer"
_NO_LAYER: Final = "nothing in it can be quantized: it has none of the operators that would be"


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicInt8:
    """Weights in INT8; activations are measured and rounded in each run."""

    name: str
    title: str
    per_channel: bool
    reduce_range: bool = False

    def why_not(self, _: Workshop) -> str:
        """Only without the package."""
        return missing_package("onnx")

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """One file."""
        facts = facts_of(workshop)
        check_can_quantize(facts)
        target = workshop.folder / _FILE
        simple = simplified(workshop)
        workshop.say("rounding the weights to INT8")
        with told_by(_WHAT), _quiet():
            from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415  # needs onnx, which an extra brings

            quantize_dynamic(
                simple,
                target,
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
                extra_options={
                    "DefaultTensorType": _FLOAT,
                    "EnableSubgraph": facts.has_branches,
                },
            )
        simple.unlink()
        told = {
            "activations": "UINT8, each run's own scale",
            "weights": "INT8, " + _scales(per_channel=self.per_channel),
            "reduce_range": str(self.reduce_range),
        }
        return [_candidate(self, target, workshop, told)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticInt8:
    """Weights in INT8, activations in UINT8 with scales that examples have shown.

    `operators`: which are quantized; None for all that can be. `signed`: whether activations are
    INT8 around zero, as TensorRT takes them, which costs other processors half of their speed.
    """

    name: str
    title: str
    operators: tuple[str, ...] | None
    reduce_range: bool = False
    signed: bool = False

    def why_not(self, workshop: Workshop) -> str:
        """Without examples, or the package."""
        return missing_package("onnx") or ("" if workshop.calibration else NO_EXAMPLES)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """One file."""
        check_can_quantize(facts_of(workshop))
        target = workshop.folder / _FILE
        simple = simplified(workshop)
        examples = examples_in_time(workshop, runs=_RUNS)
        workshop.say(f"calibrating with {len(examples)} examples")
        with told_by(_WHAT), _quiet():
            _quantize_static(self, simple, target, examples)
        simple.unlink()
        told = {
            "activations": f"{'INT8' if self.signed else 'UINT8'}, scales by the examples' range",
            "weights": "INT8, " + _scales(per_channel=True),
            "operators": ", ".join(self.operators or ("all",)),
            "examples": str(len(examples)),
            "reduce_range": str(self.reduce_range),
        }
        return [_candidate(self, target, workshop, told)]


def _quantize_static(
    recipe: StaticInt8, simple: Path, target: Path, examples: Sequence[Tensors]
) -> None:
    from onnxruntime.quantization import QuantType, quantize_static  # noqa: PLC0415  # needs onnx, which an extra brings

    quantize_static(
        simple,
        target,
        _Examples(examples),
        op_types_to_quantize=list(recipe.operators) if recipe.operators else None,
        per_channel=True,
        reduce_range=recipe.reduce_range,
        activation_type=QuantType.QInt8 if recipe.signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": _FLOAT, "ActivationSymmetric": recipe.signed},
    )


class _Examples:
    """Requests, as the calibration asks for them."""

    def __init__(self, examples: Sequence[Tensors]) -> None:
        self._left = iter(examples)

    def get_next(self) -> Tensors | None:
        """The next one, until there are no more."""
        return next(self._left, None)


def _candidate(
    recipe: DynamicInt8 | StaticInt8, target: Path, workshop: Workshop, told: dict[str, str]
) -> Candidate:
    with told_by(_WHAT):
        after = read_onnx_facts(target)
    if not after.is_quantized:
        raise CannotBuildError(_NO_LAYER)
    candidate = Candidate(
        name=recipe.name,
        title=recipe.title,
        runtime="onnx",
        path=target,
        recipe={"what": recipe.title, **told, **versions("onnxruntime", "onnx")},
    )
    return checked(candidate, workshop)


def _scales(*, per_channel: bool) -> str:
    return "a scale for each channel" if per_channel else "one scale for all"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what it warns of: that another script should have been called before."""
    log, nowhere = logging.getLogger(), logging.NullHandler()
    log.addFilter(_is_not_theirs)
    log.addHandler(nowhere)  # without any handler its first warning would add one, for good
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)
        log.removeHandler(nowhere)
        log.removeFilter(_is_not_theirs)


def _is_not_theirs(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
