"""Which functions does a request go through, from the socket to the runtime and back?

They are not listed by hand: a replica answers a real request over a real socket, and every function
of ours that the interpreter enters meanwhile is on the list, in order.
"""

import ast
import asyncio
import socket
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import orjson
import uvloop

import headrace
from headrace.core import ReplicaSettings
from headrace.observe import ModelStatistics
from headrace.protocol.grpc_codec import frame
from headrace.protocol.protos import message_class
from headrace.scoring.loading import load
from headrace.serving.application import Application
from headrace.serving.server import HttpServer
from headrace.serving.state import ReplicaState
from headrace.testing import models
from scripts.reference.text import cell

SOURCE: Final = Path(headrace.__file__).parent
_MODEL: Final = "digits"
_WARM: Final = 2
_MEASURED: Final = 50
_REPLICAS: Final = 10
_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A function on the way: where it is, how many lines it has, what it says of itself."""

    module: str
    name: str
    lines: int
    says: str


def walk_sections() -> str:
    """The way of an HTTP request as a table, and what differs for gRPC."""
    http, grpc = http_steps(), grpc_steps()
    others = [step for step in grpc if step not in http]
    return "\n".join(
        [
            f"An HTTP request with JSON runs {len(http)} functions with {lines_of(http)} lines:",
            "",
            *_table(http),
            "",
            f"One over gRPC runs {lines_of(grpc)} lines; these differ:",
            "",
            *_table(others),
        ]
    )


@cache
def http_steps() -> list[Step]:
    """The way of a request in V2's JSON."""
    body = {"name": "input", "datatype": "FP32", "shape": [1, 32], "data": [0.5] * 32}
    path = f"/v2/models/{_MODEL}/infer"
    return _run(_request(path, "application/json", orjson.dumps({"inputs": [body]})))


@cache
def grpc_steps() -> list[Step]:
    """The way of a request that the gateway's bridge brings from gRPC."""
    message = message_class("inference.ModelInferRequest")(
        model_name=_MODEL,
        inputs=[{"name": "input", "datatype": "FP32", "shape": [1, 32]}],
        raw_input_contents=[bytes(4 * 32)],
    )
    path = "/inference.GRPCInferenceService/ModelInfer"
    return _run(_request(path, "application/grpc", frame(message.SerializeToString())))


def lines_of(steps: list[Step]) -> int:
    """Lines of all of them together."""
    return sum(step.lines for step in steps)


def _run(request: bytes) -> list[Step]:
    """What answering `request` goes through, on the loop that replicas have.

    A replica that found runs slow when it started, because the machine was busy, hands them to a
    thread: then another one is asked.
    """
    for _ in range(_REPLICAS):
        steps = uvloop.run(_walk(request))
        if any(step.module.startswith("runtimes/") for step in steps):
            return steps
    raise RuntimeError(f"none of {_REPLICAS} replicas ran the model on its event loop")


async def _walk(request: bytes) -> list[Step]:
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        path = Path(folder) / "digits.onnx"
        path.write_bytes(models.mlp())
        uds = str(Path(folder) / "s")
        settings = ReplicaSettings(model_name=_MODEL, model_version="1", path=str(path), uds=uds)
        state = ReplicaState(
            settings=settings, statistics=ModelStatistics(name=_MODEL, version="1")
        )
        application = Application(state, has_repository=False)
        engine = state.serve(loaded := load(settings))
        application.model_loaded()
        server = HttpServer(application, settings)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(uds)
        await server.listen([listener])
        try:
            return await _shortest(uds, request)
        finally:
            await server.drain(timeout_s=1.0)
            await engine.stop(timeout_s=1.0)
            loaded.model.close()


async def _shortest(uds: str, request: bytes) -> list[Step]:
    """The shortest way of many: in others a latency was new, or a timer came between."""
    reader, writer = await asyncio.open_unix_connection(uds)
    walks = []
    for turn in range(_WARM + _MEASURED):
        entered: dict[CodeType, None] = {}
        if turn >= _WARM:
            sys.setprofile(partial(_note, entered))
        try:
            writer.write(request)
            answer = await reader.read(_READ_BYTES)
        finally:
            sys.setprofile(None)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        if turn >= _WARM:
            walks.append(entered)
    writer.close()
    await writer.wait_closed()
    steps = [[step for code in entered if (step := _step(code))] for entered in walks]
    return min(steps, key=len)


def _note(entered: dict[CodeType, None], frame: FrameType, event: str, _: object) -> None:
    if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
        entered[frame.f_code] = None


def _step(code: CodeType) -> Step | None:
    """The function that `code` is of; None for a part of one, such as a comprehension."""
    function = _functions(code.co_filename).get((code.co_name, code.co_firstlineno))
    if function is None:
        return None
    says = (ast.get_docstring(function) or "").partition("\n\n")[0].replace("\n", " ")
    return Step(
        module=str(Path(code.co_filename).relative_to(SOURCE)),
        name=code.co_qualname,
        lines=(function.end_lineno or function.lineno) - function.lineno + 1,
        says=says,
    )


_Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _functions(file: str) -> dict[tuple[str, int], _Function]:
    """A module's functions by name and first line, which is that of a decorator if there is one."""
    found = {}
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, _Function):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found[node.name, first] = node
    return found


def _request(path: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _table(steps: list[Step]) -> list[str]:
    rows = [
        f'| <a href="../../src/headrace/{step.module}">{step.module}</a> | `{step.name}` '
        f"| {step.lines} | {cell(step.says)} |"
        for step in steps
    ]
    return ["| module | function | lines | |", "|---|---|---|---|", *rows]
