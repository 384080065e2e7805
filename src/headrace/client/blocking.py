"""Blocking client: each call blocks until its response or its timeout."""

from collections.abc import Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Self

from headrace.client.answers import Document, ModelMetadata, ServerMetadata
from headrace.client.conversation import Conversation, ResultT, RetryPolicy
from headrace.client.credentials import (
    FilePath,
    KeyFile,
    connection_options,
    parse_target,
    trust_of,
)
from headrace.client.session import ClientSession
from headrace.client.tensors import TensorLike
from headrace.client.wires import blocking_transport, run_blocking, wire_for
from headrace.core import (
    Clock,
    InferResponse,
    ModelSignature,
    Parameters,
    RequestedOutput,
    SystemClock,
)


class Client:
    """Client that calls a gateway or a replica and blocks until it answers.

    One client holds a pool of connections and may be used by any number of threads. Close it, or
    use it in a `with` statement. Responses hold read-only views of the received bytes.

        with Client("http://127.0.0.1:8000") as client:
            response = client.infer("digits", {"pixels": np.zeros((1, 64), np.float32)})
            response.outputs["probabilities"]

    Args:
        url: `http[s]://HOST:PORT`, `grpc[s]://HOST:PORT` or, for HTTP, `unix:/PATH`.
        timeout_s: Timeout of each call, retries and pauses included; None waits forever.
        api_key: API key, or its file; None takes the environment variable `HEADRACE_API_KEY`, if it
            is set.
        token: Bearer token (JWT).
        ca_file: Certificate authorities (PEM) of the server; None takes the machine's.
        client_certificate: Files (PEM) of a client certificate and its key, for mutual TLS.
        server_name: Name that the server's certificate must have; empty for the URL's host.
        allow_insecure: Whether to send credentials to another machine without encryption.
        retry: Retry limits for requests that were not started.
        headers: Headers of every request.
        random: Source of the pauses between retries; pass a seeded one for repeatable runs.

    Raises:
        InvalidArgumentError: `url` is not a server address, the timeout is not positive,
            credentials would be sent unencrypted, or a certificate file cannot be used.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float | None = 60.0,
        api_key: str | KeyFile | None = None,
        token: str | None = None,
        ca_file: FilePath | None = None,
        client_certificate: tuple[FilePath, FilePath] | None = None,
        server_name: str = "",
        allow_insecure: bool = False,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        random: Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        target = parse_target(url)
        self.url = url
        self._session = ClientSession(
            wire_for(target),
            policy=retry or RetryPolicy(),
            timeout_s=timeout_s,
            clock=clock or SystemClock(),
            random=random or Random(),  # noqa: S311  # jitter, no secret
        )
        self._transport = blocking_transport(
            target,
            connection_options(
                target,
                headers=headers,
                api_key=api_key,
                token=token,
                trust=trust_of(ca_file, client_certificate, server_name),
                allow_insecure=allow_insecure,
            ),
        )

    def infer(
        self,
        model: str,
        inputs: Mapping[str, TensorLike],
        *,
        outputs: Sequence[str | RequestedOutput] | None = None,
        version: str = "",
        timeout_s: float | None = None,
        priority: int = 0,
        id: str = "",  # noqa: A002  # the protocol's word
        parameters: Parameters | None = None,
    ) -> InferResponse:
        """Run a model once.

        Arrays are cast to the model's datatype if no value changes. Lists and numbers are always
        cast, with floats rounded; None in a list of floats is a missing value (NaN). More rows than
        one request may have are sent in several requests, one after the other, and returned as one
        response, which names each version that answered. The model's signature is requested once,
        when it is needed; after that, invalid inputs are refused before sending.

        Args:
            inputs: Inputs by name; shapes include the batch axis if the model has one.
            outputs: Outputs to return, in this order; None for all.
            version: Model version; empty leaves the choice to the endpoint's traffic split.
            timeout_s: Timeout instead of the client's; the server gets the remaining time.
            priority: 1 is the highest, 0 the default level.
            id: Request id, which the response repeats.

        Raises:
            InvalidArgumentError: The inputs are invalid.
            UnauthenticatedError: The caller is not authenticated.
            PermissionDeniedError: The caller may not call this model.
            UntrustedServerError: The server's certificate is not trusted.
            ModelNotFoundError: There is no such model or version.
            OverloadedError: The server has no capacity, also after retries.
            UnavailableError: The server could not be reached, or is starting or stopping.
            DeadlineExceededError: There was no response within `timeout_s`.
            ConnectionLostError: The connection broke; the model may or may not have run.
            RuntimeFailedError: The model failed.
        """
        return self._run(
            self._session.infer(
                model,
                inputs,
                outputs=outputs,
                version=version,
                timeout_s=timeout_s,
                priority=priority,
                id=id,
                parameters=parameters,
            )
        )

    def signature(self, model: str, version: str = "") -> ModelSignature:
        """Return the model's signature; from now on inputs are checked before sending."""
        return self._run(self._session.signature(model, version))

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Return the server's metadata of the model."""
        return self._run(self._session.metadata(model, version))

    def config(self, model: str, version: str = "") -> Document:
        """Return the model's configuration, in Triton's form."""
        return self._run(self._session.config(model, version))

    def statistics(self, model: str = "", version: str = "") -> Document:
        """Return the model's counters, in Triton's form; without a name, those of every model."""
        return self._run(self._session.statistics(model, version))

    def server_metadata(self) -> ServerMetadata:
        """Return the server's name, version and protocol extensions."""
        return self._run(self._session.server_metadata())

    def live(self) -> bool:
        """Whether the server answers at all."""
        return self._run(self._session.live())

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the model can answer now; without a name, the whole server."""
        return self._run(self._session.ready(model, version))

    def close(self) -> None:
        """Close the connections; the client must not be used again."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, conversation: Conversation[ResultT]) -> ResultT:
        return run_blocking(conversation, self._transport)
