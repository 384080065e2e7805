"""Codec of MLflow's scoring protocol: `/invocations` as `mlflow models serve` answers it."""

from typing import Any, Final

import numpy as np
import orjson

from headrace.core import (
    Array,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    RequestedOutput,
    Tensors,
)
from headrace.core.predictions import (
    ParsedInputs,
    PredictionForm,
    PredictionLayout,
    parse_csv,
    parse_inputs,
)
from headrace.protocol.json_bounds import check_parts, check_values
from headrace.protocol.json_messages import UNREADABLE, JsonDecoder, unreadable
from headrace.protocol.v1 import V1Codec, jsonable
from headrace.protocol.values import Body

CSV_TYPE: Final = "text/csv"
JSON_TYPE: Final = "application/json"
_DOCUMENT: Final[JsonDecoder[Any]] = JsonDecoder(Any)


class PredictionCodec:
    """Codec of requests and predictions for one model version."""

    def __init__(
        self,
        model_name: str,
        model_version: str,
        signature: ModelSignature,
        layout: PredictionLayout,
        *,
        max_batch_size: int | None = None,
        nulls: NullPolicy = NullPolicy.NAN,
    ) -> None:
        self._signature = signature
        self._layout = layout
        self._outputs = tuple(RequestedOutput(name=name) for name in layout.outputs)
        self._tensors = V1Codec(
            model_name, model_version, signature, max_batch_size=max_batch_size, nulls=nulls
        )

    def decode(self, body: Body, content_type: str) -> tuple[InferRequest, PredictionForm]:
        """Return the request in `body`, validated, and the form of its response.

        Args:
            content_type: `CSV_TYPE` or `JSON_TYPE`.

        Raises:
            InvalidArgumentError: The model cannot run it; the message says why.
        """
        parsed = self._parsed(body, content_type)
        request = self._tensors.request_of(parsed.values)
        request.outputs = self._outputs
        layout = self._layout
        return request, layout.of_table if parsed.is_table else layout.of_tensors

    def encode(self, response: InferResponse, form: PredictionForm) -> bytes:
        """Return `{"predictions": ...}`; NaN becomes null, FP32 is written as FP64."""
        outputs = {name: _widened(response.outputs[name]) for name in self._layout.outputs}
        predictions: object
        match form:
            case PredictionForm.DOCUMENT:
                (text,) = outputs.values()
                predictions = orjson.Fragment(text.reshape(-1)[0])
            case PredictionForm.VALUES:
                (array,) = outputs.values()
                predictions = jsonable(array)
            case PredictionForm.MAPPING:
                predictions = {name: jsonable(array) for name, array in outputs.items()}
            case PredictionForm.RECORDS:
                predictions = _records({n: array.reshape(-1) for n, array in outputs.items()})
            case PredictionForm.COLUMNS:
                (array,) = outputs.values()
                columns = array.reshape(len(array), -1).T
                predictions = _records({str(i): column for i, column in enumerate(columns)})
        return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)

    def _parsed(self, body: Body, content_type: str) -> ParsedInputs:
        if content_type == CSV_TYPE:
            try:
                text = bytes(body).decode()
            except UnicodeDecodeError:
                raise InvalidArgumentError("the body is not valid UTF-8") from None
            return parse_csv(text, self._signature, self._layout)
        check_parts(body)
        check_values(body)
        try:
            document = _DOCUMENT.decode(body)
        except UNREADABLE as error:
            raise unreadable(error) from None
        return parse_inputs(document, self._signature, self._layout)


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _records(columns: Tensors) -> list[dict[str, object]]:
    """Return an object for each row."""
    rows = zip(*columns.values(), strict=False)
    return [
        {name: jsonable(value) for name, value in zip(columns, row, strict=True)} for row in rows
    ]
