"""Deterministic generated inputs that reveal differences between two models.

For tree models, values lie between, on and beside the known thresholds. Other models get values of
many magnitudes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    HeadraceError,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
)
from headrace.runtimes import Model
from headrace.runtimes.padding import is_mask
from headrace.runtimes.probe import VARIABLE_SIZES

ROWS: Final = 1024
MISSING_ROWS: Final = 256
_MISSING_RATIO: Final = 0.15
_MAX_ELEMENTS: Final = 4_000_000
"""Most elements in all rows of an input; image models get fewer rows."""
_MAX_BESIDE: Final = 8192
"""Most rows on and beside thresholds."""
_TURNS: Final = 4
"""Repetitions of each threshold value, with different values of the other features."""
_MAX_SIZES: Final = 3
"""Most sizes of variable axes; two may behave alike, as size 1 broadcasts."""
_LARGEST: Final = float(np.finfo(np.float32).max)
"""No number is above a threshold of this size, which separates missing values from all others."""
_BLOCKS: Final = 4
_MATRIX: Final = 2
_SEED: Final = 20_250_711

Thresholds = Mapping[int, Array]
"""Ascending tree thresholds by feature."""


def generated_inputs(
    signature: ModelSignature,
    *,
    variable: int = 1,
    thresholds: Thresholds | None = None,
    index_sizes: Mapping[str, int] | None = None,
    draw: int = 0,
) -> Tensors:
    """Generate rows for a model, or one request for an unbatched model.

    Args:
        variable: Size of variable dimensions besides the batch.
        thresholds: Of the only input's features.
        index_sizes: By input that holds indices, such as token ids, the size of its table.
        draw: Number of the draw; different draws give different inputs.
    """
    rng = np.random.default_rng(_SEED + draw)
    rows = _rows(signature, variable)
    inputs = example_inputs(signature, rows=rows, variable=variable, seed=_SEED + draw)
    for spec in signature.inputs:
        array = inputs[spec.name]
        if size := (index_sizes or {}).get(spec.name, 0):
            array[...] = rng.integers(0, size, array.shape)
        if is_mask(spec.name) and signature.batched and array.ndim == _MATRIX:
            # Rows of the second half end in padding: a conversion may have fixed the mask.
            real = 1 + np.arange(rows)[:, np.newaxis] % array.shape[1]
            is_padding = np.arange(array.shape[1]) >= real
            is_padding[: rows // 2] = False
            array[is_padding] = 0
        if spec.datatype.dtype.kind != "f":
            continue
        if thresholds and len(signature.inputs) == 1 and array.ndim == _MATRIX:
            _fill_matrix(array, thresholds, rng)
        elif signature.batched:
            part = rows // _BLOCKS
            array[part : 2 * part] = rng.normal(size=array[part : 2 * part].shape)
            # Normal values; each row has its own magnitude between a hundredth and a thousand.
            shape = array[2 * part :].shape
            scale = 10.0 ** rng.uniform(-2, 3, (shape[0], *([1] * (len(shape) - 1))))
            array[2 * part :] = rng.normal(size=shape) * scale
        # Values are representable in FP32, so that FP32 models get the same inputs.
        inputs[spec.name] = array.astype(np.float32).astype(array.dtype)
    return inputs


def beside_thresholds(
    signature: ModelSignature, thresholds: Thresholds, precision: Datatype
) -> tuple[Tensors, int]:
    """Generate rows of values on each threshold, and of the next number below and above.

    Args:
        thresholds: Of the only input's features.
        precision: FP32 or FP64: of the values.

    Returns:
        The rows, and the number of covered thresholds, which is limited by the number of rows.
    """
    (spec,) = signature.inputs
    features = spec.shape[1]
    rng = np.random.default_rng(_SEED + 2)
    kind: type[np.floating[Any]] = np.float32 if precision is Datatype.FP32 else np.float64
    maximum = max(_BLOCKS, min(_MAX_BESIDE, _MAX_ELEMENTS // features))
    longest = max(len(cuts) for cuts in thresholds.values())
    rows = min(maximum, 3 * longest * _TURNS)
    array = rng.normal(size=(rows, features)).astype(kind).astype(spec.datatype.dtype)
    tried = 0
    for feature, cuts in thresholds.items():
        selected = rng.permutation(cuts)[: rows // 3]
        tried += len(selected)
        on = selected.astype(kind)
        values = np.concatenate(
            (on, np.nextafter(on, -kind(np.inf)), np.nextafter(on, kind(np.inf)))
        )
        turns = [rng.permutation(values) for _ in range(-(-rows // len(values)))]
        array[:, feature] = np.concatenate(turns)[:rows]
    return {spec.name: array}, tried


def sizes_that_run(model: Model) -> tuple[int, ...]:
    """Return sizes of variable dimensions with which a model runs, three at most.

    Raises:
        UnsupportedModelError: It runs with no size.
    """
    signature = model.signature
    shapes = (spec.shape[1:] if signature.batched else spec.shape for spec in signature.inputs)
    sizes = VARIABLE_SIZES if any(VARIABLE in shape for shape in shapes) else VARIABLE_SIZES[:1]
    working: list[int] = []
    for size in sizes:
        try:
            model.run(example_inputs(signature, variable=size))
        except HeadraceError:
            continue
        working.append(size)
        if len(working) == _MAX_SIZES:
            break
    if not working:
        msg = "the model does not run on generated inputs, so that nothing can be compared"
        raise UnsupportedModelError(msg)
    return tuple(working)


def with_missing(inputs: Tensors) -> Tensors:
    """Return some rows with random missing values; empty without float inputs."""
    rng = np.random.default_rng(_SEED + 1)
    copies = {name: array[:MISSING_ROWS].copy() for name, array in inputs.items()}
    floats = [array for array in copies.values() if array.dtype.kind == "f"]
    for array in floats:
        array[rng.random(array.shape) < _MISSING_RATIO] = np.nan
    return copies if floats else {}


def tree_thresholds(model: Any) -> dict[int, Array]:  # noqa: ANN401  # onnx ships no types
    """Return the thresholds of an ONNX graph's trees by feature.

    Empty if the graph transforms its input first.
    """
    thresholds: dict[int, list[float]] = {}
    inputs = {value.name for value in model.graph.input}
    passed_on = {"Cast", "Identity"}
    for node in model.graph.node:
        if node.op_type in passed_on and set(node.input) <= inputs:
            inputs |= set(node.output)
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        if not set(node.input) <= inputs:
            return {}
        attributes = {attribute.name: attribute for attribute in node.attribute}
        for feature, value in _splits(attributes):
            if math.isfinite(value) and value != _LARGEST:
                thresholds.setdefault(feature, []).append(value)
    return {feature: np.unique(values) for feature, values in thresholds.items()}


def _splits(attributes: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield features with thresholds from an operator's attributes."""
    if "nodes_featureids" not in attributes:
        return
    features = attributes["nodes_featureids"].ints
    if "nodes_splits" in attributes:  # as in ai.onnx.ml since 5, where leaves are not nodes
        from onnx import numpy_helper  # noqa: PLC0415  # an extra brings it

        values = numpy_helper.to_array(attributes["nodes_splits"].t).ravel().tolist()
        yield from zip(features, values, strict=False)
    elif "nodes_values" in attributes:
        modes = attributes["nodes_modes"].strings
        for feature, value, mode in zip(
            features, attributes["nodes_values"].floats, modes, strict=False
        ):
            if mode != b"LEAF":
                yield feature, value


def _rows(signature: ModelSignature, variable: int) -> int:
    if not signature.batched:
        return 1
    sizes = (_row_size(spec, variable) for spec in signature.inputs)
    return min(ROWS, max(_BLOCKS, _MAX_ELEMENTS // max(1, *sizes, 1)))


def _row_size(spec: TensorSpec, variable: int) -> int:
    inner = replace(spec, shape=spec.shape[1:])
    return math.prod(variable if size == VARIABLE else size for size in inner.shape)


def _fill_matrix(array: Array, thresholds: Thresholds, rng: np.random.Generator) -> None:
    """Fill columns with random values between or beyond thresholds."""
    rows = len(array)
    for feature in range(array.shape[1]):
        cuts = thresholds.get(feature)
        if cuts is None:
            array[:, feature] = rng.normal(size=rows)
            continue
        width = max(float(cuts[-1] - cuts[0]), abs(float(cuts[0])), 1e-3)
        edges = np.concatenate(([cuts[0] - width], cuts, [cuts[-1] + width]))
        segment = rng.integers(0, len(edges) - 1, rows)
        low, high = edges[segment], edges[segment + 1]
        array[:, feature] = low + (high - low) * rng.uniform(0.1, 0.9, rows)
