"""Tensor datatypes of the Open Inference Protocol, and their NumPy dtypes."""

from enum import StrEnum
from typing import Final

import numpy as np

from headrace.core.errors import InvalidArgumentError


class Datatype(StrEnum):
    """A tensor's element type, by its protocol name."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def dtype(self) -> np.dtype:
        """Return the NumPy dtype, little-endian; BYTES elements are `bytes` in an object array."""
        return DTYPES[self]


DTYPES: Final[dict[str, np.dtype]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype(np.int8),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
    Datatype.BYTES: np.dtype(np.object_),
}
_DATATYPES: Final = {dtype: Datatype(name) for name, dtype in DTYPES.items()}


def datatype_of(dtype: np.dtype) -> Datatype:
    """Return the protocol's name of a NumPy dtype; strings and objects are BYTES.

    Raises:
        InvalidArgumentError: The protocol has no such datatype, for instance complex numbers.
    """
    datatype = _DATATYPES.get(dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype)
    if datatype is None and dtype.kind in "OSU":
        return Datatype.BYTES
    if datatype is None:
        msg = f"NumPy dtype {dtype} has no datatype in the Open Inference Protocol"
        raise InvalidArgumentError(msg)
    return datatype
