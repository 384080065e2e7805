"""Scorer that calls an endpoint through its gateway."""

from collections.abc import Sequence
from pathlib import Path

from headrace.client import NO_RETRIES, Client, ConnectionLostError
from headrace.core import (
    Code,
    FailedPreconditionError,
    HeadraceError,
    ModelSignature,
    Tensors,
    UnavailableError,
    error_kind,
)
from headrace.engine import ServiceTimes
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer
from headrace.streaming.settings import ScoringEndpoint

_ENDPOINT_ERRORS = frozenset(
    {
        Code.NOT_FOUND,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.UNIMPLEMENTED,
        Code.CANCELLED,
    }
)
"""Errors that need a fix at the endpoint: they are not caused by records."""


class EndpointModel:
    """Model whose runs are calls of an endpoint. The stream retries, so the client does not."""

    concurrent = True

    def __init__(self, client: Client, settings: ScoringEndpoint) -> None:
        self._client = client
        self._settings = settings
        self.signature: ModelSignature = client.signature(settings.name, settings.version)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Return the endpoint's outputs; see `Model.run`.

        Raises:
            UnavailableError: The endpoint is unavailable, or refuses these credentials.
        """
        try:
            response = self._client.infer(
                self._settings.name, inputs, outputs=outputs, version=self._settings.version
            )
        except ConnectionLostError as error:  # a run has no side effects, so it may be retried
            raise UnavailableError(str(error)) from error
        except HeadraceError as error:
            if error.code in _ENDPOINT_ERRORS:
                msg = f"endpoint '{self._settings.name}': {error}"
                raise UnavailableError(msg) from error
            raise
        return response.outputs

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def endpoint_scorer(settings: ScoringEndpoint, *, max_batch_size: int) -> Scorer:
    """Return a scorer that calls an endpoint, after reading the endpoint's signature.

    Raises:
        FailedPreconditionError: A credentials file cannot be read.
        HeadraceError: The endpoint cannot be reached.
    """
    client = Client(
        settings.url,
        timeout_s=settings.timeout_s,
        api_key=_read(settings.api_key_file) if settings.api_key_file else None,
        ca_file=settings.ca_file or None,
        retry=NO_RETRIES,
    )
    try:
        model = EndpointModel(client, settings)
    except HeadraceError:
        client.close()
        raise
    loaded = LoadedModel(
        model=model,
        runtime="endpoint",
        signature=model.signature,
        times=ServiceTimes(max_batch_size=max_batch_size),
        plan=None,
    )
    return Scorer(loaded, name=settings.name, version=settings.version)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the API key in {file}: {error_kind(error)}"
        raise FailedPreconditionError(msg) from None
