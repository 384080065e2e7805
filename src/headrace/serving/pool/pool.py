"""Driver of a pool: loads and unloads the models of one process.

Loading never affects the models that serve. A model is first checked in a separate process, which
it may crash, stall or fill; only a model that loaded there is loaded here, in a thread, one at a
time.

Memory is planned in one iteration of the event loop: a model that is being unloaded takes no more
requests and belongs to no other plan. A load begins when everything to unload is freed, so the
models in memory never exceed the pool's bounds. The exception is a load or a free that exceeds its
time limit: its memory is not counted until its thread ends.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Final, Protocol, Self

from headrace.core import (
    HeadraceError,
    InvalidArgumentError,
    PoolReplicaSettings,
    ReplicaSettings,
    RequestCancelledError,
    UnavailableError,
    UnsupportedModelError,
)
from headrace.core.backoff import Backoff
from headrace.scoring.loading import LoadedModel
from headrace.serving.application import send_refusal
from headrace.serving.exchange import Exchange
from headrace.serving.pool.hosted import HostedModel, HostedPhase, Key, WaitingRoom, make_room
from headrace.serving.pool.load_check import TrialResult
from headrace.serving.state import ReplicaState, ServedModel
from headrace.serving.telemetry.report import PoolReport, models_digest

_log = logging.getLogger(__name__)

MAX_TRIALS: Final = 4
"""Models that are checked or loaded at once; a stalled model occupies its slot until its time
limit.
"""
_RETRY_SPACE_S: Final = 0.05
_RETRY: Final = Backoff(first_s=2.0, limit_s=60.0)


class LoadCheck(Protocol):
    """Load check of a model outside of this process."""

    async def run(self, settings: ReplicaSettings, *, timeout_s: float) -> TrialResult:
        """Return whether the model loads, and its memory use."""


class Loader(Protocol):
    """Loader of models in this process, concurrent with requests."""

    async def load(self, settings: ReplicaSettings) -> LoadedModel:
        """Load a model that passed its load check; if cancelled, it is freed again."""

    async def free(self, loaded: LoadedModel) -> None:
        """Close a model."""


class Fetcher(Protocol):
    """Provider of model files on this machine."""

    async def have(self, settings: ReplicaSettings) -> ReplicaSettings:
        """Return `settings` with the local path of the model, fetched if necessary."""

    async def forget(self, path: str, *, in_use: Callable[[], Iterable[str]]) -> None:
        """Delete what was fetched for `path`, unless another model needs it; never raises."""


class ModelPool:
    """Models of one process. Its `async with` block owns the background tasks.

    Args:
        trial: Checks each model before its first load.
        loader: Loads it then.
        fetcher: Fetches its files before that; None if all files are on this machine.
        clock: Monotonic seconds, the clock of the requests' timestamps.
    """

    def __init__(
        self,
        settings: PoolReplicaSettings,
        *,
        trial: LoadCheck,
        loader: Loader,
        fetcher: Fetcher | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.models: dict[Key, HostedModel] = {}
        self.digest = ""
        self.is_draining = False
        self._trial = trial
        self._loader = loader
        self._fetcher = fetcher
        self._clock = clock
        self._retired: set[HostedModel] = set()
        self._trials = asyncio.Semaphore(MAX_TRIALS)
        self._turn = asyncio.Semaphore(1)
        self._tasks = asyncio.TaskGroup()
        self._loads: dict[HostedModel, asyncio.Task[None]] = {}
        self._frees: set[asyncio.Task[None]] = set()
        self._waiting = WaitingRoom(
            limit=settings.max_waiting, limit_s=settings.load_timeout_s, refuse=self.refuse
        )

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._loads.values():
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def is_ready(self) -> bool:
        """Whether it has received its list of models and takes requests."""
        return bool(self.digest) and not self.is_draining

    # Hosted models

    def check_reported(self) -> None:
        """Raise UnavailableError before the list of models arrives, to try another replica.

        After a restart of the process, the gateway may still consider it ready.
        """
        if not self.digest:
            raise UnavailableError(
                "this copy of the pool has not received its models yet; try again"
            )

    def declare(self, models: Sequence[ReplicaSettings], *, keeps: Iterable[Key] = ()) -> bool:
        """Host exactly these models; return whether they differ from the previous ones.

        Unchanged models are not affected. A model that was removed or changed ends after its
        current requests.

        Args:
            keeps: Hosted models that stay unchanged, besides `models`.

        Raises:
            InvalidArgumentError: Two models have the same name and version.
        """
        desired = {(model.model_name, model.model_version): model for model in models}
        if len(desired) != len(models):
            raise InvalidArgumentError("two models have the same name and version")
        for key in keeps:
            if key in self.models:
                desired.setdefault(key, self.models[key].settings)
        digest = models_digest(desired.values())
        if digest == self.digest:
            return False
        for key, hosted in list(self.models.items()):
            if desired.get(key) != hosted.settings:
                del self.models[key]
                self._retire(hosted)
        for key, model in desired.items():
            if key not in self.models:
                self.models[key] = HostedModel(model, replica=self.settings.replica)
        self.digest = digest
        return True

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Start a background task that ends by itself and does not raise."""
        self._tasks.create_task(work)

    def waiting_of_retired(self) -> list[Exchange]:
        """Remove and return the waiting requests of retired models, which must be routed again."""
        return [
            exchange for hosted in self._retired for exchange in self._waiting.take(hosted.state)
        ]

    def _retire(self, hosted: HostedModel) -> None:
        hosted.is_retired = True
        hosted.state.is_draining = True
        self._retired.add(hosted)
        self._tasks.create_task(self._end(hosted))

    async def _end(self, hosted: HostedModel) -> None:
        """Wait for the requests of a retired model to end, then free it."""
        loading = self._loads.get(hosted)
        if loading is not None:
            loading.cancel()
            await asyncio.wait({loading})
            self._loads.pop(hosted, None)  # cancelled before its first step
        served = hosted.state.served
        if served is not None:
            await self._free(hosted, served)
            hosted.state.served = None
        hosted.has_room = False
        self._retired.discard(hosted)
        if self._fetcher is not None:
            await self._fetcher.forget(hosted.settings.path, in_use=self._paths)
        _log.info("model is no longer hosted", extra=_named(hosted))

    def _paths(self) -> list[str]:
        return [other.settings.path for other in (*self.models.values(), *self._retired)]

    # Requests

    def infer(self, hosted: HostedModel, exchange: Exchange) -> None:
        """Run a request that needs the model: now if it is loaded, otherwise after the load."""
        if hosted.state.served is not None:
            hosted.used_at = exchange.received_at
            hosted.application.handle(exchange)
            return
        try:
            self._wait(hosted, exchange)
        except HeadraceError as error:
            self.refuse(hosted.state, exchange, error)

    def describe(self, hosted: HostedModel, exchange: Exchange) -> None:
        """Answer a request for metadata, which exist after the first load."""
        if hosted.state.described is not None:
            hosted.application.handle(exchange)
        else:
            self.infer(hosted, exchange)

    def cancel(self, exchange: Exchange) -> None:
        """Cancel the request of a caller that left before the response."""
        state = self._waiting.leave(exchange)
        if state is not None:
            state.refused(exchange, RequestCancelledError())
        elif hasattr(exchange, "wire"):
            exchange.wire.state.cancel(exchange)

    def refuse(self, state: ReplicaState, exchange: Exchange, error: HeadraceError) -> None:
        """Refuse a request for a model with an error, and count it."""
        state.refused(exchange, error)
        send_refusal(exchange, error)

    def _wait(self, hosted: HostedModel, exchange: Exchange) -> None:
        if hosted.phase is HostedPhase.FAILED:
            left_s = hosted.retry_at - self._clock()
            if left_s > 0:
                raise _cannot_load(hosted, left_s)
        self._waiting.enter(hosted.state, exchange)
        if hosted.phase in {HostedPhase.UNLOADED, HostedPhase.FAILED}:
            hosted.phase = HostedPhase.LOADING
            hosted.reason = ""
            hosted.state.loads_on_demand = True
            self._loads[hosted] = self._tasks.create_task(self._load(hosted))

    # Loading

    async def _load(self, hosted: HostedModel) -> None:
        """Load a model for its waiting requests; any error fails only these."""
        try:
            loaded = await self._try_and_load(hosted)
        except TimeoutError:
            limit_s = self.settings.load_timeout_s
            self._failed(hosted, hosted.reason or f"it did not load within {limit_s:g} s")
        except HeadraceError as error:
            self._failed(hosted, str(error))
        except Exception as error:  # noqa: BLE001  # a plug-in call
            _log.exception("loading failed", extra=_named(hosted))
            self._failed(hosted, type(error).__name__)
        else:
            self._loaded(hosted, loaded)
        finally:
            self._loads.pop(hosted, None)

    async def _try_and_load(self, hosted: HostedModel) -> LoadedModel:
        """Check and load a model; the time limit excludes the wait for a load slot.

        It also excludes the download: a model that takes long to fetch is there for later requests.
        """
        settings = hosted.state.settings
        if self._fetcher is not None:
            settings = await self._fetcher.have(settings)
        limit_s = self.settings.load_timeout_s
        async with self._trials:
            if hosted.size_bytes is None:
                result = await self._trial.run(settings, timeout_s=limit_s)
                if result.error:
                    raise UnsupportedModelError(result.error)
                hosted.size_bytes = result.size_bytes
            try:
                async with asyncio.timeout(limit_s):
                    await self._find_room(hosted)
                async with self._turn:
                    while self._frees:
                        await asyncio.wait(self._frees)
                    async with asyncio.timeout(limit_s):
                        return await self._loader.load(settings)
            except BaseException:
                hosted.has_room = False
                raise

    async def _find_room(self, hosted: HostedModel) -> None:
        """Reserve memory for a model; wait while the models that occupy it are busy."""
        assert hosted.size_bytes is not None
        while True:
            there = [*self.models.values(), *self._retired]
            leaving = make_room(
                [other.resident() for other in there if other.has_room],
                size_bytes=hosted.size_bytes,
                memory_bytes=self.settings.memory_bytes,
                max_loaded=self.settings.max_loaded,
            )
            if leaving is not None:
                break
            hosted.reason = "there is no room for it: all loaded models have requests"
            await asyncio.sleep(_RETRY_SPACE_S)
        hosted.has_room = True
        hosted.reason = ""
        for key in leaving:
            self._unload(self.models[key])

    def _unload(self, hosted: HostedModel) -> None:
        """Take an idle model out of service and begin to free it; a request loads it again."""
        served, hosted.state.served = hosted.state.served, None
        assert served is not None
        hosted.phase = HostedPhase.UNLOADED
        hosted.has_room = False
        hosted.unloads += 1
        _log.info("model unloaded", extra=_named(hosted))
        task = self._tasks.create_task(self._free(hosted, served))
        self._frees.add(task)
        task.add_done_callback(self._frees.discard)

    async def _free(self, hosted: HostedModel, served: ServedModel) -> None:
        """Wait for the runs of a model, then close it; errors of its code are logged."""
        try:
            if not await served.engine.stop(timeout_s=self.settings.drain_timeout_s):
                # its code may crash when its resources are gone
                _log.warning("model cannot be unloaded: a run does not end", extra=_named(hosted))
                return
            async with asyncio.timeout(self.settings.load_timeout_s):
                await self._loader.free(served.loaded)
        except Exception:  # noqa: BLE001  # a plug-in call
            _log.exception("freeing failed", extra=_named(hosted))

    def _loaded(self, hosted: HostedModel, loaded: LoadedModel) -> None:
        hosted.state.serve(loaded)
        hosted.application.model_loaded()
        hosted.phase = HostedPhase.LOADED
        hosted.loads += 1
        hosted.failures = 0
        hosted.reason = ""
        hosted.used_at = self._clock()
        for exchange in self._waiting.take(hosted.state):
            hosted.application.handle(exchange)

    def _failed(self, hosted: HostedModel, reason: str) -> None:
        hosted.phase = HostedPhase.FAILED
        hosted.state.loads_on_demand = False
        hosted.reason = reason
        hosted.failures += 1
        delay_s = _RETRY.delay_s(hosted.failures)
        hosted.retry_at = self._clock() + delay_s
        _log.error("cannot load model", extra=_named(hosted) | {"reason": reason})
        for exchange in self._waiting.take(hosted.state):
            self.refuse(hosted.state, exchange, _cannot_load(hosted, delay_s))

    # The process

    def report(self) -> PoolReport:
        """Return the hosted models and their memory use."""
        settings = self.settings
        holders = [h for h in (*self.models.values(), *self._retired) if h.has_room]
        return PoolReport(
            pool=settings.name,
            replica=settings.replica,
            digest=self.digest,
            loaded_bytes=sum(hosted.size_bytes or 0 for hosted in holders),
            memory_bytes=settings.memory_bytes,
            max_loaded=settings.max_loaded,
            models=[hosted.report() for hosted in self.models.values()],
        )

    async def stop(self, *, timeout_s: float) -> None:
        """Complete accepted requests for at most `timeout_s`, then free all models."""
        self.is_draining = True
        served = [h.state.served for h in self.models.values() if h.state.served is not None]
        idle = await asyncio.gather(*(model.engine.stop(timeout_s=timeout_s) for model in served))
        for served_model, is_idle in zip(served, idle, strict=True):
            if is_idle:
                served_model.loaded.model.close()


def _named(hosted: HostedModel) -> dict[str, str]:
    name, version = hosted.key
    return {"model": name, "version": version}


def _cannot_load(hosted: HostedModel, retry_after_s: float) -> UnavailableError:
    """Return the error that callers may see; the log and the report have the reason."""
    name, version = hosted.key
    msg = f"model '{name}' version {version} cannot be loaded; see the pool's log"
    return UnavailableError(msg, retry_after_s=max(retry_after_s, 1.0))
