"""State of a client and the sequence of each of its calls, without any waiting or network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import numpy as np

from headrace.client.answers import Document, ModelMetadata, ServerMetadata, signature_from
from headrace.client.conversation import (
    Attempts,
    Conversation,
    ProtocolExchange,
    ResultT,
    RetryBudget,
    RetryPolicy,
)
from headrace.client.tensors import TensorLike, is_exact, to_tensors
from headrace.core import (
    Clock,
    HeadraceError,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    NotFoundError,
    Parameters,
    RequestedOutput,
    RuntimeFailedError,
    Tensors,
    UnavailableError,
    UnsupportedError,
    check_inputs,
    check_name,
    check_version,
)

_BATCH_SIZE: Final = "batch-size must be <="
"""Error text of a server for a request with more rows than a batch, as in Triton."""


class ProtocolWire(Protocol):
    """Messages of a protocol, and decoding of the replies to them."""

    def infer(self, request: InferRequest) -> ProtocolExchange[InferResponse]:
        """Run a model."""

    def metadata(self, model: str, version: str) -> ProtocolExchange[ModelMetadata]:
        """Describe a model."""

    def config(self, model: str, version: str) -> ProtocolExchange[Document]:
        """Return a model's configuration, in Triton's form."""

    def statistics(self, model: str, version: str) -> ProtocolExchange[Document]:
        """Return a model's counters, in Triton's form; those of all models if `model` is empty."""

    def server_metadata(self) -> ProtocolExchange[ServerMetadata]:
        """Describe the server."""

    def live(self) -> ProtocolExchange[bool]:
        """Whether the server runs."""

    def ready(self, model: str, version: str) -> ProtocolExchange[bool]:
        """Whether a model, or the whole server if `model` is empty, can answer."""


class ClientSession:
    """A client's state, and one conversation for each of its methods."""

    def __init__(
        self,
        wire: ProtocolWire,
        *,
        policy: RetryPolicy,
        timeout_s: float | None,
        clock: Clock,
        random: Random,
    ) -> None:
        self._wire = wire
        self._clock = clock
        self._timeout_s = check_timeout(timeout_s)
        self._known: dict[tuple[str, str], _ModelInfo] = {}
        budget = RetryBudget(ratio=policy.budget_ratio, reserve=policy.budget_reserve)
        self._attempts = Attempts(policy=policy, budget=budget, clock=clock, random=random)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, TensorLike],
        *,
        outputs: Sequence[str | RequestedOutput] | None,
        version: str,
        timeout_s: float | None,
        priority: int,
        id: str,  # noqa: A002  # the protocol's word
        parameters: Parameters | None,
    ) -> Conversation[InferResponse]:
        """Check the inputs as far as possible here, then run the model."""
        _check_model(model, version)
        wait_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        deadline = self._deadline(wait_s)

        def request(tensors: Tensors) -> InferRequest:
            return InferRequest(
                model_name=model,
                model_version=version,
                inputs=tensors,
                id=id,
                outputs=tuple(map(_requested, outputs or ())),
                binary_data_output=True,
                priority=priority,
                parameters=parameters,
            )

        model_info = self._known.get((model, version))
        if model_info is None and not all(map(is_exact, inputs.values())):
            model_info = yield from self._learn(model, version, deadline)
        sent: Tensors | None = None
        try:
            sent = _fitted(model, inputs, model_info)
            return (yield from self._run(request, sent, model_info, deadline))
        except InvalidArgumentError as refusal:
            # The model may have changed since: only its current signature may refuse a request.
            if model_info is not None and sent is not None and _BATCH_SIZE not in str(refusal):
                raise
            try:
                latest = yield from self._learn(model, version, deadline)
            except HeadraceError:
                raise refusal from None
            if latest == model_info:
                raise
            tensors = _fitted(model, inputs, latest)
            if sent is not None and not latest.changes(sent, tensors):
                raise
        return (yield from self._run(request, tensors, latest, deadline))

    def signature(self, model: str, version: str) -> Conversation[ModelSignature]:
        """Request the model's signature, and cache it for checks before sending."""
        _check_model(model, version)
        model_info = yield from self._learn(model, version, self._deadline(self._timeout_s))
        return model_info.signature

    def metadata(self, model: str, version: str) -> Conversation[ModelMetadata]:
        """Describe a model."""
        return (yield from self._metadata_request(self._wire.metadata, model, version))

    def config(self, model: str, version: str) -> Conversation[Document]:
        """Return a model's configuration."""
        return (yield from self._metadata_request(self._wire.config, model, version))

    def statistics(self, model: str, version: str) -> Conversation[Document]:
        """Return a model's counters; those of all models if `model` is empty."""
        if not model:
            return (yield from self._ask(self._wire.statistics("", "")))
        return (yield from self._metadata_request(self._wire.statistics, model, version))

    def server_metadata(self) -> Conversation[ServerMetadata]:
        """Describe the server."""
        return (yield from self._ask(self._wire.server_metadata()))

    def live(self) -> Conversation[bool]:
        """Whether the server answers at all; a refused connection means False, not an error."""
        return (yield from self._probe(self._wire.live()))

    def ready(self, model: str, version: str) -> Conversation[bool]:
        """Whether the model (the server, if empty) can answer; an unknown model cannot."""
        if model:
            _check_model(model, version)
        return (yield from self._probe(self._wire.ready(model, version)))

    def _probe(self, exchange: ProtocolExchange[bool]) -> Conversation[bool]:
        # Never retried: a caller that requests readiness needs the current state.
        try:
            deadline = self._deadline(self._timeout_s)
            return (yield from self._attempts.once(exchange, deadline))
        except (UnavailableError, NotFoundError):
            return False

    def _metadata_request(
        self, exchange: Callable[[str, str], ProtocolExchange[ResultT]], model: str, version: str
    ) -> Conversation[ResultT]:
        _check_model(model, version)
        return (yield from self._ask(exchange(model, version)))

    def _ask(self, exchange: ProtocolExchange[ResultT]) -> Conversation[ResultT]:
        return (yield from self._attempts.run(exchange, self._deadline(self._timeout_s)))

    def _run(
        self,
        request: Callable[[Tensors], InferRequest],
        tensors: Tensors,
        model_info: "_ModelInfo | None",
        deadline: float | None,
    ) -> Conversation[InferResponse]:
        """Run the model on all rows, in one request or as many as its batch limit requires."""
        rows, limit = (0, 1) if model_info is None else model_info.rows_and_limit(tensors)
        if rows <= limit:
            return (yield from self._attempts.run(self._wire.infer(request(tensors)), deadline))
        answers: list[InferResponse] = []
        for start in range(0, rows, limit):
            end = min(start + limit, rows)
            part = {name: array[start:end] for name, array in tensors.items()}
            try:
                exchange = self._wire.infer(request(part))
                answers.append((yield from self._attempts.run(exchange, deadline)))
                _check_rows(answers[-1], end - start)
            except HeadraceError as error:
                error.args = (f"rows {start} to {end - 1} of {rows}: {error}",)
                raise
        # Responses to parts of one call are merged; the result names all versions.
        first = answers[0]
        return InferResponse(
            model_name=first.model_name,
            model_version=", ".join(dict.fromkeys(answer.model_version for answer in answers)),
            id=first.id,
            parameters=first.parameters,
            outputs={
                name: np.concatenate([answer.outputs[name] for answer in answers])
                for name in first.outputs
            },
        )

    def _learn(
        self, model: str, version: str, deadline: float | None
    ) -> Conversation["_ModelInfo"]:
        """Request a model's signature and batch limit, and cache them."""
        metadata = yield from self._attempts.run(self._wire.metadata(model, version), deadline)
        config: Document | None
        try:
            config = yield from self._attempts.run(self._wire.config(model, version), deadline)
        except (NotFoundError, UnsupportedError):
            config = None  # an extension that some servers do not implement
        model_info = _ModelInfo(
            signature=signature_from(metadata, config),
            max_batch_size=int((config or {}).get("max_batch_size", 0)),
        )
        self._known[model, version] = model_info
        return model_info

    def _deadline(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self._clock.monotonic() + timeout_s


def check_timeout(timeout_s: float | None) -> float | None:
    """Return `timeout_s` if it is positive; None waits forever."""
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        msg = f"timeout_s must be a positive number of seconds or None, not {timeout_s!r}"
        raise InvalidArgumentError(msg)
    return timeout_s


def _check_model(model: str, version: str) -> None:
    check_name(model)
    if version:
        check_version(version)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelInfo:
    """Signature and batch limit of a model, as reported by the server."""

    signature: ModelSignature
    max_batch_size: int
    """Largest number of rows per request; 0 without batching, or if unknown."""

    def rows_and_limit(self, tensors: Tensors) -> tuple[int, int]:
        """Return the rows of `tensors` and the limit of one request; 0 and 1 without a limit."""
        if not self.signature.batched or not self.max_batch_size:
            return 0, 1
        return len(next(iter(tensors.values()), ())), self.max_batch_size

    def changes(self, before: Tensors, after: Tensors) -> bool:
        """Whether new information about a model changes the form in which inputs are sent."""
        rows, limit = self.rows_and_limit(after)
        return rows > limit or any(after[name].dtype != before[name].dtype for name in after)


def _fitted(model: str, inputs: Mapping[str, TensorLike], model_info: _ModelInfo | None) -> Tensors:
    """Return `inputs` as arrays; if the model is known, with its datatypes and validated."""
    if model_info is None:
        return to_tensors(inputs, None)
    tensors = to_tensors(inputs, model_info.signature)
    check_inputs(model, model_info.signature, tensors)
    return tensors


def _check_rows(answer: InferResponse, rows: int) -> None:
    for name, array in answer.outputs.items():
        if array.shape[:1] != (rows,):
            msg = f"output '{name}' has shape {list(array.shape)}, expected {rows} rows"
            raise RuntimeFailedError(msg)


def _requested(output: str | RequestedOutput) -> RequestedOutput:
    return RequestedOutput(name=output) if isinstance(output, str) else output
