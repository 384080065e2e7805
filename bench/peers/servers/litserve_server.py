"""LitServe: one worker process that batches, its ZeroMQ queue, no access log."""

import os
from typing import Any

import litserve as ls
from fastapi import Request

from bench.peers.servers.runtime import Array, Model, max_batch, port, setting

WAIT_S = 0.001


class Infer(ls.LitAPI):
    """Takes a row as JSON."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        del device
        self.model = Model()

    def decode_request(self, request: Request) -> dict[str, Array]:
        """A row without its batch axis; whatever the annotation says, the parsed body comes."""
        return self.model.tensors(request)

    def batch(self, inputs: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Rows of different lengths stay rows until they run."""
        return inputs

    def predict(self, x: Any) -> Any:  # noqa: ANN401  # a list of rows only where it batches
        """A batch of rows, or one row."""
        return self.model.run_rows(x) if isinstance(x, list) else self.model.run_rows([x])[0]

    def unbatch(self, output: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """They are rows already."""
        return output

    def encode_response(self, output: dict[str, Array]) -> dict[str, Any]:
        """JSON."""
        return {name: array.tolist() for name, array in output.items()}


if __name__ == "__main__":
    api = Infer(max_batch_size=max_batch(), batch_timeout=WAIT_S, api_path=f"/{setting('NAME')}")
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=1,
        timeout=60,
        fast_queue=True,
    )
    os.environ.setdefault("LITSERVE_LOG_LEVEL", "WARNING")
    server.run(
        host="127.0.0.1",
        port=port(),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
