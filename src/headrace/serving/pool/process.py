"""Process of one pool copy: fetch, bind, load the assigned models, drain.

No download runs in the process that serves.
"""

import asyncio
import gc
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from headrace.core import (
    ArtifactsSettings,
    DeadlineExceededError,
    HeadraceError,
    InvalidArgumentError,
    PoolReplicaSettings,
    ReplicaSettings,
    UnavailableError,
)
from headrace.core.processes import run
from headrace.runtimes.libraries import keep_frameworks_apart
from headrace.serving.application import MetricsApplication
from headrace.serving.loader import ThreadLoader
from headrace.serving.pool.application import PoolApplication
from headrace.serving.pool.load_check import LoadCheckServer
from headrace.serving.pool.pool import ModelPool
from headrace.serving.replica import EXIT_CANNOT_LISTEN, listen, stop_event

MAX_FETCHES: Final = 2
"""Artifacts that are fetched at once; further ones wait for their turn."""
FETCH_TIMEOUT_S: Final = 600.0
"""As long as a pod of one model may take for it."""
_GRACE_S: Final = 15.0
"""It ends by itself in time, or this much later at the latest."""
_COMMAND: Final = (sys.executable, "-m", "headrace.cli", "models", "fetch")
_STORED: Final = re.compile(r"sha256/(?P<digest>[0-9a-f]{64})/(?P<file>[^/]+)")
_MOST_SAID: Final = 500


class SharedFetcher:
    """Has artifacts of a shared store on this machine, each once.

    What was fetched by an earlier process of this directory is checked again, not fetched again.
    """

    def __init__(
        self,
        artifacts: ArtifactsSettings,
        *,
        command: Sequence[str] = _COMMAND,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self._artifacts = artifacts
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._there: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._turn = asyncio.Semaphore(MAX_FETCHES)

    async def have(self, settings: ReplicaSettings) -> ReplicaSettings:
        """`settings` with the path at which the model lies now; cancelled, it is not fetched.

        Raises:
            InvalidArgumentError: The path that was told is none of a stored artifact.
            UnavailableError: It cannot be fetched; the text says why.
            DeadlineExceededError: It was not there in time.
        """
        # The digest and the file of a stored artifact's path.
        path = settings.path
        match = _STORED.fullmatch(path)
        if match is None or match["file"] in {".", ".."}:
            raise InvalidArgumentError(
                f"{path[:200]!r} is not a path sha256/DIGEST/FILE of a shared store: only "
                "those are fetched"
            )
        digest, file = match["digest"], match["file"]
        directory = self._directory(digest)
        async with self._locks.setdefault(digest, asyncio.Lock()):
            if digest not in self._there:
                async with self._turn:
                    await self._fetch(digest, directory)
                self._there.add(digest)
        return msgspec.structs.replace(settings, path=str(directory / file))

    async def forget(self, path: str, *, in_use: Callable[[], Iterable[str]]) -> None:
        """Delete what was fetched for `path`, unless another model is of the same artifact.

        Args:
            in_use: The paths of all models that are hosted, as they were told.
        """
        match = _STORED.fullmatch(path)
        if match is None:
            return
        digest = match["digest"]
        async with self._locks.setdefault(digest, asyncio.Lock()):
            if not any(digest in other for other in in_use()):
                self._there.discard(digest)
                await asyncio.to_thread(shutil.rmtree, self._directory(digest), ignore_errors=True)

    def _directory(self, digest: str) -> Path:
        return Path(self._artifacts.directory, "sha256", digest)

    async def _fetch(self, digest: str, directory: Path) -> None:
        options = (f"--output={directory}", f"--timeout-s={self._timeout_s:g}")
        ended = await run(
            (*self._command, f"sha256:{digest}", *options),
            timeout_s=self._timeout_s + min(_GRACE_S, self._timeout_s),
            environment={**os.environ, "HEADRACE_ARTIFACTS": self._artifacts.url},
        )
        if ended.exceeded is not None:
            message = f"its files did not arrive within {self._timeout_s:g} s"
            raise DeadlineExceededError(message)
        if ended.status:
            last = ended.error.rpartition("\n")[2].strip().removeprefix("headrace: ")
            why = last[:_MOST_SAID] or f"exit status {ended.status}"
            raise UnavailableError(f"its files cannot be fetched: {why}")


_log = logging.getLogger(__name__)
_SWITCH_S: Final = 0.0005
"""How long code that computes in Python, such as a model that is being imported, keeps the event
loop waiting; Python's own 5 ms would be seen in the p99 of all other models."""


def run_pool(settings: PoolReplicaSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The process's exit status: 0 after a drain, or `EXIT_CANNOT_LISTEN`.
    """
    keep_frameworks_apart()  # also where a model's own code imports one
    try:
        return uvloop.run(_serve(settings))
    except KeyboardInterrupt:
        return 130


async def _serve(settings: PoolReplicaSettings) -> int:
    trials = LoadCheckServer()
    stop = stop_event()
    artifacts = settings.artifacts
    fetcher = SharedFetcher(artifacts) if isinstance(artifacts, ArtifactsSettings) else None
    try:
        async with ModelPool(
            settings, trial=trials, loader=ThreadLoader(), fetcher=fetcher
        ) as pool:
            application = PoolApplication(pool, has_repository=settings.port is not None)
            metrics = MetricsApplication(application.metrics)
            try:
                servers = await listen(settings, application, metrics)
            except HeadraceError as error:
                _log.error("%s", error)  # the message says it all
                return EXIT_CANNOT_LISTEN
            sys.setswitchinterval(_SWITCH_S)
            gc.freeze()  # what is here stays; models come and go
            _log.info("listening", extra={"pool": settings.name})
            await stop.wait()
            _log.info("draining", extra={"pool": settings.name})
            timeout_s = settings.drain_timeout_s
            pool.is_draining = True
            await asyncio.gather(*(server.drain(timeout_s=timeout_s) for server in servers))
            await pool.stop(timeout_s=timeout_s)
    finally:
        trials.close()
    _log.info("stopped")
    return 0
