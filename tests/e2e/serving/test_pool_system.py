"""A pool as part of a whole system: split, changed, killed, all while requests flow."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from headrace.testing import models
from tests.e2e.control.system import System, Traffic
from tests.e2e.rollouts.rollout import (
    ONLY_PREDICTIONS,
    Rollout,
    callers,
    canary,
    endpoint,
    metric,
)

pytestmark = pytest.mark.e2e

POOL = {"name": "small", "replicas": 2, "memory_bytes": 500_000_000, "load_timeout_s": 10}
BOTH = {"pool-small-1", "pool-small-2"}
XY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


@pytest.fixture
def system() -> Iterator[System]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(home=Path(directory) / "home")
        try:
            yield system
        finally:
            system.close()


def spec(*endpoints: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "pools": [POOL], "endpoints": list(endpoints)}


def pooled(name: str, path: Path | str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": str(path), "pool": "small", **more}


def scaling(folder: Path, name: str, *, by: float = 2) -> Path:
    """A model without code, as pools take no other: `x` FP32 [N, 2] to `y`, `by` times as much."""
    path = folder / f"{name}.onnx"
    path.write_bytes(
        models.build(
            [("Mul", ["x", "by"], ["y"], {})],
            [("x", models.FLOAT, ["N", 2])],
            [("y", models.FLOAT, ["N", 2])],
            {"by": np.array(by, np.float32)},
        )
    )
    return path


def classifying(folder: Path, name: str, *, yes_below: float = 0.3, megabytes: int = 0) -> Path:
    """Class 1 for rows whose second number is less; with a table that takes so much memory."""
    path = folder / f"{name}.onnx"
    path.write_bytes(
        models.build(
            [
                ("Gather", ["x", "second"], ["number"], {"axis": 1}),
                ("Cast", ["number"], ["index"], {"to": models.INT64}),
                ("Gather", ["table", "index"], ["nothing"], {}),
                ("Add", ["number", "nothing"], ["score"], {}),
                ("Less", ["score", "limit"], ["is_less"], {}),
                ("Cast", ["is_less"], ["label"], {"to": models.INT64}),
            ],
            [("x", models.FLOAT, ["N", 2])],
            [("label", models.INT64, ["N"]), ("score", models.FLOAT, ["N"])],
            {
                "second": np.array(1, np.int64),
                "table": np.zeros(1 + megabytes * 250_000, np.float32),
                "limit": np.array(yes_below, np.float32),
            },
        )
    )
    return path


def copies(status: Any, name: str) -> list[Any]:
    found = next(e for e in status["endpoints"] if e["name"] == name)
    return [replica for revision in found["revisions"] for replica in revision["replicas"]]


def hosts(status: Any, name: str) -> set[str]:
    """The processes that serve an endpoint."""
    return {replica["name"] for replica in copies(status, name)}


def apply(system: System, *endpoints: dict[str, Any]) -> None:
    status, answer = system.post("/api/v1/apply?wait_s=30", spec(*endpoints))
    assert status == 200, answer


def test_a_pool_answers_every_protocol_and_splits_between_versions(
    system: System, tmp_path: Path, mlp: Path
) -> None:
    twice, thrice = scaling(tmp_path, "twice"), scaling(tmp_path, "thrice", by=3)
    system.start(spec=spec(pooled("m", mlp), pooled("py", twice)))
    status = system.wait_ready()
    apply(system, pooled("m", mlp), pooled("py", thrice))
    split = {
        "name": "py",
        "pool": "small",
        "versions": [{"model": "py:1", "weight": 50}, {"model": "py:2", "weight": 50}],
    }
    apply(system, pooled("m", mlp), split)
    answers = [system.infer("py", XY) for _ in range(40)]
    pinned = [system.infer(f"py/versions/{v}", XY)[1] for v in (1, 2)]
    url = system.where().http_url
    v1 = system.call("POST", f"{url}/v1/models/py:predict", {"instances": [[1, 2]]})
    with triton.InferenceServerClient(system.where().grpc_target) as client:
        tensor = triton.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2]], np.float32))
        over_grpc = Counter(
            client.infer("py", [tensor]).get_response().model_version for _ in range(40)
        )

    assert hosts(status, "m") == hosts(status, "py") == BOTH
    assert {code for code, _ in answers} == {200}
    by_version = Counter(answer["model_version"] for _, answer in answers)
    assert min(by_version["1"], by_version["2"]) >= 5
    factors = {"1": [2, 4], "2": [3, 6]}
    for answer in [answer for _, answer in answers] + pinned:
        assert answer["outputs"][0]["data"] == factors[answer["model_version"]]
    assert [answer["model_version"] for answer in pinned] == ["1", "2"]
    assert v1[0] == 200
    assert min(over_grpc["1"], over_grpc["2"]) >= 5


def test_statistics_of_all_models_are_those_of_pools_too(
    system: System, tmp_path: Path, mlp: Path
) -> None:
    """A pool's models were left out over HTTP, and gRPC had no answer at all."""
    alone = {"name": "alone", "model": str(mlp)}
    system.start(spec=spec(alone, pooled("py", scaling(tmp_path, "py")), pooled("idle", mlp)))
    assert hosts(system.wait_ready(), "py") == BOTH
    for _ in range(4):  # the copies take turns, or do not: they are added up
        assert system.infer("py", XY)[0] == 200

    url = system.where().http_url
    _, document = system.call("GET", f"{url}/v2/models/stats")
    with triton.InferenceServerClient(system.where().grpc_target) as client:
        over_grpc = client.get_inference_statistics()

    counts = {row["name"]: row["inference_count"] for row in document["model_stats"]}
    assert counts.keys() == {"alone", "idle", "py"}
    assert counts["py"] >= 4
    assert {row.name: row.inference_count for row in over_grpc.model_stats} == counts


