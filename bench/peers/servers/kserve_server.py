"""KServe's Python server: V2 over HTTP (JSON and binary) and gRPC, the model in its event loop.

It does not batch. It listens on every interface unless told otherwise; the access log is off.
"""

import logging
from typing import Any

import uvicorn
from grpc import aio
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid

from bench.peers.servers import runtime

DATATYPES = {"float32": "FP32", "int64": "INT64"}


class Infer(Model):
    """Tensors in, tensors out."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = runtime.Model()
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """A good citizen of its event loop only for small models, as everywhere on one core."""
        del headers, response_headers
        given = {one.name: one.as_numpy() for one in payload.inputs}
        outputs = []
        for name, array in self.model.run(given).items():
            output = InferOutput(name, list(array.shape), DATATYPES[array.dtype.name])
            output.set_data_from_numpy(array, binary_data=bool(payload.use_binary_outputs))
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=outputs,
        )


class LoopbackConfig(uvicorn.Config):
    """KServe listens on every interface and takes no address."""

    def __init__(self, app: Any, **settings: Any) -> None:  # noqa: ANN401  # uvicorn's
        super().__init__(app, **{**settings, "host": "127.0.0.1", "access_log": False})


def loopback_grpc(*arguments: Any, **settings: Any) -> aio.Server:  # noqa: ANN401  # grpc's
    """The same of its gRPC server."""
    server = original_grpc(*arguments, **settings)
    add = server.add_insecure_port
    server.add_insecure_port = lambda address: add(address.replace("[::]", "127.0.0.1"))
    return server


original_grpc = aio.server

if __name__ == "__main__":
    uvicorn.Config = LoopbackConfig
    aio.server = loopback_grpc
    server = ModelServer(
        http_port=runtime.port(),
        grpc_port=int(runtime.setting("GRPC_PORT")),
        workers=1,
        enable_docs_url=False,
        enable_latency_logging=False,
    )
    logging.disable(logging.INFO)  # a line per request, and its timings
    server.start([Infer(runtime.setting("NAME"))])
