"""Cluster and kubelet in a thread, so that tests use them from any loop, or without one."""

import asyncio
import concurrent.futures
import contextlib
import signal
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from scripts.kube_server import build
from tests.kube_server.cluster import READY_WITHIN_S, Cluster, LabError, Network, why_not
from tests.kube_server.kubelet import Kubelet

_T = TypeVar("_T")
_LONGEST_CALL_S: Final = 2 * READY_WITHIN_S


@dataclass(slots=True)
class Lab:
    """Cluster that runs, and its kubelet, in the loop of another thread."""

    cluster: Cluster
    kubelet: Kubelet
    loop: asyncio.AbstractEventLoop

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of a method of the cluster or the kubelet; the caller waits."""
        return self._submit(coroutine).result(_LONGEST_CALL_S)

    async def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return what `run` does, to a loop that goes on meanwhile."""
        return await asyncio.wrap_future(self._submit(coroutine))

    def _submit(self, coroutine: Coroutine[Any, Any, _T]) -> "concurrent.futures.Future[_T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


@contextlib.contextmanager
def start_lab(
    programs: Path,
    *,
    nodes: int = 3,
    is_fake: bool = True,
    flags: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Lab]:
    """Run a cluster with nodes, for as long as the block runs.

    Args:
        flags: More flags of the programs, by program.
    """
    started: concurrent.futures.Future[Lab] = concurrent.futures.Future()
    stopping = asyncio.Event()

    async def main(folder: Path) -> None:
        try:
            network = await Network.claim()
            own = {part: list(more) for part, more in (flags or {}).items()}
            async with Cluster(programs, folder, network, own) as cluster:
                names = tuple(f"node-{number}" for number in range(nodes))
                kubelet = Kubelet(cluster, names, folder / "pods", is_fake)
                running = asyncio.create_task(kubelet.run())
                started.set_result(Lab(cluster, kubelet, asyncio.get_running_loop()))
                stopped = asyncio.create_task(stopping.wait())
                await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
                running.cancel()
                await asyncio.wait({running, stopped})
                if not running.cancelled():
                    running.result()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    with tempfile.TemporaryDirectory(prefix="hr-kube-", ignore_cleanup_errors=True) as directory:
        thread = threading.Thread(target=lambda: asyncio.run(main(Path(directory))))
        thread.start()
        try:
            yield started.result()
        finally:
            if started.exception() is None:
                started.result().loop.call_soon_threadsafe(stopping.set)
            thread.join()


def serve(*, nodes: int, is_fake: bool, say: Callable[[str], None]) -> None:
    """Run a cluster until SIGINT or SIGTERM, and say how to use it."""
    if reason := why_not():
        raise LabError(reason)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    with start_lab(build(), nodes=nodes, is_fake=is_fake) as lab:
        cluster = lab.cluster
        say(f"the API server is {cluster.url}; pods are {'fake' if is_fake else 'processes'}")
        say(f"export KUBECONFIG={cluster.kubeconfig} PATH={cluster.programs}:$PATH")
        say("kubectl get nodes; Ctrl-C ends all of it")
        ending.wait()
