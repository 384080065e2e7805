"""One copy of a pool, from start to drain: bind, wait to be told its models, answer, stop."""

import asyncio
import gc
import logging
import sys
from typing import Final

import uvloop

from headrace.core import ArtifactsSettings, HeadraceError, PoolSettings
from headrace.runtimes.libraries import keep_frameworks_apart
from headrace.serving.application import MetricsApplication
from headrace.serving.fetching import SharedFetcher
from headrace.serving.listening import listen, stop_event
from headrace.serving.loader import ThreadLoader
from headrace.serving.pool import Pool
from headrace.serving.pool_application import PoolApplication
from headrace.serving.replica import EXIT_CANNOT_LISTEN
from headrace.serving.trial import Trials

_log = logging.getLogger(__name__)

_SWITCH_S: Final = 0.0005
"""How long code that computes in Python, such as a model that is being imported, keeps the event
loop waiting; Python's own 5 ms would be seen in the p99 of all other models."""


def run_pool(settings: PoolSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The process's exit status: 0 after a drain, or `EXIT_CANNOT_LISTEN`.
    """
    keep_frameworks_apart()  # also where a model's own code imports one
    try:
        return uvloop.run(_serve(settings))
    except KeyboardInterrupt:
        return 130


async def _serve(settings: PoolSettings) -> int:
    trials = Trials()
    stop = stop_event()
    artifacts = settings.artifacts
    fetcher = SharedFetcher(artifacts) if isinstance(artifacts, ArtifactsSettings) else None
    try:
        async with Pool(settings, trial=trials, loader=ThreadLoader(), fetcher=fetcher) as pool:
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
