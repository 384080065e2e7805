"""A replica's memory stands still, whatever mix of requests it gets."""

from pathlib import Path

import numpy as np
import pytest

from bench.load.client import run
from bench.payloads import binary_payload, json_payload
from tests.e2e.replicas import running

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def test_memory_after_30_000_requests_is_where_it_was_after_3_000(
    tmp_path: Path, mlp: Path
) -> None:
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((n, 32)).astype(np.float32) for n in (1, 2, 5, 1, 16, 1)]
    payloads = [json_payload("m", {"input": x}) for x in rows]
    payloads += [binary_payload("m", {"input": x}) for x in rows]
    bad = json_payload("m", {"input": rows[0][:, :7]})
    requests = [payload.http() for payload in (*payloads, bad)]

    with running(tmp_path, mlp) as replica:
        address = f"127.0.0.1:{replica.port}"
        first, _ = run(address, requests, connections=16, seconds=60, limit=3_000)
        early = replica.rss_bytes()
        second, _ = run(address, requests, connections=16, seconds=120, limit=27_000)
        late = replica.rss_bytes()

    assert len(first.latencies_s) + len(second.latencies_s) == 30_000
    assert first.broken == second.broken == 0
    assert late <= early * 1.05
