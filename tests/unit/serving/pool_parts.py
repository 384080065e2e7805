"""A pool whose models load in virtual time, or do not."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from headrace.core import PoolReplicaSettings, ReplicaSettings, UnsupportedModelError
from headrace.scoring.loading import LoadedModel
from headrace.serving.exchange import Exchange
from headrace.serving.pool.application import PoolApplication
from headrace.serving.pool.load_check import TrialResult
from headrace.serving.pool.pool import ModelPool
from headrace.serving.telemetry.report import HostedReport
from tests.unit.engine.models import Doubling
from tests.unit.serving.parts import Caller, a_loaded, a_model, infer_body


@dataclass
class Trier:
    """Tries models as a test says: how long, how large, what goes wrong."""

    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def run(self, settings: ReplicaSettings, *, timeout_s: float) -> TrialResult:
        name = settings.model_name
        self.tried.append(name)
        self.paths.append(settings.path)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(min(self.seconds.get(name, 0.1), timeout_s))
        finally:
            self.at_once -= 1
        return TrialResult(error=self.errors.get(name, ""), size_bytes=self.sizes.get(name, 10))


@dataclass
class Loads:
    """Loads models into this process; remembers them and which were freed."""

    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    models: dict[str, Doubling] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    freed: list[LoadedModel] = field(default_factory=list)

    async def load(self, settings: ReplicaSettings) -> LoadedModel:
        name = settings.model_name
        await asyncio.sleep(self.seconds.get(name, 0.1))
        if name in self.errors:
            raise self.errors[name]
        self.loaded.append(name)
        self.paths.append(settings.path)
        return a_loaded(self.models.setdefault(name, a_model()))

    async def free(self, loaded: LoadedModel) -> None:
        await asyncio.sleep(0.01)
        self.freed.append(loaded)


@dataclass
class Fetches:
    """Has models' files in `/here`, later or never."""

    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    forgotten: list[tuple[str, list[str]]] = field(default_factory=list)

    async def have(self, settings: ReplicaSettings) -> ReplicaSettings:
        name = settings.model_name
        await asyncio.sleep(self.seconds.get(name, 0.1))
        if name in self.errors:
            raise self.errors[name]
        self.fetched.append(settings.path)
        return msgspec.structs.replace(settings, path=f"/here/{settings.path}")

    async def forget(self, path: str, *, in_use: Callable[[], Iterable[str]]) -> None:
        await asyncio.sleep(0.01)
        self.forgotten.append((path, sorted(in_use())))


class Hosting:
    """A pool's copy without sockets."""

    def __init__(
        self,
        *,
        trier: Trier | None = None,
        loads: Loads | None = None,
        fetches: Fetches | None = None,
        **told: object,
    ) -> None:
        settings = msgspec.convert({"name": "small", **told}, PoolReplicaSettings)
        self.trier = trier or Trier()
        self.loads = loads or Loads()
        self.pool = ModelPool(
            settings,
            trial=self.trier,
            loader=self.loads,
            fetcher=fetches,
            clock=asyncio.get_running_loop().time,
        )
        self.application = PoolApplication(self.pool, has_repository=settings.port is not None)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Exchange:
        exchange = Caller().request(method, path, body, headers)
        self.application.handle(exchange)
        return exchange

    def declare(self, *models: ReplicaSettings) -> Exchange:
        return self.ask("PUT", "/internal/models", msgspec.json.encode(models))

    def infer(self, name: str, headers: dict[str, str] | None = None) -> Exchange:
        return self.ask("POST", f"/v2/models/{name}/infer", infer_body((1, 2)), headers)

    def model(self, name: str, version: str = "1") -> HostedReport:
        return self.pool.models[name, version].report()


def entry(name: str, version: str = "1", **settings: object) -> ReplicaSettings:
    told = {"model_name": name, "model_version": version, "path": name, **settings}
    return msgspec.convert(told, ReplicaSettings)


@contextmanager
def held(model: Doubling) -> Iterator[None]:
    """While a run of `model` cannot end."""
    model.gate.clear()
    try:
        yield
    finally:
        model.gate.set()


BROKEN = UnsupportedModelError("broken here")
