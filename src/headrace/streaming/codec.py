"""Codecs of a stream: records to tensors, and model outputs to answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, starmap
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from headrace.core import (
    Array,
    HeadraceError,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    Tensors,
)
from headrace.protocol import InferDecoder, InferEncoder
from headrace.protocol.inputs import InputTensor
from headrace.protocol.values import flatten, nested_shape
from headrace.streaming.formats import Column, Fields, ValueReader, ValueWriter, without_value
from headrace.streaming.records import Record

Shape = tuple[int, ...]
_LISTS: Final = frozenset({list})


class EncodedAnswer(msgspec.Struct, frozen=True, gc=False):
    """Encoded answer to one record."""

    key: bytes | None
    value: bytes | None
    """None writes a tombstone, which deletes the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeGroup:
    """Records whose tensors have the same shapes, stacked."""

    positions: Sequence[int]
    """Positions of the records in the decoded batch, in order."""
    inputs: Tensors
    rows_each: int = 1
    """Rows of each record; for a model without a batch axis, a group holds one record."""
    keys: Sequence[bytes | None] = ()
    """Keys of the answers."""
    context: Any = None
    """Data of the codec for encoding the answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Records as tensors."""

    groups: Sequence[ShapeGroup]
    errors: dict[int, HeadraceError] = field(default_factory=dict)
    """Why a record could not be decoded, by its position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Fields that records have in addition to their own, such as window values."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    """A value for each record, by field name; those of records in `errors` are undefined."""
    errors: Mapping[int, HeadraceError] = field(default_factory=dict)
    """Why a record cannot be scored, by its position."""

    def select(self, positions: Sequence[int]) -> "Added":
        """Return the fields of these records only, in this order."""
        errors = {
            index: self.errors[position]
            for index, position in enumerate(positions)
            if position in self.errors
        }
        columns = {name: _pick(column, positions) for name, column in self.columns.items()}
        return Added(columns=columns, errors=errors)


NO_ADDED_FIELDS: Final = Added()


class Codec(Protocol):
    """Converts records to tensors and back. Used by one thread."""

    def decode(self, records: Sequence[Record], added: Added = NO_ADDED_FIELDS) -> Decoded:
        """Return each record in a group or in the errors.

        Args:
            added: Fields of these records in addition to their own, without errors.

        Raises:
            HeadraceError: The error affects every record.
        """

    def encode(
        self, group: ShapeGroup, outputs: Tensors, selected: Sequence[int]
    ) -> list[EncodedAnswer]:
        """Return the answers to the selected records of a group.

        Args:
            outputs: Outputs for the selected records only, in their order.
            selected: Indexes of records in the group.

        Raises:
            HeadraceError: The answers cannot be encoded.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSource:
    """Source of an input's values: one field, or one field for each column of a matrix."""

    tensor: InputTensor
    fields: tuple[str, ...]
    is_matrix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFields:
    """Fields of the answers: `answered` fields of the input, then the model's `outputs`."""

    format: ValueWriter
    answered: tuple[str, ...]
    outputs: tuple[str, ...]
    key: str = ""


