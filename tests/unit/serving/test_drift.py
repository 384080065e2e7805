"""What a replica counts of requests and answers, by a plan, at a bounded cost."""

import asyncio
import json
import math
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.core import InferResponse
from headrace.monitor.drift_reference import feature_reference
from headrace.observe.features import FeatureBins
from headrace.serving.application import Application
from headrace.serving.exchange import Exchange
from headrace.serving.telemetry.drift import DriftSampler, _numbers
from headrace.serving.telemetry.report import DriftPlan, DriftTaken
from tests.unit.serving.parts import (
    BAD,
    Caller,
    a_model,
    a_state,
    an_application,
    infer_body,
    load,
    read,
)

pytestmark = pytest.mark.anyio

INFER = "/v2/models/m/infer"
FIRST = feature_reference("x[0]", "input", np.random.default_rng(1).normal(size=500)).bins
PLAN = DriftPlan(key="k", bins=[FIRST], sample=100)


async def ask(
    application: Application,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Exchange:
    exchange = Caller().request(method, path, body, headers)
    exchange.received_at = time.monotonic()
    application.handle(exchange)
    for _ in range(5):
        await asyncio.sleep(0)
    return exchange


async def follow(application: Application, plan: DriftPlan = PLAN) -> None:
    exchange = await ask(application, "PUT", "/internal/drift", msgspec.json.encode(plan))
    assert read(exchange).status == 200


async def take(application: Application) -> DriftTaken:
    exchange = await ask(application, "POST", "/internal/drift/take")
    return msgspec.json.decode(read(exchange).body, type=DriftTaken)


async def infer(
    application: Application, *rows: tuple[float, float], headers: dict[str, str] | None = None
) -> Exchange:
    return await ask(application, "POST", INFER, infer_body(*rows), headers)


async def test_nothing_is_counted_until_somebody_asks() -> None:
    application = an_application()
    await infer(application, (1, 2))

    assert await take(application) == DriftTaken()


async def test_features_with_bins_are_counted_and_the_others_kept_as_they_came() -> None:
    application = an_application()
    await follow(application)
    await infer(application, (0.5, 2), (9.0, 3))

    taken = await take(application)

    assert (taken.key, taken.seen, taken.skipped) == ("k", 1, 0)
    assert (taken.counts[0].rows, taken.counts[0].out_of_range) == (2, 1)
    kept = {one.name: one for one in taken.values}
    assert kept["x[1]"].values == [2.0, 3.0]
    assert kept["x[1]"].role == "input"
    assert {one.role for one in taken.values} == {"input", "output"}


async def test_what_was_taken_is_not_taken_again() -> None:
    application = an_application()
    await follow(application)
    await infer(application, (0.5, 2))
    await take(application)

    assert await take(application) == DriftTaken(key="k")


async def test_the_age_of_what_was_taken_is_told() -> None:
    now = [100.0]
    state = a_state()
    load(state, a_model())
    sampler = DriftSampler(state, clock=lambda: now[0])
    sampler.follow(PLAN)
    exchange = await infer(an_application(), (0.5, 2))
    sampler.observe(exchange, InferResponse(model_name="m", outputs={}))
    now[0] = 107.0

    assert (sampler.take().age_s, sampler.take().age_s) == (7.0, 0.0)


async def test_refused_requests_and_shadows_do_not_count() -> None:
    application = an_application()
    await follow(application)
    await infer(application, (BAD, 2))
    await infer(application, (1, 2), headers={"x-headrace-shadow": "1"})
    await ask(application, "POST", INFER, b"nonsense")

    assert (await take(application)).seen == 0


async def test_a_rollout_and_drift_look_at_the_same_answer() -> None:
    application = an_application()
    wanted = {"key": "r1", "predictions": True, "answers_percent": 100}
    await ask(application, "PUT", "/internal/observe", json.dumps(wanted).encode())
    await follow(application)
    headers = {"x-headrace-split": "r1", "x-request-id": "a"}

    answered = await infer(application, (1, 2), headers=headers)
    failed = await infer(application, (BAD, 2), headers=headers)

    report: dict[str, Any] = read(await ask(application, "GET", "/internal/report")).json
    assert (read(answered).status, read(failed).status) == (200, 400)
    assert report["predictions"]["counts"] == {"1": 1}
    assert (await take(application)).seen == 1


async def test_requests_count_while_they_are_recorded_too() -> None:
    application = an_application()
    await follow(application)
    await ask(application, "PUT", "/internal/record", b'{"sample_ratio": 1.0}')
    await infer(application, (1, 2))
    await infer(application, (BAD, 2))

    assert (await take(application)).seen == 1


async def test_at_most_so_many_rows_of_a_request_count() -> None:
    application = an_application()
    await follow(application, msgspec.structs.replace(PLAN, rows_per_request=2))
    await infer(application, *[(0.1, 1.0)] * 8)

    assert (await take(application)).counts[0].rows == 2


async def test_kept_values_are_bounded() -> None:
    application = an_application()
    await follow(application, msgspec.structs.replace(PLAN, sample=3))
    for _ in range(5):
        await infer(application, (0.1, 1.0))

    taken = await take(application)

    assert {len(one.values) for one in taken.values} == {3}
    assert taken.counts[0].rows == 5


async def test_many_requests_are_counted_as_they_come() -> None:
    application = an_application()
    await follow(application)
    for _ in range(20):
        await infer(application, *[(0.1, 1.0)] * 16)

    assert (await take(application)).counts[0].rows == 320


def test_no_number_is_null_and_infinite_ones_are_text() -> None:
    column = np.array([0.5, math.nan, math.inf, -math.inf])

    assert _numbers(column) == [0.5, None, "inf", "-inf"]


async def test_answers_are_kept_by_request_id_for_their_labels() -> None:
    application = an_application()
    await follow(application, DriftPlan(key="k", labels=True))
    await infer(application, (1, 2), headers={"x-request-id": "a"})
    await infer(application, (2, 1), headers={"x-request-id": "b" * 300})
    await infer(application, (2, 1))

    taken = await take(application)

    assert [(one.request_id, one.value) for one in taken.answers] == [("a", "1")]


async def test_another_plan_counts_anew() -> None:
    application = an_application()
    await follow(application)
    await infer(application, (0.1, 1.0))

    await follow(application, DriftPlan(key="other"))

    assert await take(application) == DriftTaken(key="other")


async def test_an_empty_plan_takes_the_wrapping_off() -> None:
    application = an_application()
    await follow(application)
    await follow(application, DriftPlan())
    await infer(application, (0.1, 1.0))

    assert await take(application) == DriftTaken()


async def test_internal_routes_are_on_the_unix_socket_only() -> None:
    for method, path in (("PUT", "/internal/drift"), ("POST", "/internal/drift/take")):
        exchange = Caller(is_local=False).request(method, path)
        an_application().handle(exchange)

        assert read(exchange).status == 404


async def test_requests_pass_unseen_while_looking_was_dear() -> None:
    """Each look takes 20 ms here: 0.1 s are on credit, and then one request in 2 s is seen."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    state = a_state()
    load(state, a_model())
    sampler = DriftSampler(state, clock=clock)
    sampler.follow(PLAN)
    seen = [_pass(sampler, at=now[0]) for _ in range(100)]

    assert 5 <= sum(seen) <= 15
    now[0] += 60.0
    assert _pass(sampler, at=now[0])


def _pass(sampler: DriftSampler, *, at: float) -> bool:
    """Whether a request that comes at this time is looked at."""
    exchange = Caller().request("POST", INFER)
    exchange.received_at = at
    sampler.wrap(lambda _: None)(exchange)
    is_seen = bool(exchange.observers)
    if is_seen:
        started = sampler._clock()
        sampler._spend(started)
    return is_seen


def test_bins_travel_as_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(FIRST), type=FeatureBins) == FIRST
