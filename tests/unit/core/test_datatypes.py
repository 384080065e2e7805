import numpy as np
import pytest

from headrace.core import DTYPES, Datatype, InvalidArgumentError, datatype_of


@pytest.mark.parametrize("datatype", list(Datatype))
def test_a_datatype_and_its_dtype_lead_to_each_other(datatype: Datatype) -> None:
    assert datatype_of(datatype.dtype) is datatype
    assert DTYPES[datatype] == datatype.dtype


def test_byte_order_does_not_matter() -> None:
    assert datatype_of(np.dtype(">f4")) is Datatype.FP32
    assert datatype_of(np.dtype(">i8")) is Datatype.INT64


@pytest.mark.parametrize("dtype", ["O", "S3", "U3"])
def test_text_is_bytes(dtype: str) -> None:
    assert datatype_of(np.dtype(dtype)) is Datatype.BYTES


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "V4"])
def test_what_the_protocol_cannot_carry_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no datatype in the Open Inference Protocol"):
        datatype_of(np.dtype(dtype))