class FieldCodec:
    """Codec of formats with fields. Values are validated as the endpoint validates requests.

    Records of one shape are converted to one array in one pass. If that fails, each record is
    converted alone, to separate bad records from good ones.
    """

    def __init__(
        self,
        reads: ValueReader,
        sources: Sequence[InputSource],
        written: AnswerFields,
        *,
        batched: bool,
    ) -> None:
        self._reads = reads
        self._sources = sources
        self._written = written
        self._batched = batched

    def decode(self, records: Sequence[Record], added: Added = NO_ADDED_FIELDS) -> Decoded:
        """Return each record in a group or in the errors; see `Codec.decode`."""
        fields = self._reads.decode(records)
        errors = dict(fields.errors)
        if errors:
            valid: Sequence[int] = [index for index in range(len(records)) if index not in errors]
        else:
            valid = range(len(records))
        if not valid:
            return Decoded(groups=(), errors=errors)
        if added.columns:
            more = {name: _pick(column, valid) for name, column in added.columns.items()}
            fields = replace(fields, columns={**fields.columns, **more})
        groups: list[ShapeGroup] = []
        for indexes in self._indexes_by_shape(fields.columns, len(valid), valid, errors):
            groups += self._groups(fields, indexes, valid, records, errors)
        return Decoded(groups=groups, errors=errors)

    def encode(
        self, group: ShapeGroup, outputs: Tensors, selected: Sequence[int]
    ) -> list[EncodedAnswer]:
        """Return the answers to the selected records; see `Codec.encode`."""
        written = self._written
        columns: dict[str, Column] = {name: group.context[name] for name in written.answered}
        keys = group.keys
        if len(selected) != len(group.positions):
            columns = {name: _pick(column, selected) for name, column in columns.items()}
            keys = [keys[index] for index in selected]
        for name in written.outputs:
            columns[name] = outputs[name] if self._batched else outputs[name][np.newaxis]
        return list(
            starmap(
                EncodedAnswer, zip(keys, written.format.encode(columns, len(selected)), strict=True)
            )
        )

    def _indexes_by_shape(
        self,
        columns: Mapping[str, Column],
        count: int,
        valid: Sequence[int],
        errors: dict[int, HeadraceError],
    ) -> list[Sequence[int]]:
        """Return the column indexes of records with equal shapes."""
        if not self._batched:
            return [[index] for index in range(count)]
        shapes = [
            value_shapes
            for source in self._sources
            if not source.is_matrix
            and (value_shapes := _shapes(columns[source.fields[0]], source.tensor)) is not None
        ]
        if not shapes:
            return [range(count)]
        by_shape: dict[object, list[int]] = {}
        for row, key in enumerate(zip(*shapes, strict=True)):
            error = next((shape for shape in key if isinstance(shape, HeadraceError)), None)
            if error is None:
                by_shape.setdefault(key, []).append(row)
            else:
                errors[valid[row]] = error
        return list(by_shape.values())

    def _groups(
        self,
        fields: Fields,
        indexes: Sequence[int],
        valid: Sequence[int],
        records: Sequence[Record],
        errors: dict[int, HeadraceError],
    ) -> list[ShapeGroup]:
        """Return records of equal shapes as one group; add others to `errors`."""
        try:
            return [self._group(fields, indexes, valid, records)]
        except InvalidArgumentError as error:
            if len(indexes) == 1:
                errors[valid[indexes[0]]] = error
                return []
        fine, alone = [], []
        for index in indexes:
            try:
                alone.append(self._group(fields, [index], valid, records))
                fine.append(index)
            except InvalidArgumentError as error:
                errors[valid[index]] = error
        if not fine:
            return []
        try:
            return [self._group(fields, fine, valid, records)]
        except InvalidArgumentError:  # valid alone, but not stacked
            return alone

    def _group(
        self,
        fields: Fields,
        indexes: Sequence[int],
        valid: Sequence[int],
        records: Sequence[Record],
    ) -> ShapeGroup:
        whole = len(indexes) == len(valid)
        columns = fields.columns
        if not whole:
            columns = {name: _pick(column, indexes) for name, column in columns.items()}
        inputs = {
            source.tensor.name: self._array(source, columns, len(indexes), typed=fields.typed)
            for source in self._sources
        }
        positions = valid if whole else [valid[index] for index in indexes]
        key = self._written.key
        keys = _keys(columns[key]) if key else [records[position].key for position in positions]
        context = {name: columns[name] for name in self._written.answered}
        return ShapeGroup(positions=positions, inputs=inputs, keys=keys, context=context)

    def _array(
        self, source: InputSource, columns: Mapping[str, Column], count: int, *, typed: bool
    ) -> Array:
        tensor = source.tensor
        make = tensor.from_numbers if typed else tensor.from_flat
        if source.is_matrix:
            many = [columns[name] for name in source.fields]
            plan = tensor.plan((count, len(many)))
            return make(plan, list(chain.from_iterable(zip(*many, strict=True))))
        column = columns[source.fields[0]]
        if isinstance(column, np.ndarray):
            array = column if self._batched else column[0]
            tensor.plan(array.shape)
            return array
        first = column[0]
        if isinstance(first, np.ndarray):
            array = np.stack(column) if self._batched else first
            tensor.plan(array.shape)
            return array
        shape = _value_shape(first, tensor)
        plan = tensor.plan((count, *shape) if self._batched else shape)
        return make(plan, _flat(tensor.name, column, shape))


