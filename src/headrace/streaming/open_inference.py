"""Records that are Open Inference Protocol requests, in JSON; answers are the protocol's responses.

A request may have several rows: they are answered together, and one that fails fails its request.
"""

from collections.abc import Sequence

from headrace.core import (
    HeadraceError,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    Nulls,
    Tensors,
)
from headrace.protocol import InferDecoder, InferEncoder
from headrace.streaming.codec import NOTHING_ADDED, Added, Answer, Decoded, Group
from headrace.streaming.formats import without_value
from headrace.streaming.records import Record


class OpenInferenceCodec:
    """A `Codec` of the format `open_inference`."""

    def __init__(
        self, name: str, version: str, signature: ModelSignature, *, nulls: Nulls = Nulls.NAN
    ) -> None:
        self._name, self._version = name, version
        self._decoder = InferDecoder(name, version, signature, nulls=nulls)
        self._encoder = InferEncoder(name, version, signature)

    def decode(self, records: Sequence[Record], added: Added = NOTHING_ADDED) -> Decoded:
        """As `Codec.decode`; each record is a group, and nothing can be added to it."""
        assert not added.columns  # the settings were checked
        groups: list[Group] = []
        errors: dict[int, HeadraceError] = {}
        for place, record in enumerate(records):
            try:
                request = self._request(record)
            except HeadraceError as error:
                errors[place] = error
                continue
            groups.append(
                Group(
                    places=(place,),
                    inputs=request.inputs,
                    rows_each=request.rows,
                    keys=(record.key,),
                    context=request,
                )
            )
        return Decoded(groups=groups, errors=errors)

    def encode(self, group: Group, outputs: Tensors, kept: Sequence[int]) -> list[Answer]:
        """As `Codec.encode`."""
        if not kept:
            return []
        request: InferRequest = group.context
        response = InferResponse(
            model_name=self._name, model_version=self._version, outputs=outputs, id=request.id
        )
        body, _ = self._encoder.encode(response, request)
        assert isinstance(body, bytes)
        return [Answer(group.keys[0], body)]

    def _request(self, record: Record) -> InferRequest:
        if record.value is None:
            raise without_value()
        request = self._decoder.decode(record.value)
        wants = any(output.binary_data for output in request.outputs)
        if request.binary_data_output or wants:
            msg = "the request asks for binary data, which an answer in a stream has no header for"
            raise InvalidArgumentError(msg)
        return request
