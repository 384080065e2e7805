"""What each rpc but `ModelInfer` answers, whichever way the call came in."""

from typing import TYPE_CHECKING, Any, Final

from headrace.core import (
    ModelNotFoundError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)
from headrace.protocol import (
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from headrace.protocol.grpc_messages import (
    encode_health,
    encode_response,
    parse_request,
    rpc_names,
)
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE
from headrace.serving.state import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

Fields = dict[str, Any]

INFER: Final = "ModelInfer"
STREAM_INFER: Final = "ModelStreamInfer"
_SHARED_MEMORY: Final = "Client shared memory is not supported: send tensors in the request."


class GrpcApi:
    """Answers unary calls about a replica and its model; `has_repository` as in `V2Api`."""

    def __init__(self, state: ReplicaState, *, has_repository: bool) -> None:
        self._state = state
        self._has_repository = has_repository
        self._answers: dict[str, Callable[[Any], Fields]] = {
            "ServerLive": lambda _request: {"live": True},
            "ServerReady": lambda _request: {"ready": state.is_ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _request: server_metadata(has_model_repository=has_repository),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load_or_unload,
            "RepositoryModelUnload": self._load_or_unload,
        }

    @property
    def rpcs(self) -> list[str]:
        """Every unary rpc but `ModelInfer`, also those that are refused as unsupported."""
        return [name for name in rpc_names() if name not in {INFER, STREAM_INFER}]

    def answer(self, rpc: str, message: bytes) -> bytes:
        """The serialised answer to a call of the inference service.

        Raises:
            HeadraceError: What the caller gets as a gRPC status.
        """
        answer = self._answers.get(rpc)
        if answer is None:
            raise UnsupportedError(_SHARED_MEMORY if "Memory" in rpc else f"{rpc} is not supported")
        return encode_response(rpc, answer(parse_request(rpc, message)))

    def check_health(self, message: bytes) -> bytes:
        """grpc.health.v1: of the server with an empty service, of the inference service by name."""
        service = parse_request("Check", message, service=HEALTH_SERVICE).service
        if service not in {"", INFERENCE_SERVICE, self._state.name}:
            msg = f"unknown service '{service[:200]}'"
            raise NotFoundError(msg)
        return encode_health(serving=self._state.is_ready)

    def check_model(self, name: str, version: str) -> None:
        """Let pass only what names this replica's model.

        Raises:
            ModelNotFoundError: It is another model or version.
        """
        state = self._state
        if name != state.name or version not in {"", state.version}:
            raise ModelNotFoundError(name[:200], version[:50] if name == state.name else "")

    def _model_ready(self, request: Any) -> Fields:  # noqa: ANN401  # a generated class
        state = self._state
        is_this = request.name == state.name and request.version in {"", state.version}
        return {"ready": is_this and state.is_ready}

    def _model_metadata(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        self.check_model(request.name, request.version)
        state = self._state
        described = state.description
        return model_metadata(
            state.name, [state.version], described.signature, runtime=described.runtime
        )

    def _model_config(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        self.check_model(request.name, request.version)
        return {"config": self._state.config()}

    def _model_statistics(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        if request.name:
            self.check_model(request.name, request.version)
        return model_statistics([self._state.statistics])

    def _repository_index(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        self._check_repository()
        return {"models": repository_index([self._state.index_entry()], ready=request.ready)}

    def _load_or_unload(self, _request: Any) -> Fields:  # noqa: ANN401  # as above
        self._check_repository()
        msg = "explicit model load / unload is not allowed: this replica serves one model"
        raise UnavailableError(msg, retry_after_s=None)

    def _check_repository(self) -> None:
        if not self._has_repository:
            msg = "the model repository is managed on the management port"
            raise PermissionDeniedError(msg)