def _shapes(column: Column, tensor: InputTensor) -> list[Shape | HeadraceError] | None:
    """Return the shape of each value; None if all are equal."""
    if isinstance(column, np.ndarray):
        return None
    rank = len(tensor.spec.shape) - 1
    if rank == 1 and _LISTS.issuperset(map(type, column)):
        lengths = list(map(len, column))
        if lengths.count(lengths[0]) == len(lengths):
            return None
        return [(length,) for length in lengths]
    if rank == 0:
        return None
    shapes: list[Shape | HeadraceError] = []
    for value in column:
        try:
            shapes.append(_value_shape(value, tensor))
        except InvalidArgumentError as error:
            shapes.append(error)
    return None if all(shape == shapes[0] for shape in shapes) else shapes


def _value_shape(value: object, tensor: InputTensor) -> Shape:
    """Return the shape of one value, which may be a scalar where the model takes a column."""
    if isinstance(value, np.ndarray):
        array_shape: Shape = value.shape
        return array_shape
    shape = nested_shape(value)
    spec_shape = tensor.spec.shape
    return (1,) if not shape and len(spec_shape) == 2 and spec_shape[1] in (1, -1) else shape  # noqa: PLR2004  # [n, 1]


def _flat(name: str, column: Sequence[Any], shape: Shape) -> list[Any]:
    """Return all values in row-major order, if each is nested as `shape` says."""
    if not shape:
        return list(column)
    if len(shape) == 1:
        if _LISTS.issuperset(map(type, column)):
            return list(chain.from_iterable(column))
        return [item for value in column for item in (value if type(value) is list else (value,))]
    return list(chain.from_iterable(flatten(name, value, shape) for value in column))


def _pick(column: Column, indexes: Sequence[int]) -> Column:
    if isinstance(column, np.ndarray):
        return column[list(indexes)]
    return [column[index] for index in indexes]


def _keys(column: Column) -> list[bytes | None]:
    """Return keys of answers: text unchanged, other values as JSON."""
    return [
        value
        if value is None or isinstance(value, bytes)
        else (value.encode() if isinstance(value, str) else msgspec.json.encode(value))
        for value in column
    ]


class OpenInferenceCodec:
    """Codec of the format `open_inference`: a record is a request, its answer the response.

    A request may have several rows. They are answered together; one failing row fails its request.
    """

    def __init__(
        self,
        name: str,
        version: str,
        signature: ModelSignature,
        *,
        nulls: NullPolicy = NullPolicy.NAN,
    ) -> None:
        self._name, self._version = name, version
        self._decoder = InferDecoder(name, version, signature, nulls=nulls)
        self._encoder = InferEncoder(name, version, signature)

    def decode(self, records: Sequence[Record], added: Added = NO_ADDED_FIELDS) -> Decoded:
        """Return each record as a group; see `Codec.decode`. Added fields are not supported."""
        assert not added.columns  # rejected when settings are checked
        groups: list[ShapeGroup] = []
        errors: dict[int, HeadraceError] = {}
        for position, record in enumerate(records):
            try:
                request = self._request(record)
            except HeadraceError as error:
                errors[position] = error
                continue
            groups.append(
                ShapeGroup(
                    positions=(position,),
                    inputs=request.inputs,
                    rows_each=request.rows,
                    keys=(record.key,),
                    context=request,
                )
            )
        return Decoded(groups=groups, errors=errors)

    def encode(
        self, group: ShapeGroup, outputs: Tensors, selected: Sequence[int]
    ) -> list[EncodedAnswer]:
        """Return the answers to the selected records; see `Codec.encode`."""
        if not selected:
            return []
        request: InferRequest = group.context
        response = InferResponse(
            model_name=self._name, model_version=self._version, outputs=outputs, id=request.id
        )
        body, _ = self._encoder.encode(response, request)
        assert isinstance(body, bytes)
        return [EncodedAnswer(group.keys[0], body)]

    def _request(self, record: Record) -> InferRequest:
        if record.value is None:
            raise without_value()
        request = self._decoder.decode(record.value)
        wants = any(output.binary_data for output in request.outputs)
        if request.binary_data_output or wants:
            msg = "the request asks for binary output, which answers in a stream do not support"
            raise InvalidArgumentError(msg)
        return request
