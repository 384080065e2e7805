"""How does uvicorn tell whose certificate it was shown? Imported late, as uvicorn is."""

import contextlib
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from headrace.control.agents.server import AGENT, UNTIL
from headrace.control.agents.tls import agent_name, expires_at
from headrace.control.edge import BoundedProtocol

if TYPE_CHECKING:
    from headrace.control.guards import App


class AgentProtocol(BoundedProtocol):
    """HTTP/1.1 that tells the application whom the certificate names."""

    def on_headers_complete(self) -> None:
        """The application begins after this."""
        secure = self.transport.get_extra_info("ssl_object")
        certificate = (None if secure is None else secure.getpeercert()) or {}
        told = {AGENT: agent_name(certificate), UNTIL: expires_at(certificate)}
        self.scope.update(told)  # type: ignore[typeddict-item]  # keys of ours
        super().on_headers_complete()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the control plane's


def make_server(app: "App", context: ssl.SSLContext, *, stop_s: int) -> uvicorn.Server:
    """A server for agents, to be given its socket."""
    config = uvicorn.Config(
        app,
        http=AgentProtocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=stop_s,
        timeout_keep_alive=60,
    )
    config.load()
    config.ssl = context
    return _Server(config)
