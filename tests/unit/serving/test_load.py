"""How busy a model is adds up from what is counted anyway, those under way included."""

import asyncio

import msgspec
import pytest

from headrace.serving.application import Application
from headrace.serving.telemetry.report import ModelLoad
from tests.unit.serving.parts import Caller, an_application, infer_body, read
from tests.unit.serving.pool_parts import Hosting, entry

pytestmark = pytest.mark.anyio


async def loads(application: Application) -> list[ModelLoad]:
    exchange = Caller().request("GET", "/internal/load")
    application.handle(exchange)
    return msgspec.json.decode(read(exchange).body, type=list[ModelLoad])


async def infer(application: Application, *rows: tuple[float, float]) -> None:
    application.handle(Caller().request("POST", "/v2/models/m/infer", infer_body(*rows)))
    for _ in range(5):
        await asyncio.sleep(0)


async def test_batches_rows_and_waiting_are_running_totals() -> None:
    application = an_application()
    [before] = await loads(application)
    await infer(application, (1, 2), (3, 4), (5, 6))
    await infer(application, (1, 2))
    [after] = await loads(application)

    assert (before.model, before.version, before.batches, before.waited) == ("m", "1", 0, 0)
    assert (after.batches, after.rows, after.waited) == (2, 4, 2)
    assert after.since == before.since < before.at < after.at
    assert after.queue_s >= 0
    assert after.in_flight_s > 0


async def test_nobody_outside_may_ask() -> None:
    exchange = Caller(is_local=False).request("GET", "/internal/load")
    an_application().handle(exchange)

    assert read(exchange).status == 404


async def test_a_pool_tells_all_its_models_at_once() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        told = msgspec.json.decode(
            read(hosting.ask("GET", "/internal/load")).body, type=list[ModelLoad]
        )

    assert [(one.model, one.batches) for one in told] == [("a", 0), ("b", 0)]
