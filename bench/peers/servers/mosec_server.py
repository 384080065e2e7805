"""mosec: one worker process that batches, orjson both ways, the shortest wait that it takes."""

from typing import Any

import orjson
from mosec import Runtime, Server, Worker

from bench.peers.servers.runtime import Array, Model, max_batch, setting

WAIT_MS = 1
"""Nothing shorter is allowed."""


class Infer(Worker):
    """Takes a row as JSON, or the bytes of one tensor."""

    def __init__(self) -> None:
        self.model = Model()

    def deserialize(self, data: bytes) -> dict[str, Array]:
        """A row without its batch axis."""
        if data[:1] == b"{":
            return self.model.tensors(orjson.loads(data))
        return self.model.raw(data)

    def serialize(self, data: dict[str, Array]) -> bytes:
        """JSON."""
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: Any) -> Any:  # noqa: ANN401  # a list of rows only where it batches
        """A batch of rows, or one row."""
        if isinstance(data, list):
            return self.model.run_rows(data)
        return self.model.run_rows([data])[0]


if __name__ == "__main__":
    server = Server()
    batching = {"max_batch_size": max_batch(), "max_wait_time": WAIT_MS} if max_batch() > 1 else {}
    server.register_runtime({f"/{setting('NAME')}": [Runtime(Infer, num=1, **batching)]})
    server.run()
