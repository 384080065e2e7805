"""Which datatypes of columns can become which datatypes of a model's inputs?"""

from typing import Any, Final

from headrace.core import VARIABLE, Datatype, TensorSpec
from headrace.jobs.libraries import pa, pl

POLARS: Final[dict[Datatype, Any]] = {
    Datatype.BOOL: pl.Boolean,
    Datatype.UINT8: pl.UInt8,
    Datatype.UINT16: pl.UInt16,
    Datatype.UINT32: pl.UInt32,
    Datatype.UINT64: pl.UInt64,
    Datatype.INT8: pl.Int8,
    Datatype.INT16: pl.Int16,
    Datatype.INT32: pl.Int32,
    Datatype.INT64: pl.Int64,
    Datatype.FP16: pl.Float32,  # made half as large in NumPy, as Polars has few operations on it
    Datatype.FP32: pl.Float32,
    Datatype.FP64: pl.Float64,
    Datatype.BYTES: pl.Binary,
}

PARSED: Final[dict[str, Any]] = {"f": pl.Float64, "i": pl.Int64, "u": pl.UInt64, "b": pl.Boolean}
"""As what text is read first, by NumPy's kind: as JSON is, so that a row's digits are the same."""


def row_shape(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """What one row has of a tensor; an axis of size 1 in front of a model without rows is none."""
    shape = spec.shape[1:] if batched else spec.shape
    if not batched and len(shape) > 1 and shape[0] in {1, VARIABLE}:
        return shape[1:]
    return shape


def width(shape: tuple[int, ...]) -> int | None:
    """How many values that is; None if a row may choose."""
    if VARIABLE in shape:
        return None
    size = 1
    for one in shape:
        size *= one
    return size


def is_list(kind: Any) -> bool:  # noqa: ANN401  # pyarrow has no types
    """Whether a column holds several values a row."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def innermost(kind: Any) -> Any:  # noqa: ANN401  # as above
    """Of what the lists of a column are."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def convertible(kind: Any, wanted: Datatype) -> bool:  # noqa: ANN401  # as above
    """Whether values keep their meaning; those too large for it are told row by row."""
    types = pa.types
    if wanted is Datatype.BYTES:
        return is_text(kind)
    if types.is_boolean(kind):
        return True
    if wanted is Datatype.BOOL:
        return False
    if types.is_integer(kind):
        return True
    is_float = bool(types.is_floating(kind) or types.is_decimal(kind))
    return is_float and wanted.dtype.kind == "f"


def is_text(kind: Any) -> bool:  # noqa: ANN401  # as above
    """Whether a column holds texts or bytes."""
    types = pa.types
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_string_view,
        types.is_binary_view,
        types.is_fixed_size_binary,
    )
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(check(kind) for check in checks)
