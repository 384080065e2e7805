"""A replica's application over a model in this process, and callers without sockets."""

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.core import InvalidArgumentError, ModelSignature, ReplicaSettings
from headrace.engine import ServiceTimes
from headrace.observe import ModelStatistics
from headrace.scoring.loading import LoadedModel
from headrace.serving.application import Application
from headrace.serving.exchange import Exchange
from headrace.serving.state import ReplicaState
from tests.unit.engine.models import Doubling

BAD = 13.0
"""The model refuses a row that holds it."""


@dataclass
class Caller:
    """The other side of a connection; the Unix socket unless told otherwise."""

    is_local: bool = True
    answered: list[Exchange] = field(default_factory=list)

    def flush(self, exchange: Exchange) -> None:
        self.answered.append(exchange)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Exchange:
        named = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        return Exchange(self, method.encode(), path.encode(), named, body, True, 0.0)  # noqa: FBT003  # positional


@dataclass
class Answer:
    status: int
    head: str
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


def read(exchange: Exchange) -> Answer:
    assert exchange.answer is not None, "not answered yet"
    answer = exchange.answer
    whole = answer if isinstance(answer, bytes) else b"".join(bytes(part) for part in answer)
    head, _, body = whole.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), head.decode(), body)


def a_model(signature: ModelSignature | None = None) -> Doubling:
    model = Doubling(bad=BAD, error=lambda: InvalidArgumentError("bad row"))
    if signature is not None:
        model.signature = signature
    return model


def a_state(**settings: object) -> ReplicaState:
    told = {"model_name": "m", "model_version": "1", "path": "", **settings}
    return ReplicaState(
        settings=msgspec.convert(told, ReplicaSettings),
        statistics=ModelStatistics(name="m", version="1"),
    )


def load(state: ReplicaState, model: Doubling) -> None:
    state.serve(a_loaded(model))


class ShortTimes(ServiceTimes):
    """Every run is short, whatever the clock says: it happens on the event loop."""

    def estimate(self, *, rows: int, length: int) -> float | None:  # noqa: ARG002  # the class's signature
        return 1e-6


def a_loaded(model: Doubling) -> LoadedModel:
    times = ShortTimes(max_batch_size=32)
    return LoadedModel(
        model=model, runtime="python", signature=model.signature, times=times, plan=None
    )


def an_application(*, model: Doubling | None = None, **settings: object) -> Application:
    state = a_state(**settings)
    application = Application(state, has_repository=False)
    load(state, model or a_model())
    application.model_loaded()
    return application


def infer_body(*rows: tuple[float, float], outputs: list[Any] | None = None) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
    document: dict[str, Any] = {"inputs": [tensor]}
    if outputs:
        document["outputs"] = outputs
    return json.dumps(document).encode()


def error_of(exchange: Exchange) -> str:
    return str(read(exchange).json["error"])
