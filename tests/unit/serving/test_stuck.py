"""A model that does not come back: who hears of it, and when."""

import time

import pytest

from headrace.engine import Batch, Engine
from headrace.serving.application import Application
from headrace.serving.state import NOT_ALIVE_AFTER_S, NOT_READY_AFTER_S
from tests.unit.serving.parts import Caller, a_model, a_state, load, read

pytestmark = pytest.mark.anyio


def hold_every_place(engine: Engine, seconds: float) -> None:
    """As if runs had begun so long ago, and their callers had left."""
    formed_at = time.monotonic() - seconds
    for place in range(engine.max_concurrent_runs):
        engine._running[place] = Batch(tickets=[], rows=1, formed_at=formed_at)


@pytest.mark.parametrize(
    ("stuck_s", "ready", "live"),
    [
        (0.0, 200, 200),
        (NOT_READY_AFTER_S - 0.1, 200, 200),
        (NOT_READY_AFTER_S, 503, 200),
        (NOT_ALIVE_AFTER_S - 0.1, 503, 200),
        (NOT_ALIVE_AFTER_S, 503, 503),
    ],
)
async def test_a_stuck_model_is_first_not_ready_then_not_alive(
    stuck_s: float, ready: int, live: int
) -> None:
    state = a_state()
    load(state, a_model())
    assert state.served is not None
    hold_every_place(state.served.engine, stuck_s)
    application = Application(state, has_repository=False)

    def ask(path: str) -> int:
        exchange = Caller().request("GET", path)
        application.handle(exchange)
        return read(exchange).status

    assert ask("/v2/health/ready") == ready
    assert ask("/v2/health/live") == live


async def test_what_is_not_loaded_yet_is_alive_and_not_stuck() -> None:
    state = a_state()

    assert (state.is_alive, state.is_ready, state.stuck_s) == (True, False, 0.0)
