"""What a careful engineer writes with `grpc.aio`: the model in the event loop, raw contents."""

import sys
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tritonclient.grpc import service_pb2

from bench.session import session

DTYPES = {"FP32": np.float32, "INT64": np.int64}
SERVICE = "inference.GRPCInferenceService"


def handler(model: Path) -> grpc.GenericRpcHandler:
    """`ModelInfer`, for messages with raw contents."""
    bare = session(model)
    names = [output.name for output in bare.get_outputs()]

    async def infer(
        request: service_pb2.ModelInferRequest, _context: object
    ) -> service_pb2.ModelInferResponse:
        inputs = {
            tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, array in zip(names, bare.run(names, inputs), strict=True):
            response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    method = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=service_pb2.ModelInferResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method})


async def serve(model: Path, port: int) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(model),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Serve `MODEL` on loopback port `PORT`."""
    model, port = sys.argv[1:]
    uvloop.run(serve(Path(model), int(port)))


if __name__ == "__main__":
    main()
