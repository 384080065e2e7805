"""Ray Serve: one replica that batches, behind its HTTP proxy, with its own flag for throughput."""

import asyncio
import logging
import signal
from typing import Any

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from bench.peers.servers.runtime import Array, Model, max_batch, port, setting

WAIT_S = 0.001


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=4096,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
class Infer:
    """Takes a row as JSON, or the bytes of one tensor."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=max_batch(), batch_wait_timeout_s=WAIT_S)
    async def run(self, rows: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """A batch of rows."""
        return self.model.run_rows(rows)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        if request.method == "GET":
            return Response()
        body = await request.body()
        is_json = body[:1] == b"{"
        row = self.model.tensors(orjson.loads(body)) if is_json else self.model.raw(body)
        answer: Any = await self.run(row) if max_batch() > 1 else self.model.run_rows([row])[0]
        text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(text, media_type="application/json")


async def wait_for_the_end() -> None:
    """Until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=setting("HOME"),
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": port()},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Infer.bind(), name="app", route_prefix=f"/{setting('NAME')}")
    asyncio.run(wait_for_the_end())
    serve.shutdown()
    ray.shutdown()
