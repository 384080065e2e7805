"""gRPC server on the same engine for replicas without a gateway; supports streaming."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InferResponse,
    RuntimeFailedError,
)
from headrace.engine import Outcome, Ticket
from headrace.protocol import grpc_status
from headrace.protocol.grpc_codec import GrpcInferCodec
from headrace.protocol.grpc_messages import encode_stream_error, encode_stream_response
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE
from headrace.protocol.reflection import (
    REFLECTION_RPC,
    REFLECTION_SERVICES,
    answer_reflection,
)
from headrace.serving.grpc.bridge import INFER, STREAM_INFER, GrpcApi
from headrace.serving.memory import MemoryTrimmer
from headrace.serving.state import ReplicaState

_log = logging.getLogger(__name__)

_MAX_STREAM_IN_FLIGHT: Final = 64
_STATUS: Final = {code.value[0]: code for code in grpc.StatusCode}


class AwaitedTicket(Ticket):
    """Ticket whose outcome a task awaits."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        super().__init__(received_at=time.monotonic())
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def complete(self, outcome: Outcome) -> None:
        """Wake the waiting task."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class GrpcServer:
    """Server with `grpc.aio` over a replica's engine. `start` once, `stop` once."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self._api = GrpcApi(state, has_repository=True)
        self._codec = GrpcInferCodec(
            state.name,
            state.version,
            state.model.signature,
            max_batch_size=state.max_batch_size,
        )
        limit = state.settings.max_body_bytes
        self._relief = MemoryTrimmer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        unary = {rpc: self._unary(partial(self._api.answer, rpc)) for rpc in self._api.rpcs}
        unary[INFER] = grpc.unary_unary_rpc_method_handler(self._infer)
        unary[STREAM_INFER] = grpc.stream_stream_rpc_method_handler(self._stream)
        health = {"Check": self._unary(self._api.check_health)}
        reflection = {REFLECTION_RPC: grpc.stream_stream_rpc_method_handler(_reflect)}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(INFERENCE_SERVICE, unary),
                grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),
                *(
                    grpc.method_handlers_generic_handler(service, reflection)
                    for service in REFLECTION_SERVICES
                ),
            )
        )

    async def start(self) -> None:
        """Start to listen.

        Raises:
            FailedPreconditionError: The port is not available.
        """
        settings = self._state.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            msg = f"cannot listen on {host} port {settings.grpc_port} for gRPC; choose another port"
            raise FailedPreconditionError(msg) from error
        await self._server.start()
        _log.info("listening for gRPC", extra={"host": host, "port": port})

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting calls; active calls have `timeout_s` to end."""
        await self._server.stop(timeout_s)
        self._relief.stop()

    def _unary(self, answer: Any) -> grpc.RpcMethodHandler:  # noqa: ANN401  # bytes to bytes
        async def handle(message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                return bytes(answer(message))
            except HeadraceError as error:
                return await _abort(context, error)

        return grpc.unary_unary_rpc_method_handler(handle)

    async def _infer(
        self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        left_s = context.time_remaining()
        try:
            return await self._run(message, math.inf if left_s is None else left_s)
        except HeadraceError as error:
            return await _abort(context, error)

    async def _run(self, message: bytes, limit_s: float) -> bytes:
        """Return the serialised response; if cancelled, the request leaves the engine."""
        state = self._state
        ticket = AwaitedTicket()
        self._relief.had(len(message))
        try:
            ticket.request = self._codec.decode(message)
            state.submit(ticket, limit_s)
        except HeadraceError as error:
            state.refused(ticket, error)
            raise
        try:
            outcome = await ticket.outcome
        except asyncio.CancelledError:
            state.model.engine.cancel(ticket)
            raise
        if not isinstance(outcome, InferResponse):
            raise outcome
        return self._codec.encode(outcome, ticket.request)

    async def _stream(
        self,
        messages: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],  # noqa: ARG002  # gRPC's signature
    ) -> AsyncIterator[bytes]:
        """Answer the requests of one stream in order, running them together where possible.

        An error is a message in the stream, as in Triton: it ends one request, not the stream.
        """
        pending: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_MAX_STREAM_IN_FLIGHT)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(messages, pending, tasks))
            while (task := await pending.get()) is not None:
                yield await task

    async def _read(
        self,
        messages: AsyncIterator[bytes],
        pending: "asyncio.Queue[asyncio.Task[bytes] | None]",
        tasks: asyncio.TaskGroup,
    ) -> None:
        async for message in messages:
            await pending.put(tasks.create_task(self._run_in_stream(message)))
        await pending.put(None)

    async def _run_in_stream(self, message: bytes) -> bytes:
        try:
            return encode_stream_response(await self._run(message, math.inf))
        except HeadraceError as error:
            _log_failure(error)
            return encode_stream_error(str(error))


async def _reflect(
    messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
) -> AsyncIterator[bytes]:
    async for message in messages:
        try:
            yield answer_reflection(message)
        except HeadraceError as error:
            await _abort(context, error)


async def _abort(context: grpc.aio.ServicerContext[bytes, bytes], error: HeadraceError) -> bytes:
    _log_failure(error)
    if error.retry_after_s is not None:
        pushback = str(max(1, math.ceil(error.retry_after_s * 1000)))
        context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
    await context.abort(_STATUS[grpc_status(error)], str(error))
    raise AssertionError("abort raises")


def _log_failure(error: HeadraceError) -> None:
    if isinstance(error, RuntimeFailedError):
        _log.error("the model failed", exc_info=error.__cause__)