def test_compressed_grpc_is_answered_and_names_its_model_once(
    system: System, tmp_path: Path, mlp: Path
) -> None:
    """What the gateway routed and authorized by is what the process reads."""
    alone = {"name": "alone", "model": str(scaling(tmp_path, "alone", by=3)), "timeout_s": 9}
    system.start(spec=spec(alone, pooled("py", scaling(tmp_path, "py")), pooled("idle", mlp)))
    assert hosts(system.wait_ready(), "py") == BOTH
    rows = np.tile(np.array([[1, 2]], np.float32), (32, 1))
    tensor = triton.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)

    with triton.InferenceServerClient(system.where().grpc_target) as client:
        for name, factor in (("alone", 3), ("py", 2)):
            for algorithm in ("gzip", "deflate"):
                result = client.infer(name, [tensor], compression_algorithm=algorithm)
                np.testing.assert_array_equal(result.as_numpy("y"), rows * factor)

    request = service_pb2.ModelInferRequest
    first = request(model_name="py", id="x" * 1000).SerializeToString()
    compression = grpc.Compression.Gzip
    with grpc.insecure_channel(system.where().grpc_target, compression=compression) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for second in (request(model_name="idle"), request(model_version="2")):
            with pytest.raises(grpc.RpcError) as caught:
                call(first + second.SerializeToString())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "name its model once, at its beginning" in caught.value.details()


@pytest.mark.long
def test_changes_and_a_control_plane_that_dies_lose_no_request(
    system: System, tmp_path: Path, mlp: Path
) -> None:
    other = scaling(tmp_path, "other")
    system.start(spec=spec(pooled("m", mlp)))
    before = system.wait_ready()
    with Traffic(system, "m").flowing() as traffic:
        apply(system, pooled("m", mlp), pooled("other", other))
        assert system.infer("other", XY)[0] == 200
        system.kill_control()
        system.start()
        after = system.wait_ready()
        apply(system, pooled("m", mlp, batching={"max_batch_size": 8}))
        time.sleep(3)  # what is routed no more is dropped by the copies after a while
        gone, _ = system.infer("other", XY)

    assert traffic.failures == []
    assert len(traffic.statuses) > 50
    assert gone == 404
    assert [r["pid"] for r in copies(after, "m")] == [r["pid"] for r in copies(before, "m")]


