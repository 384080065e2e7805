"""Weights of the servers of an upstream, by the requests that wait in them.

Names of the metrics: the documentation of vLLM, SGLang, TGI and llama.cpp.
"""

import asyncio
import math
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from headrace.core import HeadraceError
from headrace.core.fetch import fetch
from headrace.gateway import EndpointRoute, RevisionTarget
from headrace.gateway.clusters import servers_file, weighted_servers
from headrace.gateway.publisher import write_document
from headrace.gateway.settings import UpstreamUrl, parse_url
from headrace.gateway.snapshot import make_document, servers_kind

POLL_INTERVAL_S: Final = 1.0
_SEARCH_EVERY: Final = 10
"""Polls between two reads of an upstream that has no weights yet."""
_HALVINGS: Final = 3
_TIMEOUT_S: Final = 0.5
_LIMIT_BYTES: Final = 2 << 20
_OK: Final = 200
_QUEUES: Final = re.compile(
    rb"^(?:vllm:num_requests_waiting|sglang:num_queue_reqs|tgi_queue_size"
    rb"|llamacpp:requests_deferred)(?:\{.*\})? +(\S+)",
    re.MULTILINE,
)


def waiting_requests(metrics: bytes) -> float | None:
    """Return the requests that wait in a server's engines, from its metrics in Prometheus' format.

    None if they have no queue, or one whose length is not a number from 0.
    """
    try:
        counts = [float(count) for count in _QUEUES.findall(metrics)]
    except ValueError:
        return None
    return sum(counts) if counts and all(0 <= count < math.inf for count in counts) else None


def weights_of(waiting: Mapping[str, float]) -> dict[str, int]:
    """Return the weights of servers, 1 to 8: half for each time that a queue is twice the shortest.

    Queues below 2 requests count as equal.
    """
    levels = {address: int(count / 2).bit_length() for address, count in waiting.items()}
    shortest = min(levels.values())
    return {a: 1 << max(_HALVINGS - level + shortest, 0) for a, level in levels.items()}


async def resolve_host(host: str) -> Collection[str]:
    """Return the IP addresses of `host`; none if it cannot be resolved."""
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return sorted({str(address[0]) for *_, address in entries})


@dataclass(slots=True, kw_only=True)
class ServerWeights:
    """Servers of a gateway's upstreams and their weights, in files that Envoy watches.

    An upstream has a file once its name has several addresses and a server reports its queue.
    """

    directory: Path
    """Directory of Envoy's files."""
    resolve: Callable[[str], Awaitable[Collection[str]]] = resolve_host
    _waiting: dict[str, dict[str, float]] = field(default_factory=dict)
    """Moving averages of the waiting requests, by file and address."""
    _versions: dict[str, str] = field(default_factory=dict)
    """Versions of the written files."""
    _polls: int = 0

    def weighted_route(self, route: EndpointRoute) -> EndpointRoute:
        """Return `route` with the files of its upstreams."""
        files = ((arm, servers_file(route.name, arm)) for arm in route.arms)
        arms = [
            replace(arm, servers_file=file) if file and (self.directory / file).exists() else arm
            for arm, file in files
        ]
        return replace(route, arms=tuple(arms))

    async def poll(self, routes: Iterable[EndpointRoute]) -> bool:
        """Read all queues and write changed weights; return whether an upstream got its file.

        Args:
            routes: Routes that may be in force; files of other upstreams are removed.

        Raises:
            GatewayUnavailableError: A file cannot be written.
        """
        arms = {
            servers_file(route.name, arm): (route, arm) for route in routes for arm in route.arms
        }
        if self._polls % _SEARCH_EVERY == 0:
            for path in self.directory.glob("servers.*.json"):
                if path.name not in arms:
                    path.unlink()
        results = await asyncio.gather(*(self._weigh(file, *arms[file]) for file in arms if file))
        self._polls += 1
        return any(results)

    async def _weigh(self, file: str, route: EndpointRoute, arm: RevisionTarget) -> bool:
        is_new = not (self.directory / file).exists()
        if arm.upstream is None or (is_new and self._polls % _SEARCH_EVERY):
            return False
        server = parse_url(arm.upstream.url)
        addresses = await self.resolve(server.host)
        counts = await asyncio.gather(*(_ask(address, server) for address in addresses))
        queues = [count for count in counts if count is not None]
        if not addresses or (is_new and (len(addresses) == 1 or not queues)):
            return False
        shortest, before = min(queues, default=0.0), self._waiting.get(file, {})
        self._waiting[file] = waiting = {}
        for address, count in zip(addresses, counts, strict=True):
            newest = shortest if count is None else count
            waiting[address] = (before.get(address, newest) + newest) / 2
        servers = weighted_servers(route.name, arm, weights_of(waiting))
        document = make_document(servers_kind(file), [servers])
        if self._versions.get(file) != document.version:
            await asyncio.to_thread(write_document, self.directory, servers_kind(file), document)
            self._versions[file] = document.version
        return is_new


async def _ask(address: str, server: UpstreamUrl) -> float | None:
    """Return the requests that wait in one server; None if it does not tell."""
    try:
        answer = await fetch(
            f"[{address}]:{server.port}",
            "/metrics",
            timeout_s=_TIMEOUT_S,
            headers={"host": server.authority},
            limit_bytes=_LIMIT_BYTES,
        )
    except HeadraceError:
        return None
    return waiting_requests(answer.body) if answer.status == _OK else None
