"""`headrace batch openai` and `embed` through a real gateway: limits, errors, and kills."""

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

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.core.files import size_of
from headrace.core.spec.access import EndpointAccess, EndpointLimitsSpec, LimitSpec
from headrace.gateway import GatewayPolicy
from tests.e2e.gateway.issuing import api_key, known
from tests.e2e.gateway.lab import Lab, http_url
from tests.e2e.gateway.openai_stub import embedding
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
    return await command("openai", source, "-o", output, "--url", url, *more, key=key)


async def command(*words: str | Path, key: str = KEY) -> Process:
    line = map(str, (HEADRACE, "batch", *words, "--json"))
    environment = {**os.environ, "HEADRACE_API_KEY": key}
    return await asyncio.create_subprocess_exec(*line, env=environment, stdout=PIPE, stderr=PIPE)


async def batch(
    url: str, source: Path, output: Path, *more: str, key: str = KEY
) -> tuple[int | None, Any, str]:
    """Its status, summary and messages."""
    return await ended(await begin(url, source, output, *more, key=key))


async def ended(process: Process) -> tuple[int | None, Any, str]:
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
    assert "API key; `headrace keys list` shows the valid keys" in denied[2]
    unwritten = await batch(http_url(gateway), source, tmp_path / "nowhere" / "out.jsonl")
    assert "out.jsonl: its directory does not exist; create it" in unwritten[2]
    down = await batch("http://127.0.0.1:1", source, tmp_path / "down.jsonl", "--retry-for-s=0")
    assert down[0] == 3
    assert "cannot connect to http://127.0.0.1:1" in down[2]
    assert "check the address, and that it runs" in down[2]
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


TEXTS = [None, "", "x" * 2000, *(f"text {i} é" for i in range(300))]


async def test_embeddings_of_a_column_have_the_bits_of_the_api(
    lab: Lab, stub: Stub, tmp_path: Path
) -> None:
    limits = EndpointLimitsSpec(per_caller=LimitSpec(requests_per_s=20.0, burst=5))
    chat = endpoint("chat", stub.upstream(), limits=limits)
    gateway = await start(lab, policy(), chat, endpoint("other", stub.upstream()))
    table = pl.DataFrame({"id": range(len(TEXTS)), "body": TEXTS})
    table.write_parquet(tmp_path / "in.parquet")
    table.write_csv(tmp_path / "in.csv", quote_style="non_numeric")
    table.write_ndjson(tmp_path / "in.jsonl")
    words = ("-c", "body", "-e", "chat", "--keys", "id", "--texts", "16", "--run-id", "r")

    found = {}
    for kind in ("parquet", "csv", "jsonl"):
        output = tmp_path / f"{kind}-vectors"
        process = await command(
            "embed", tmp_path / f"in.{kind}", "-o", output, "--url", http_url(gateway), *words
        )
        status, summary, err = await ended(process)
        assert status == 0, err
        assert (summary["rows"], summary["errors"]) == (len(TEXTS), 3)
        found[kind] = pq.read_table(output).sort_by("id")

    parquet = found["parquet"]
    assert parquet.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    vectors = parquet["embedding"].to_pylist()
    assert vectors[:3] == [None] * 3
    assert vectors[3:] == [embedding(str(text)) for text in TEXTS[3:]]
    null, empty, long, *rest = parquet["error"].to_pylist()
    assert null == "column 'body' is null"
    assert empty == "the text is empty"
    assert "maximum context length is 1000 tokens" in long
    assert rest == [None] * 300
    for other in ("csv", "jsonl"):
        ids = [int(key) for key in found[other]["id"].to_pylist()]  # keys of CSV are texts
        assert dict(zip(ids, found[other]["embedding"].to_pylist(), strict=True)) == dict(
            enumerate(vectors)
        )


async def test_a_killed_run_of_embeddings_resumes_and_an_endpoint_without_them_is_named(
    lab: Lab, stub: Stub, tmp_path: Path
) -> None:
    gateway = await start(lab, policy(), endpoint("chat", stub.upstream()))
    for part in range(20):
        texts = [f"text {part} {i}" for i in range(100)]
        table = pl.DataFrame({"id": range(part * 100, part * 100 + 100), "body": texts})
        table.write_parquet(tmp_path / f"in-{part:02}.parquet")
    output, url = tmp_path / "out", http_url(gateway)
    words: tuple[str | Path, ...] = (
        *("embed", tmp_path / "in-*.parquet", "-o", output, "--url", url, "-c", "body"),
        *("-e", "chat", "--keys", "id", "--texts", "2", "--concurrency", "1", "--run-id", "r"),
    )
    process = await command(*words)
    await grown(output / "_headrace" / "manifest.jsonl", 0, process)
    process.send_signal(signal.SIGKILL)
    await process.communicate()

    status, summary, err = await ended(await command(*words))
    refused = await ended(
        await command("embed", tmp_path / "in-*.parquet", "-o", tmp_path / "no", "--url", url,
                      "-c", "body", "-e", "nothing")
    )  # fmt: skip

    assert status == 0, err
    assert 0 < summary["skipped"] < summary["shards"]
    found = pq.read_table(output).sort_by("id")
    assert found["id"].to_pylist() == list(range(2000))
    assert found["embedding"][1234].as_py() == embedding("text 12 34")
    assert refused[0] == 1
    assert refused[2].endswith("'nothing' is not found; `headrace status` lists the endpoints\n")
    assert not (tmp_path / "no").exists()