@pytest.mark.long
def test_models_move_into_a_pool_and_out_again_under_load(system: System, mlp: Path) -> None:
    alone = {"name": "m", "model": str(mlp)}
    system.start(spec=spec(alone))
    system.wait_ready()
    with Traffic(system, "m").flowing() as traffic:
        apply(system, pooled("m", mlp))
        inside = system.wait_ready()
        time.sleep(0.5)
        apply(system, alone)
        outside = system.wait_ready()
        time.sleep(0.5)

    assert traffic.failures == []
    assert {"pool-small-1", "pool-small-2"} <= {one["name"] for one in copies(inside, "m")}
    assert "pool-small-1" not in {one["name"] for one in copies(outside, "m")}


@pytest.mark.long
def test_a_copy_that_is_killed_is_told_again_and_the_other_answers(
    system: System, tmp_path: Path, mlp: Path
) -> None:
    weak = scaling(tmp_path, "weak")
    system.start(spec=spec(pooled("m", mlp), pooled("weak", weak)))
    before = system.wait_ready()
    for _ in range(30):  # both copies load it
        assert system.infer("weak", XY)[0] == 200
    content = weak.read_bytes()
    stored = [p for p in system.home.glob("artifacts/**/*.onnx") if p.read_bytes() == content]
    assert len(stored) == 1
    stored[0].chmod(0o644)
    stored[0].write_bytes(content[: len(content) // 2])
    victim = copies(before, "m")[0]
    with Traffic(system, "m").flowing() as traffic:
        process = next(p for p in system.processes() if p.pid == victim["pid"])
        process.kill()
        system.wait_for(lambda status: len(_ready(status)) == 1)
        system.wait_for(lambda status: len(_ready(status)) == 2)
        statuses = Counter(system.infer("weak", XY)[0] for _ in range(20))

    assert len(traffic.failures) <= 4  # those that it was answering when it died
    assert len(traffic.statuses) > 50
    # The copy that went on has it loaded; the new one cannot load it, so the other is tried.
    assert statuses[200] >= 18


def _ready(status: Any) -> list[Any]:
    return [replica for replica in copies(status, "m") if replica["state"] == "ready"]


@pytest.mark.long
def test_a_rollout_in_a_pool_sees_what_each_version_answers(system: System, tmp_path: Path) -> None:
    first = classifying(tmp_path, "first")
    second = classifying(tmp_path, "second", yes_below=0.6)
    system.start(spec=spec(endpoint(first, pool="small")))
    assert hosts(system.wait_ready(), "m") == BOTH
    rollout = Rollout(system)
    half = {"weight": 50, "until": "verdict"}
    metrics = {**ONLY_PREDICTIONS, "predictions": {"margin": 0.1}}

    with callers(system, rate=300).flowing() as load:
        rollout.start(second, canary(half, metrics=metrics))
        over = rollout.wait_over(30)

    assert over["phase"] == "rolled_back", over
    found = metric(over, "predictions")
    assert found["outcome"] == "roll_back"
    assert found["effect"] == pytest.approx(0.3, abs=0.15)
    assert load.failed == []
    assert {call.version for call in load.calls} == {"1", "2"}


@pytest.mark.long
def test_a_version_that_a_pool_cannot_load_is_rolled_back(system: System, tmp_path: Path) -> None:
    first = classifying(tmp_path, "first")
    second = classifying(tmp_path, "second", megabytes=100)
    small = {**POOL, "memory_bytes": 50_000_000}
    system.start(spec={**spec(endpoint(first, pool="small")), "pools": [small]})
    assert hosts(system.wait_ready(), "m") == BOTH
    rollout = Rollout(system)
    step = {"weight": 10, "pause_s": 60.0}

    with callers(system, rate=100).flowing() as load:
        rollout.start(second, canary(step, metrics={**ONLY_PREDICTIONS, "predictions": None}))
        over = rollout.wait_over(15)
        time.sleep(0.5)

    assert over["phase"] == "rolled_back", over
    assert "version 2 cannot be loaded" in over["reason"]
    assert load.calls[-1].status == 200
    assert {call.status for call in load.failed} <= {503}
    assert len(load.failed) < len(load.calls) / 5
