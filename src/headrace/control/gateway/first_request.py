"""First requests: one per endpoint, through the gateway, after each change of its revisions.

A ready replica proves that its model loads; only an answer proves the whole path. The inputs are
synthetic, so a model that fails on them has answered: its error becomes a note of the status.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from headrace.core import (
    VARIABLE,
    Clock,
    Datatype,
    ExampleValue,
    HeadraceError,
    ModelSignature,
    TensorSpec,
)
from headrace.core.backoff import Backoff
from headrace.core.error_kind import UNDECODABLE
from headrace.core.examples import example_inputs
from headrace.core.fetch import FetchResponse, fetch
from headrace.protocol import encode_document
from headrace.protocol.openapi import infer_document

_TIMEOUT_S: Final = 60.0
_RETRIES: Final = 20
_RETRY_S: Final = 0.25
_VARIABLE_SIZES: Final = (1, 16, 224)
"""Sizes tried for variable dimensions: tokens, then images; one accepted size is enough."""
_OK: Final = range(200, 300)
_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
_INTERNAL: Final = 500
_SHOWN: Final = 500
NEXT_TRY: Final = Backoff(first_s=2.0, limit_s=60.0)
"""Backoff of first requests to an endpoint that did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRequest:
    """Result: `answered` if the model itself answered; `status` is HTTP's, 0 without a response.

    `revisions` are the ids of the endpoint's revisions at that time.
    """

    answered: bool
    status: int
    latency_s: float
    message: str
    revisions: tuple[str, ...]
    failures: int = 0
    """Unanswered first requests of these revisions in a row."""

    @property
    def note(self) -> str:
        """The model's error about the synthetic inputs; empty if it accepted them."""
        if not self.answered or self.status not in {_BAD_REQUEST, _INTERNAL}:
            return ""
        return (
            f"the first request, with synthetic inputs, got HTTP status {self.status}: "
            f"{self.message}"
        )


class _Tensor(msgspec.Struct):
    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...] = ()


async def send_first_request(
    address: str,
    name: str,
    *,
    revisions: tuple[str, ...],
    clock: Clock,
    example: Mapping[str, ExampleValue],
) -> FirstRequest:
    """Send requests for `name` to the gateway `address` until one is answered, for some seconds.

    Args:
        example: The result of `ModelSignature.example`; empty if the version is unknown.
    """
    result = FirstRequest(
        answered=False, status=0, latency_s=0.0, message="not sent", revisions=revisions
    )
    for _ in range(_RETRIES):
        started = clock.monotonic()
        try:
            answer, spoke = await _ask(address, name, example)
        except (HeadraceError, *UNDECODABLE) as error:
            result = replace(result, message=str(error))
        else:
            result = _judge(answer, clock.monotonic() - started, revisions, spoke=spoke)
            if result.answered:
                return result
        await asyncio.sleep(_RETRY_S)
    return result


async def _ask(
    address: str, name: str, example: Mapping[str, ExampleValue]
) -> tuple[FetchResponse, bool]:
    """Return the response to an inference, or to the metadata request if that fails.

    The second value is whether the model itself answered.
    """
    described = await fetch(address, f"/v2/models/{name}", timeout_s=_TIMEOUT_S)
    if described.status not in _OK:
        return described, False
    body = described.body
    metadata = msgspec.json.decode(body, type=_Metadata)
    if not metadata.inputs and not metadata.outputs:
        return described, True  # a language model, whose tokens may cost minutes
    specs = tuple(
        TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for tensor in metadata.inputs
    )
    batched = all(spec.shape and spec.shape[0] == VARIABLE for spec in specs)
    signature = replace(ModelSignature(inputs=specs, outputs=(), batched=batched), example=example)
    answer = described
    for size in _VARIABLE_SIZES:
        answer = await fetch(
            address,
            f"/v2/models/{name}/infer",
            method="POST",
            headers={"content-type": "application/json"},
            body=encode_document(infer_document(example_inputs(signature, variable=size))),
            timeout_s=_TIMEOUT_S,
        )
        if answer.status != _INTERNAL or not signature.has_variable_size:
            break
    # The model may reject synthetic values, or fail on them. Its metadata was available, so a 404
    # here refers to a synthetic entity.
    is_answer = answer.status in {*_OK, _BAD_REQUEST, _NOT_FOUND, _INTERNAL}
    return answer, is_answer


def _judge(
    answer: FetchResponse, latency_s: float, revisions: tuple[str, ...], *, spoke: bool
) -> FirstRequest:
    is_ok = answer.status in _OK
    message = "" if is_ok else answer.body[:_SHOWN].decode("utf-8", "replace")
    return FirstRequest(
        answered=spoke,
        status=answer.status,
        latency_s=latency_s,
        message=message,
        revisions=revisions,
    )
