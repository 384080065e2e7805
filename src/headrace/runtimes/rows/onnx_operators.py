"""The ONNX operators whose effect on the rows of a batch is known; no other is.

Sources: the operator references of ONNX (`ai.onnx`, `ai.onnx.ml`) and of ONNX Runtime's contrib
operators (`com.microsoft`).
"""

from collections.abc import Mapping
from typing import Final

from headrace.runtimes.rows.onnx_axes import AXES, CONTRIB_AXES
from headrace.runtimes.rows.onnx_call import Operator
from headrace.runtimes.rows.onnx_elements import CONTRIB_ELEMENTS, ELEMENTS
from headrace.runtimes.rows.onnx_products import CONTRIB_PRODUCTS, PRODUCTS
from headrace.runtimes.rows.onnx_shapes import SHAPES
from headrace.runtimes.rows.onnx_tables import NGRAMS, TABLES

OPERATORS: Final[Mapping[str, Mapping[str, Operator]]] = {
    "": {**ELEMENTS, **AXES, **SHAPES, **PRODUCTS, **NGRAMS},
    "ai.onnx.ml": {
        **TABLES,
        **dict.fromkeys(("Binarizer", "LabelEncoder", "CategoryMapper"), ELEMENTS["Abs"]),
    },
    "com.microsoft": {
        **CONTRIB_ELEMENTS,
        **CONTRIB_AXES,
        **CONTRIB_PRODUCTS,
    },
}
RANDOM: Final = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
SIZED: Final = frozenset(
    [
        "Add",
        "Sum",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Neg",
        "Max",
        "Min",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Where",
        "Floor",
        "Ceil",
        "Round",
        "Identity",
        "Cast",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Transpose",
        "Expand",
        "Tile",
        "ConstantOfShape",
        "Concat",
        "Split",
        "Slice",
        "Gather",
        "Range",
        "ReduceProd",
        "ReduceSum",
        "Resize",
        "Upsample",
        "Pad",
        "Flatten",
        "Shape",
        "Size",
    ]
)
"""Operators that may take numbers of rows, because they follow them; no others may."""
