"""Requests with more rows than a batch, without sockets."""

import asyncio
import json

import pytest

from headrace.serving.application import Application
from headrace.serving.state import ReplicaState
from tests.unit.engine.models import Doubling
from tests.unit.serving.parts import BAD, Caller, a_model, a_state, an_application, load, read

pytestmark = pytest.mark.anyio


def rows_body(count: int, *, bad: int | None = None) -> bytes:
    rows = [[BAD if i == bad else i + 100.0, 0.0] for i in range(count)]
    return json.dumps({"inputs": rows}).encode()


def served() -> tuple[Doubling, ReplicaState, Application]:
    model, state = a_model(), a_state()
    application = Application(state, has_repository=False)
    load(state, model)
    application.model_loaded()
    return model, state, application


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_rows_are_answered_in_order() -> None:
    application = an_application()
    exchange = Caller().request("POST", "/invocations", rows_body(200))

    application.handle(exchange)
    await turns()

    predictions = read(exchange).json["predictions"]
    assert [row["z"] for row in predictions] == [i + 100.0 for i in range(200)]


async def test_error_of_one_part_ends_the_request_and_its_other_parts() -> None:
    model, state, application = served()
    exchange = Caller().request("POST", "/invocations", rows_body(1000, bad=40))

    application.handle(exchange)
    await turns()

    assert read(exchange).status == 400
    assert sum(model.batches) < 1000
    assert state.served is not None
    assert state.served.engine.in_flight == 0


async def test_caller_that_leaves_cancels_all_parts() -> None:
    model, state, application = served()
    exchange = Caller().request("POST", "/invocations", rows_body(1000))

    application.handle(exchange)
    application.cancel(exchange)
    await turns()

    assert model.batches == []
    assert exchange.answer is None
    assert state.served is not None
    assert state.served.engine.in_flight == 0
