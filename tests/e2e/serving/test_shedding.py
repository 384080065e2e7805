"""Under overload the least important requests are refused first, and the others stay fast."""

import asyncio
import time
from collections import defaultdict
from pathlib import Path

import httpx
import pytest

from tests.e2e.replicas import running

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]

SLOW = """
import time


class Slow:
    inputs = {"x": ("FP32", [-1])}
    outputs = {"y": ("FP32", [-1])}
    batched = True

    def infer(self, inputs):
        time.sleep(0.02)
        return {"y": inputs["x"]}
"""
ROW = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.long
async def test_gold_is_answered_in_time_while_free_is_shed(tmp_path: Path) -> None:
    model = tmp_path / "slow.py"
    model.write_text(SLOW)
    found: defaultdict[str, list[tuple[int, float, str]]] = defaultdict(list)
    batching = {"max_queue_size": 8, "max_batch_size": 1}
    with running(tmp_path, model, batching=batching, runtime="python") as replica:
        until = time.monotonic() + 3.0

        async def load(level: str) -> None:
            headers = {"x-headrace-priority": level, "x-headrace-slo-s": "0.5"}
            async with httpx.AsyncClient(base_url=replica.url, timeout=30) as http:
                while (began := time.monotonic()) < until:
                    answer = await http.post("/v2/models/m/infer", json=ROW, headers=headers)
                    took_s = time.monotonic() - began
                    retry_after = answer.headers.get("retry-after", "")
                    found[level].append((answer.status_code, took_s, retry_after))
                    await asyncio.sleep(0.005 if answer.status_code == 200 else 0.05)

        async with asyncio.TaskGroup() as tasks:
            for level in ["4"] * 2 + ["6"] * 20:
                tasks.create_task(load(level))

    gold, free = found["4"], found["6"]
    assert {status for status, _, _ in gold} == {200}
    assert sorted(took_s for _, took_s, _ in gold)[int(len(gold) * 0.95)] < 0.25
    refused = [told for status, _, told in free if status == 429]
    assert len(refused) > len(free) / 4
    assert all(int(told) >= 1 for told in refused)
    assert {status for status, _, _ in free} <= {200, 429}
