"""Small servers of the agent's own. Imported late, as uvicorn is."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from headrace.control.edge import BoundedProtocol

if TYPE_CHECKING:
    from headrace.control.guards import App


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the agent's


def make_server(app: "App", *, stop_s: int) -> uvicorn.Server:
    """A server of plain HTTP, to be given its socket."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=stop_s,
    )
    return _Server(config)
