"""`headrace batch openai` through a real gateway: limits, errors, kills at any moment."""

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core.files import size_of
from headrace.core.spec.access import EndpointAccess, EndpointLimitsSpec, LimitSpec
from headrace.gateway import GatewayPolicy
from tests.e2e.gateway.issuing import api_key, known
from tests.e2e.gateway.lab import Lab, http_url
from tests.e2e.gateway.test_openai import CHAT, MODEL, Stub, endpoint, running_stub
from tests.e2e.gateway.test_rate_limits import start
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
HEADRACE = Path(sys.executable).with_name("headrace")
KEY = api_key("batch")


@pytest.fixture
def stub() -> Iterator[Stub]:
    port = free_port()
    with running_stub(str(port), MODEL):
        yield Stub(port)


def request(number: int, **body: Any) -> dict[str, Any]:
    content = {"model": "chat", "messages": [{"role": "user", "content": str(number)}], **body}
    return {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": content}


def write(path: Path, *requests: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in requests))
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_bytes().splitlines()]


async def begin(url: str, source: Path, output: Path, *more: str, key: str = KEY) -> Process:
    """The command as a process."""
    line = map(
        str, (HEADRACE, "batch", "openai", source, "-o", output, "--url", url, "--json", *more)
    )
    environment = {**os.environ, "HEADRACE_API_KEY": key}
    return await asyncio.create_subprocess_exec(*line, env=environment, stdout=PIPE, stderr=PIPE)


async def batch(
    url: str, source: Path, output: Path, *more: str, key: str = KEY
) -> tuple[int | None, Any, str]:
    """Its status, summary and messages."""
    process = await begin(url, source, output, *more, key=key)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(out) if out else None, err.decode()


async def grown(journal: Path, size: int, process: Process) -> None:
    """Wait until the journal is larger than `size`, or the process is over."""
    for _ in range(2000):
        if process.returncode is not None or size_of(journal) > size:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the batch does not come along")


def policy() -> GatewayPolicy:
    return GatewayPolicy(keys=(known(KEY, "infer:chat"),))


async def test_each_line_is_answered_with_the_rights_of_the_key(
    lab: Lab, stub: Stub, tmp_path: Path
) -> None:
    closed = EndpointAccess(public=False)
    chat = endpoint("chat", stub.upstream(), access=closed)
    other = endpoint("other", stub.upstream(), access=closed)
    gateway = await start(lab, policy(), chat, other)
    source = write(
        tmp_path / "in.jsonl",
        request(0),
        request(1, model="other"),
        request(2, model="nothing"),
        request(3) | {"url": "/v1/models"},
        request(4, n=2),
    )

    status, summary, err = await batch(http_url(gateway), source, tmp_path / "out.jsonl")
    denied = await batch(
        http_url(gateway), source, tmp_path / "denied.jsonl", key=api_key("unknown")
    )

    assert status == 0, err
    assert (summary["total"], summary["completed"], summary["failed"]) == (5, 2, 3)
    first, forbidden, unknown, elsewhere, last = results(tmp_path / "out.jsonl")
    answer = first["response"]
    assert (answer["status_code"], answer["body"]["object"]) == (200, "chat.completion")
    assert answer["request_id"]
    assert (forbidden["response"]["status_code"], forbidden["error"]) == (403, None)
    # Not 404: the key may not know which endpoints exist.
    assert unknown["response"]["status_code"] == 403
    assert "'nothing'" in unknown["response"]["body"]["error"]["message"]
    assert (elsewhere["response"], elsewhere["error"]["code"]) == (None, "url_mismatch")
    assert last["response"]["status_code"] == 200
    assert denied[0] == 1
    assert "key" in denied[2]
    assert not (tmp_path / "denied.jsonl").exists()


async def test_limits_delay_a_batch_and_fail_none_of_it(
    lab: Lab, stub: Stub, tmp_path: Path
) -> None:
    limits = EndpointLimitsSpec(per_caller=LimitSpec(requests_per_s=20.0, burst=5))
    gateway = await start(lab, policy(), endpoint("chat", stub.upstream(), limits=limits))
    source = write(tmp_path / "in.jsonl", *(request(i) for i in range(60)))

    status, summary, err = await batch(http_url(gateway), source, tmp_path / "out.jsonl")

    assert status == 0, err
    assert (summary["completed"], summary["failed"]) == (60, 0)
    assert summary["retries"] > 0
    assert len(stub.seen()) == 60


async def test_kills_at_random_moments_lead_to_one_result_per_line(
    lab: Lab, stub: Stub, tmp_path: Path
) -> None:
    gateway = await start(lab, policy(), endpoint("chat", stub.upstream()))
    requests = [request(i, stub={"pause_s": 0.02}) for i in range(400)]
    source, output = write(tmp_path / "in.jsonl", *requests), tmp_path / "out.jsonl"
    moments = random.Random(7)  # noqa: S311  # moments, no secrets
    journal, kills = tmp_path / ".out.jsonl.partial", 0

    for _ in range(6):
        process = await begin(http_url(gateway), source, output, "--concurrency=4")
        before = size_of(journal)
        await grown(journal, before, process)
        await asyncio.sleep(moments.uniform(0.0, 0.2))
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        await process.communicate()
    assert kills > 2
    assert not output.exists()
    with journal.open("ab") as torn:
        torn.write(b'{"id":"batch_req_')

    status, summary, err = await batch(http_url(gateway), source, output)

    assert status == 0, err
    assert summary["resumed"] > 0
    assert [result["custom_id"] for result in results(output)] == [f"c{i}" for i in range(400)]
    asked = Counter(seen["body"]["messages"][0]["content"] for seen in stub.seen())
    # Only what was in flight at a kill runs again.
    assert asked.total() <= 400 + kills * 4
    assert len(asked) == 400


async def test_an_interrupt_keeps_results_and_a_second_run_is_refused(
    lab: Lab, stub: Stub, tmp_path: Path
) -> None:
    gateway = await start(lab, policy(), endpoint("chat", stub.upstream()))
    source = write(
        tmp_path / "in.jsonl", request(0), *(request(i, stub={"pause_s": 30}) for i in range(1, 4))
    )
    output, journal = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial"
    process = await begin(http_url(gateway), source, output)
    await grown(journal, 0, process)

    second = await batch(http_url(gateway), source, output)
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), 20)

    assert second[0] == 1
    assert "another run writes" in second[2]
    assert (process.returncode, b"the same command continues" in err) == (130, True)
    assert len(results(journal)) == 1
    status, summary, _ = await batch(http_url(gateway), source, output, "--timeout-s=0.5")
    assert (status, summary["resumed"], summary["failed"]) == (0, 1, 3)
