"""Codec of KServe's V1 predict requests and responses, with the forms of TensorFlow Serving."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from headrace.core import (
    Array,
    Datatype,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
)
from headrace.protocol.inputs import InputTensor, ModelInputs
from headrace.protocol.json_bounds import check_parts, check_values
from headrace.protocol.json_messages import UNREADABLE, JsonDecoder, unreadable
from headrace.protocol.outputs import plain_array
from headrace.protocol.values import Body, element_bytes, flatten, nested_shape, spell_infinities

_B64: Final = "b64"
_DOCUMENT: Final[JsonDecoder[Any]] = JsonDecoder(Any)


class V1Codec:
    """Codec of `:predict` for one model version.

    `instances` are rows: values for a model with one input, else objects by input name. `inputs`
    are columns: one tensor, or an object of tensors by input name. BYTES elements are strings or
    `{"b64": "..."}`. V1 names no datatypes or shapes: both come from the model's signature.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        signature: ModelSignature,
        *,
        max_batch_size: int | None = None,
        nulls: NullPolicy = NullPolicy.NAN,
    ) -> None:
        self._model = model_name
        self._version = model_version
        self._batched = signature.batched
        self._inputs = ModelInputs(
            model_name, signature, max_batch_size=max_batch_size, nulls=nulls
        )
        tensors = tuple(self._inputs.tensors.values())
        self._only = tensors[0] if len(tensors) == 1 else None

    def decode(self, body: Body) -> InferRequest:
        """Return the request in `body`, validated against the model's signature.

        Raises:
            InvalidArgumentError: The model cannot run it; the message says why.
        """
        return self.request_of(self._columns(body))

    def request_of(self, columns: Mapping[str, Any]) -> InferRequest:
        """Return the request of nested lists by input name, validated against the signature.

        Raises:
            InvalidArgumentError: The model cannot run it; the message says why.
        """
        inputs: dict[str, Array] = {}
        rows = set()
        for name, data in columns.items():
            array = self._array(self._inputs.get(name), data)
            inputs[name] = array
            rows.add(array.shape[0] if self._batched else 1)
        if len(inputs) != len(self._inputs.tensors) or len(rows) != 1:
            self._inputs.raise_misfit(list(columns), inputs)
        return InferRequest(
            model_name=self._model,
            model_version=self._version,
            inputs=inputs,
            rows=rows.pop(),
        )

    def encode(self, response: InferResponse) -> bytes:
        """Return `{"predictions": [...]}`: rows of the only output, or objects by output name.

        NaN becomes `null`, an infinity `"Infinity"` or `"-Infinity"`; BYTES that are not UTF-8
        become `{"b64": "..."}`. A model without a batch axis returns its output directly, several
        outputs as one object.
        """
        outputs = response.outputs
        predictions: object
        if len(outputs) == 1:
            (array,) = outputs.values()
            predictions = jsonable(array if array.ndim else array.reshape(1))
        elif self._batched:
            rows = min((len(array) for array in outputs.values()), default=0)
            predictions = [
                {name: jsonable(array[row]) for name, array in outputs.items()}
                for row in range(rows)
            ]
        else:
            predictions = [{name: jsonable(array) for name, array in outputs.items()}]
        return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)

    def _columns(self, body: Body) -> dict[str, Any]:
        """Return nested data by input name, batch axis included."""
        check_parts(body)
        check_values(body)
        try:
            document = _DOCUMENT.decode(body)
        except UNREADABLE as error:
            raise unreadable(error) from None
        if not isinstance(document, dict) or not ("instances" in document or "inputs" in document):
            msg = 'Expected "instances" or "inputs" in a JSON object'
            raise InvalidArgumentError(msg)
        if "instances" in document and "inputs" in document:
            msg = 'Expected "instances" or "inputs", got both'
            raise InvalidArgumentError(msg)
        if "instances" in document:
            return self._from_instances(document["instances"])
        inputs = document["inputs"]
        if isinstance(inputs, dict) and not self._is_element(inputs):
            return inputs
        if self._only is None:
            msg = f"Expected \"inputs\" to be an object by input name for model '{self._model}'"
            raise InvalidArgumentError(msg)
        return {self._only.name: inputs}

    def _from_instances(self, instances: object) -> dict[str, Any]:
        if not isinstance(instances, list):
            msg = 'Expected "instances" to be a list'
            raise InvalidArgumentError(msg)
        if instances and isinstance(instances[0], dict) and not self._is_element(instances[0]):
            columns = self._transpose(instances)
            return columns if self._batched else {n: v[0] for n, v in columns.items()}
        if self._only is None:
            msg = (
                'Expected each of "instances" to be an object by input name, because model '
                f"'{self._model}' has several inputs"
            )
            raise InvalidArgumentError(msg)
        return {self._only.name: instances}

    def _transpose(self, instances: list[Any]) -> dict[str, list[Any]]:
        if not self._batched and len(instances) > 1:
            msg = f"model '{self._model}' has no batch axis: send one instance a request"
            raise InvalidArgumentError(msg)
        columns: dict[str, list[Any]] = {name: [] for name in instances[0]}
        for index, row in enumerate(instances):
            if not isinstance(row, dict) or row.keys() != columns.keys():
                msg = f"instance {index} does not name the same inputs as instance 0"
                raise InvalidArgumentError(msg)
            for name, value in row.items():
                columns[name].append(value)
        return columns

    def _array(self, tensor: InputTensor, data: object) -> Array:
        shape = nested_shape(data)
        plan = tensor.plan(_with_unit_axis(tensor, shape))  # before millions of elements are read
        if tensor.spec.datatype == Datatype.BYTES:
            data = _decoded(tensor.name, data, depth=len(tensor.spec.shape))
        flat = flatten(tensor.name, data, shape) if isinstance(data, list) else [data]
        return tensor.from_flat(plan, flat)

    def _is_element(self, value: dict[str, Any]) -> bool:
        """Whether an object is one BYTES element rather than values by input name."""
        only = self._only
        if only is None or only.spec.datatype != Datatype.BYTES or only.name == _B64:
            return False
        return value.keys() == {_B64}


def _with_unit_axis(tensor: InputTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `[n]` as `[n, 1]` if the model takes a column: rows may be plain values."""
    model_shape = tensor.spec.shape
    is_column = len(model_shape) == len(shape) + 1 and model_shape[-1] == 1
    return (*shape, 1) if is_column else shape


def _decoded(name: str, data: object, *, depth: int) -> object:
    """Return the same nesting with `{"b64": ...}` replaced by bytes, at most `depth` lists deep."""
    if isinstance(data, list):
        return [_decoded(name, item, depth=depth - 1) for item in data] if depth else data
    if not isinstance(data, dict) or data.keys() != {_B64}:
        return data
    try:
        return base64.b64decode(data[_B64], validate=True)
    except (binascii.Error, ValueError, TypeError):
        msg = f"a 'b64' value of input '{name}' is not valid base64"
        raise InvalidArgumentError(msg) from None


def jsonable(value: object) -> object:
    """Return what orjson can write: nested lists for BYTES, a scalar for rank 0, else the array."""
    if isinstance(value, bytes | str):  # a row of a vector is a scalar
        return _texts(value)
    array = plain_array(np.asarray(value))
    if array.dtype.kind in "OSU":
        return _texts(array.tolist())
    plain = array if array.ndim else array.item()
    if array.dtype.kind != "f":
        return plain
    text = orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.Fragment(spell_infinities(text, array))


def _texts(value: object) -> object:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    raw = element_bytes(value)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {_B64: base64.b64encode(raw).decode()}
