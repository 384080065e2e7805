"""What a client knows and how each of its calls goes, without any waiting or network."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol

from headrace.client.answers import Document, ModelMetadata, ServerMetadata, signature_from
from headrace.client.conversation import Attempts, Conversation, Exchange, ResultT
from headrace.client.retry import RetryBudget, RetryPolicy
from headrace.client.tensors import TensorLike, is_exact, to_tensors
from headrace.core import (
    Clock,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    NotFoundError,
    Parameters,
    RequestedOutput,
    Tensors,
    UnavailableError,
    UnsupportedError,
    check_inputs,
    check_name,
    check_version,
)


class Wire(Protocol):
    """A protocol's messages, and how to read the replies to them."""

    def infer(self, request: InferRequest) -> Exchange[InferResponse]:
        """Run a model."""

    def metadata(self, model: str, version: str) -> Exchange[ModelMetadata]:
        """Describe a model."""

    def config(self, model: str, version: str) -> Exchange[Document]:
        """A model's configuration, as Triton writes it."""

    def statistics(self, model: str, version: str) -> Exchange[Document]:
        """A model's counters, as Triton writes them; of all models if `model` is empty."""

    def server_metadata(self) -> Exchange[ServerMetadata]:
        """Describe the server."""

    def live(self) -> Exchange[bool]:
        """Whether the server runs."""

    def ready(self, model: str, version: str) -> Exchange[bool]:
        """Whether a model, or the whole server if `model` is empty, can answer."""


class Session:
    """A client's state, and one conversation for each of its methods."""

    def __init__(
        self,
        wire: Wire,
        *,
        policy: RetryPolicy,
        timeout_s: float | None,
        clock: Clock,
        random: Random,
    ) -> None:
        self._wire = wire
        self._clock = clock
        self._timeout_s = check_timeout(timeout_s)
        self._signatures: dict[tuple[str, str], ModelSignature] = {}
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
        """Check the inputs as far as they can be checked here, then run the model."""
        _check_model(model, version)
        wait_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        deadline = self._deadline(wait_s)
        tensors = yield from self._tensors(model, version, inputs, deadline)
        request = InferRequest(
            model_name=model,
            model_version=version,
            inputs=tensors,
            id=id,
            outputs=tuple(map(_requested, outputs or ())),
            binary_data_output=True,
            priority=priority,
            parameters=parameters,
        )
        return (yield from self._attempts.run(self._wire.infer(request), deadline))

    def signature(self, model: str, version: str) -> Conversation[ModelSignature]:
        """Ask what the model takes and gives, and remember it for checks before sending."""
        _check_model(model, version)
        return (yield from self._fetch_signature(model, version, self._deadline(self._timeout_s)))

    def metadata(self, model: str, version: str) -> Conversation[ModelMetadata]:
        """Describe a model."""
        return (yield from self._ask_about(self._wire.metadata, model, version))

    def config(self, model: str, version: str) -> Conversation[Document]:
        """A model's configuration."""
        return (yield from self._ask_about(self._wire.config, model, version))

    def statistics(self, model: str, version: str) -> Conversation[Document]:
        """A model's counters; of all models if `model` is empty."""
        if not model:
            return (yield from self._ask(self._wire.statistics("", "")))
        return (yield from self._ask_about(self._wire.statistics, model, version))

    def server_metadata(self) -> Conversation[ServerMetadata]:
        """Describe the server."""
        return (yield from self._ask(self._wire.server_metadata()))

    def live(self) -> Conversation[bool]:
        """Whether the server answers at all; a refused connection is a no, not an error."""
        return (yield from self._probe(self._wire.live()))

    def ready(self, model: str, version: str) -> Conversation[bool]:
        """Whether the model (the server, if empty) can answer; an unknown model cannot."""
        if model:
            _check_model(model, version)
        return (yield from self._probe(self._wire.ready(model, version)))

    def _probe(self, exchange: Exchange[bool]) -> Conversation[bool]:
        # Never repeated: whoever asks for readiness wants to know it now.
        try:
            deadline = self._deadline(self._timeout_s)
            return (yield from self._attempts.once(exchange, deadline))
        except (UnavailableError, NotFoundError):
            return False

    def _ask_about(
        self, exchange: Callable[[str, str], Exchange[ResultT]], model: str, version: str
    ) -> Conversation[ResultT]:
        _check_model(model, version)
        return (yield from self._ask(exchange(model, version)))

    def _ask(self, exchange: Exchange[ResultT]) -> Conversation[ResultT]:
        return (yield from self._attempts.run(exchange, self._deadline(self._timeout_s)))

    def _tensors(
        self, model: str, version: str, inputs: Mapping[str, TensorLike], deadline: float | None
    ) -> Conversation[Tensors]:
        """`inputs` as arrays, checked if the signature is known; lists need it, so it is asked."""
        known = self._signatures.get((model, version))
        if known is None and all(map(is_exact, inputs.values())):
            return to_tensors(inputs, None)
        if known is not None:
            try:
                return _checked(model, inputs, known)
            except InvalidArgumentError:
                # The model may have changed since; only what it says now may refuse a request.
                pass
        return _checked(model, inputs, (yield from self._fetch_signature(model, version, deadline)))

    def _fetch_signature(
        self, model: str, version: str, deadline: float | None
    ) -> Conversation[ModelSignature]:
        metadata = yield from self._attempts.run(self._wire.metadata(model, version), deadline)
        config: Document | None
        try:
            config = yield from self._attempts.run(self._wire.config(model, version), deadline)
        except (NotFoundError, UnsupportedError):
            config = None  # an extension that other servers of the protocol lack
        signature = signature_from(metadata, config)
        self._signatures[model, version] = signature
        return signature

    def _deadline(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self._clock.monotonic() + timeout_s


def check_timeout(timeout_s: float | None) -> float | None:
    """`timeout_s`, if it is positive; None waits for ever."""
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        msg = f"timeout_s must be a positive number of seconds or None, not {timeout_s!r}"
        raise InvalidArgumentError(msg)
    return timeout_s


def _check_model(model: str, version: str) -> None:
    check_name(model)
    if version:
        check_version(version)


def _checked(model: str, inputs: Mapping[str, TensorLike], signature: ModelSignature) -> Tensors:
    tensors = to_tensors(inputs, signature)
    check_inputs(model, signature, tensors)
    return tensors


def _requested(output: str | RequestedOutput) -> RequestedOutput:
    return RequestedOutput(name=output) if isinstance(output, str) else output
