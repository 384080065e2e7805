"""TorchServe: a handler that takes the server's batch of bodies, each one row."""

from typing import Any

import orjson

from bench.peers.servers.runtime import Model


class Handler:
    """Bodies are JSON (parsed by TorchServe already, or bytes), or the bytes of one tensor."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401  # TorchServe's
        """Load the model."""
        del context
        self.model = Model()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:  # noqa: ANN401
        """An answer for each body."""
        del context
        rows = [self._row(one.get("body") or one.get("data")) for one in data]
        return [
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
            for answer in self.model.run_rows(rows)
        ]

    def _row(self, body: Any) -> Any:  # noqa: ANN401  # JSON
        if isinstance(body, dict):
            return self.model.tensors(body)
        body = bytes(body)
        is_json = body[:1] == b"{"
        return self.model.tensors(orjson.loads(body)) if is_json else self.model.raw(body)
