"""Tensors come out of answers as they went in, for every signature and format with a schema."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, ModelSignature, TensorSpec
from headrace.core.spec.stream_parts import FormatKind
from headrace.protocol.inputs import ModelInputs
from headrace.streaming.codec import AnswerFields, FieldCodec, InputSource
from headrace.streaming.formats import FieldSpec, avro, protobuf
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import client, reads, record, settings, writes

MODULES: dict[FormatKind, Any] = {FormatKind.AVRO: avro, FormatKind.PROTOBUF: protobuf}


@st.composite
def tensors(draw: st.DrawFn, rows: int) -> tuple[FieldSpec, Any]:
    """A field, and an array of its values."""
    datatype = draw(st.sampled_from(list(Datatype)))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    count = rows * int(np.prod(shape))
    if datatype is Datatype.BYTES:
        texts = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        array = np.array([one.encode() for one in texts], object)
    elif datatype is Datatype.BOOL:
        array = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    else:
        size = datatype.dtype.itemsize * count
        array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), datatype.dtype)
        if datatype is Datatype.UINT64:
            array = array >> np.uint64(1)  # Avro has 63 bits for them
    return FieldSpec(name="", datatype=datatype, shape=shape), array.reshape(rows, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(MODULES))
@given(data=st.data(), rows=st.integers(1, 4))
def test_tensors_come_back(kind: FormatKind, data: st.DataObject, rows: int) -> None:
    made = data.draw(st.lists(tensors(rows), min_size=1, max_size=4))
    arrays = {f"t{at}": array for at, (_, array) in enumerate(made)}
    specs = [
        FieldSpec(name=f"t{at}", datatype=one.datatype, shape=one.shape)
        for at, (one, _) in enumerate(made)
    ]
    registry = Registry()
    how = settings(kind, registry="http://registry", subject="out-value", register=True)
    write = MODULES[kind].make_writer(how, writes(*specs), client(registry))
    read = MODULES[kind].make_reader(how, reads(*specs), client(registry))
    signature = ModelSignature(
        inputs=tuple(
            TensorSpec(name=one.name, datatype=one.datatype, shape=(-1, *one.shape))
            for one in specs
        ),
        outputs=(),
        batched=True,
    )
    inputs = ModelInputs("model", signature).tensors
    sources = [InputSource(tensor=inputs[one.name], fields=(one.name,)) for one in specs]
    written = AnswerFields(format=write, answered=(), outputs=())

    values = write.encode(arrays, rows)
    decoded = FieldCodec(read, sources, written, batched=True).decode(
        [record(value) for value in values]
    )

    assert decoded.errors == {}
    (group,) = decoded.groups
    assert {name: found.dtype for name, found in group.inputs.items()} == {
        one.name: one.datatype.dtype for one in specs
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(group.inputs[name], array)
