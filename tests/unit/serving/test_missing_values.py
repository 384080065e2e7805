"""A replica that takes nulls of floats as missing values, or refuses them."""

import asyncio
import json

import pytest

from headrace.core import NullPolicy
from headrace.serving.application import Application
from tests.unit.serving.parts import Answer, Caller, an_application, read

pytestmark = pytest.mark.anyio

V2, V1 = "/v2/models/m/infer", "/v1/models/m:predict"
BODIES = {
    V2: '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [VALUE, -INF]}]}',
    V1: '{"instances": [[VALUE, -INF]]}',
}


async def ask(application: Application, path: str, value: str) -> Answer:
    body = BODIES[path].replace("VALUE", value).replace("INF", "Infinity")
    exchange = Caller().request("POST", path, body.encode())
    application.handle(exchange)
    for _ in range(5):
        await asyncio.sleep(0)
    return read(exchange)


@pytest.mark.parametrize("path", [V2, V1])
async def test_nulls_are_missing_values_unless_they_are_errors(path: str) -> None:
    usual, strict = an_application(), an_application(nulls=NullPolicy.ERROR)

    for application, value in ((usual, "null"), (usual, "NaN"), (strict, "NaN")):
        answer = await ask(application, path, value)
        assert answer.status == 200, answer.body
        text = json.dumps(json.loads(answer.body, parse_constant=pytest.fail))
        assert '[null, "-Infinity"]' in text
    refused = await ask(strict, path, "null")

    assert refused.status == 400
    assert "element 0 of 'x' is null, but datatype FP32 needs a number" in refused.json["error"]
