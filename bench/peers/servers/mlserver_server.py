"""MLServer: V2 over HTTP and gRPC with adaptive batching, the model in the server's own process."""

import asyncio
from typing import Any

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from bench.peers.servers.runtime import Model, max_batch, port, setting

WAIT_S = 0.001


class Infer(MLModel):
    """Its own codecs between V2 and NumPy."""

    async def load(self) -> bool:
        """Load the model."""
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Whole tensors."""
        given = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        answers = self.model.run(given)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in answers.items()]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)


def batching() -> dict[str, Any]:
    """Its batches join tensors, so they must be of one length: off where they are not."""
    if max_batch() == 1:
        return {}
    return {"max_batch_size": max_batch(), "max_batch_time": WAIT_S}


async def main() -> None:
    """Serve until killed."""
    settings = Settings(
        host="127.0.0.1",
        http_port=port(),
        grpc_port=int(setting("GRPC_PORT")),
        metrics_port=int(setting("METRICS_PORT")),
        parallel_workers=0,
        debug=False,
        logging_settings={"version": 1, "root": {"level": "WARNING"}},
        environments_dir=setting("HOME"),
        metrics_dir=setting("HOME"),
    )
    server = MLServer(settings)
    model = ModelSettings(
        name=setting("NAME"),
        implementation=Infer,
        parameters=ModelParameters(version="1"),
        **batching(),
    )
    await server.start(models_settings=[model])


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    asyncio.run(main())
