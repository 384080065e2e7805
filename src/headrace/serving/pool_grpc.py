"""gRPC calls to a pool, as Envoy's bridge carries them: the message names the model."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from headrace.core import (
    ModelNotFoundError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from headrace.protocol import model_statistics, server_metadata
from headrace.protocol.grpc_codec import frame
from headrace.protocol.grpc_messages import (
    encode_health,
    encode_response,
    parse_request,
    rpc_names,
)
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE
from headrace.serving.exchange import GRPC_HEAD, Exchange
from headrace.serving.grpc_api import INFER, STREAM_INFER
from headrace.serving.grpc_bridge import HEALTH_PATH, check_content_type, message_of, named_model
from headrace.serving.hosted import HostedModel
from headrace.serving.pool import Pool
from headrace.serving.routing import Handler

Choose = Callable[[str, str, Exchange], HostedModel | None]

_DESCRIBE: Final = frozenset({"ModelMetadata", "ModelConfig"})
_STATISTICS: Final = "ModelStatistics"
_READY: Final = "ModelReady"


class PoolGrpc:
    """Handlers of the inference service's rpcs: of a model, or about the process."""

    def __init__(self, pool: Pool, choose: Choose, *, has_repository: bool) -> None:
        self._pool = pool
        self._choose = choose
        self._has_repository = has_repository

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """By method and path."""
        service = f"/{INFERENCE_SERVICE}/".encode()
        of_models = {INFER, _READY, _STATISTICS, *_DESCRIBE}
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"POST", service + rpc.encode()): partial(
                self._of_model if rpc in of_models else self._about_the_process, rpc
            )
            for rpc in rpc_names()
            if rpc != STREAM_INFER
        }
        handlers[(b"POST", HEALTH_PATH)] = self._check_health
        return handlers

    def _message(self, exchange: Exchange) -> bytes | bytearray | memoryview:
        return message_of(exchange, self._pool.settings.max_body_bytes)

    def _of_model(self, rpc: str, exchange: Exchange) -> None:
        """Hand a call over to the model that it names."""
        check_content_type(exchange)
        name, version = named_model(self._message(exchange))
        if rpc == _STATISTICS and not name:
            statistics = [model.state.statistics for model in self._pool.models.values()]
            self._send(exchange, rpc, model_statistics(statistics))
            return
        hosted = self._choose(name, version, exchange)
        if hosted is None and rpc == _READY:
            self._send(exchange, rpc, {"ready": False})
        elif hosted is None:
            raise ModelNotFoundError(name[:200], version[:50])
        elif rpc == INFER:
            self._pool.infer(hosted, exchange)
        elif rpc in _DESCRIBE:
            self._pool.describe(hosted, exchange)
        else:
            hosted.application.handle(exchange)

    def _about_the_process(self, rpc: str, exchange: Exchange) -> None:
        check_content_type(exchange)
        match rpc:
            case "ServerLive":
                self._send(exchange, rpc, {"live": True})
            case "ServerReady":
                self._send(exchange, rpc, {"ready": self._pool.is_ready})
            case "ServerMetadata":
                self._send(exchange, rpc, server_metadata(has_model_repository=False))
            case "RepositoryIndex" | "RepositoryModelLoad" | "RepositoryModelUnload":
                msg = "the model repository is managed on the management port"
                raise PermissionDeniedError(msg)
            case _:
                raise UnsupportedError(f"{rpc} is not supported")

    def _send(self, exchange: Exchange, rpc: str, fields: dict[str, Any]) -> None:
        exchange.send_ok(GRPC_HEAD, frame(encode_response(rpc, fields)))

    def _check_health(self, exchange: Exchange) -> None:
        check_content_type(exchange)
        message = bytes(self._message(exchange))
        service = parse_request("Check", message, service=HEALTH_SERVICE).service
        names = {name for name, _ in self._pool.models}
        if service not in {"", INFERENCE_SERVICE, *names}:
            msg = f"unknown service '{service[:200]}'"
            raise NotFoundError(msg)
        exchange.send_ok(GRPC_HEAD, frame(encode_health(serving=self._pool.is_ready)))
