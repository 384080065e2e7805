"""What a careful engineer writes with FastAPI: raw body, orjson, the model in the event loop.

No pydantic, no thread pool, no access log; uvloop and httptools under uvicorn.
"""

import sys
from pathlib import Path

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from bench.session import session

DTYPES = {"FP32": np.float32, "INT64": np.int64}


def build(model: Path) -> FastAPI:
    """`POST /v2/models/NAME/infer` with V2 JSON, and `POST /raw` with a picture's bytes."""
    app = FastAPI(openapi_url=None)
    bare = session(model)
    names = [output.name for output in bare.get_outputs()]

    @app.get("/ready")
    async def ready() -> Response:
        return Response()

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        inputs = {
            tensor["name"]: np.array(tensor["data"], DTYPES[tensor["datatype"]]).reshape(
                tensor["shape"]
            )
            for tensor in orjson.loads(await request.body())["inputs"]
        }
        answers = zip(names, bare.run(names, inputs), strict=True)
        outputs = [
            {"name": output, "datatype": "FP32", "shape": array.shape, "data": array.ravel()}
            for output, array in answers
        ]
        body = orjson.dumps(
            {"model_name": name, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        return Response(body, media_type="application/json")

    @app.post("/raw")
    async def infer_raw(request: Request) -> Response:
        (takes,) = bare.get_inputs()
        tensor = np.frombuffer(await request.body(), np.float32).reshape(-1, *takes.shape[1:])
        outputs = dict(zip(names, bare.run(names, {takes.name: tensor}), strict=True))
        body = orjson.dumps(outputs, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")

    return app


def main() -> None:
    """Serve `MODEL` on loopback port `PORT`."""
    model, port = sys.argv[1:]
    uvicorn.run(
        build(Path(model)),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
