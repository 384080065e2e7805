"""Process of one pool replica: fetch, bind, load the assigned models, drain.

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
from headrace.runtimes.libraries import isolate_frameworks
from headrace.serving.application import MetricsApplication
from headrace.serving.loader import ThreadLoader
from headrace.serving.pool.application import PoolApplication
from headrace.serving.pool.load_check import LoadCheckServer
from headrace.serving.pool.pool import ModelPool
from headrace.serving.replica import EXIT_CANNOT_LISTEN, listen, stop_event

MAX_FETCHES: Final = 2
"""Artifacts that are fetched at once; further ones wait for their turn."""
FETCH_TIMEOUT_S: Final = 600.0
"""As long as a single-model pod may take to fetch."""
_GRACE_S: Final = 15.0
"""The fetch process ends at its time limit; this much later it is killed."""
_COMMAND: Final = (sys.executable, "-m", "headrace.cli", "models", "fetch")
_STORED: Final = re.compile(r"sha256/(?P<digest>[0-9a-f]{64})/(?P<file>[^/]+)")
_MAX_OUTPUT: Final = 500


class SharedFetcher:
    """Fetcher of artifacts from a shared store; each is fetched once.

    Artifacts that an earlier process fetched to this directory are verified, not fetched again.
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
        """Return `settings` with the local path of the model; if cancelled, the fetch is ended.

        Raises:
            InvalidArgumentError: The path in `settings` is not that of a stored artifact.
            UnavailableError: It cannot be fetched; the message says why.
            DeadlineExceededError: The fetch exceeded its time limit.
        """
        # Digest and file of a stored artifact's path.
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
        """Delete what was fetched for `path`, unless another model uses the same artifact.

        Args:
            in_use: The paths of all hosted models, as in their settings.
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
            reason = last[:_MAX_OUTPUT] or f"exit status {ended.status}"
            raise UnavailableError(f"its files cannot be fetched: {reason}")


_log = logging.getLogger(__name__)
_SWITCH_S: Final = 0.0005
"""Longest time for which Python code in another thread, such as the import of a model, delays the
event loop. Python's default of 5 ms would appear in the p99 of all other models.
"""


def run_pool(settings: PoolReplicaSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The process's exit status: 0 after a drain, or `EXIT_CANNOT_LISTEN`.
    """
    isolate_frameworks()  # also where a model's code imports NumPy
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
                _log.error("%s", error)  # the message is sufficient
                return EXIT_CANNOT_LISTEN
            sys.setswitchinterval(_SWITCH_S)
            gc.freeze()  # these objects live forever; those of models do not
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
