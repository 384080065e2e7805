"""The control plane asks replicas what they counted, judges it, tells it, and keeps it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.control.auth.roles import SYSTEM
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.telemetry.drift import DriftMonitor
from headrace.control.telemetry.drift_files import DriftFiles, EndpointDrift, decode_reference
from headrace.core import (
    Array,
    EndpointNotFoundError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.monitor.drift_reference import DriftReference, feature_reference
from headrace.monitor.drift_version import StoredDrift, VersionDrift
from headrace.observe.features import FeatureValues, count_columns
from headrace.serving.telemetry.report import DriftPlan, DriftTaken, SeenAnswer
from tests.metrics import exposed
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio


def normal(rows: int, features: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, features))


def shifted(table: Array, *shifts: float) -> Array:
    moved: Array = table + np.array(shifts)
    return moved


def a_reference(rows: int = 2000, *names: str) -> DriftReference:
    table = normal(rows, 2)
    features = [
        feature_reference(name, "input", table[:, i])
        for i, name in enumerate(names or ("x[0]", "x[1]"))
    ]
    return DriftReference(features=features, source="data", rows=rows, created_at=1.0)


class Replicas:
    """Replicas that follow plans, and count what the test lets them see."""

    def __init__(self) -> None:
        self.plans: dict[str, DriftPlan] = {}
        self.tables: dict[str, Array] = {}
        self.is_silent = False

    async def call(self, replica: Replica, _method: str, path: str, body: bytes) -> bytes:
        if self.is_silent:
            raise UnavailableError("gone", retry_after_s=None)
        if path == "/internal/drift":
            self.plans[replica.name] = msgspec.json.decode(body, type=DriftPlan)
            return b"{}"
        plan = self.plans.get(replica.name, DriftPlan())
        table = self.tables.pop(replica.name, None)
        if table is None or not plan.key:
            return msgspec.json.encode(DriftTaken(key=plan.key))
        width = table.shape[1]
        values = [
            FeatureValues(name=f"x[{i}]", role="input", values=table[:, i].tolist())
            for i in range(width)
            if f"x[{i}]" not in {one.name for one in plan.bins}
        ]
        counts = count_columns(table[:, : len(plan.bins)], plan.bins)
        answers = [SeenAnswer("r1", "cat")] if plan.labels else []
        taken = DriftTaken(
            key=plan.key, counts=counts, values=values, answers=answers, seen=len(table)
        )
        return msgspec.json.encode(taken)


@pytest.fixture
def replicas(plane: ControlPlane) -> Replicas:
    made = Replicas()
    plane.telemetry.drift.call = made.call
    return made


async def serve(plane: ControlPlane, tmp_path: Path, **settings: object) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"good")
    entry = {"name": "e", "model": str(model), "drift": settings}
    await plane.desired_state.apply({"endpoints": [entry]}, caller=SYSTEM)
    endpoint = plane.target_state.effective.endpoint("e")
    assert endpoint is not None
    for serial in range(2):
        replica = Replica(
            name=f"e-1-{serial}",
            serial=serial,
            endpoint="e",
            version="1",
            revision_id=endpoint.arms[0].revision.id,
            address="unix:/nowhere",
            phase=ReplicaPhase.READY,
            since=0.0,
        )
        plane.reconciling.reconciler.replicas[replica.name] = replica


async def look(plane: ControlPlane, replicas: Replicas, *tables: Array) -> None:
    replicas.tables = {f"e-1-{i}": table for i, table in enumerate(tables)}
    await plane.telemetry.drift.poll()


async def look_often(plane: ControlPlane, replicas: Replicas, table: Array) -> None:
    """As often as shows that the rows do not depend on each other."""
    for part in np.split(table, 6):
        await look(plane, replicas, *np.split(part, 2))


async def drift_events(plane: ControlPlane) -> Sequence[Event]:
    return [event for event in await plane.journal.events("e") if event.kind == "drift"]


async def test_counts_of_all_replicas_are_judged_together(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path)
    plane.telemetry.drift.set_reference("e", a_reference())
    await look(plane, replicas)

    await look_often(plane, replicas, shifted(normal(360, 2, 5), 0.0, 1.0))

    (event,) = await drift_events(plane)
    assert event.reason == "DriftFound"
    assert event.message.startswith("version 1: drifted: x[1] (input, ")
    assert list(event.data) == ["x[1]"]
    text = exposed(plane.telemetry.drift.families())
    assert 'headrace_drift_score{endpoint="e",feature="x[1]",statistic="drifted"} 1' in text
    assert 'headrace_drift_score{endpoint="e",feature="x[0]",statistic="drifted"} 0' in text


async def test_without_a_reference_the_first_rows_are_it(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path, window_rows=300)
    await look(plane, replicas)
    for seed in range(2):
        await look(plane, replicas, normal(100, 2, seed), normal(100, 2, seed + 9))
    await look(plane, replicas)
    assert [one.name for one in replicas.plans["e-1-0"].bins] == ["x[0]", "x[1]"]

    await look(plane, replicas, shifted(normal(400, 2, 5), 2.0, 0.0))

    assert [event.reason for event in await drift_events(plane)] == [
        "DriftReferenceTaken",
        "DriftFound",
    ]


async def test_what_is_known_survives_a_restart(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path)
    plane.telemetry.drift.set_reference("e", a_reference())
    await look(plane, replicas)
    await look_often(plane, replicas, shifted(normal(360, 2, 5), 0.0, 1.0))
    plane.telemetry.drift._save()

    again = DriftMonitor(
        target_state=plane.target_state,
        labels=plane.telemetry.drift.labels,
        files=plane.telemetry.drift.files,
        clock=plane.clock,
        emit=plane.journal.write,
        call=replicas.call,
    )
    await again.poll()

    _, known = again.version("e")
    assert known is not None
    assert [(one.name, one.state, one.rows) for one in known.reports()] == [
        ("x[0]", "ok", 360),
        ("x[1]", "drifted", 360),
    ]


async def test_answers_wait_for_their_labels_where_the_spec_says_so(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path, labels=True)
    await look(plane, replicas)
    await look(plane, replicas, normal(10, 2))

    outcome = plane.telemetry.drift.labels.add_label("r1", "cat", now=plane.clock.now())

    assert outcome == "taken"
    async with client_of(plane) as client:
        live = (await client.get("/endpoints/e/drift")).json()["live"]
    assert live[0] == {"seconds": 3600.0, "rows": 1, "accuracy": 1.0, "mean_error": None}


async def test_another_version_goes_on_with_the_inputs_reference(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    for content in (b"one", b"two"):
        model = tmp_path / "m.onnx"
        model.write_bytes(content)
        plane.registry.push("fraud", model)
    await plane.desired_state.apply(
        {"endpoints": [{"name": "e", "model": "fraud:1", "drift": {}}]}, caller=SYSTEM
    )
    await look(plane, replicas)
    _, first = plane.telemetry.drift.version("e")
    assert first is not None
    plane.telemetry.drift._kept["e"].versions["1"] = VersionDrift(
        settings=first.settings, stored=StoredDrift(reference=a_reference())
    )
    split = [{"model": f"fraud:{n}", "weight": w} for n, w in ((1, 90), (2, 10))]
    await plane.desired_state.apply(
        {"endpoints": [{"name": "e", "versions": split, "drift": {}}]}, caller=SYSTEM
    )

    await look(plane, replicas)

    _, second = plane.telemetry.drift.version("e", "2")
    assert second is not None
    assert [bins.name for bins in second.bins] == ["x[0]", "x[1]"]
    assert plane.telemetry.drift.version("e")[0] == "1"


async def test_replicas_that_do_not_answer_are_left_out(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path)
    replicas.is_silent = True

    await plane.telemetry.drift.poll()

    assert exposed(plane.telemetry.drift.families()) == ""


async def test_endpoints_whose_spec_does_not_say_drift_are_left_alone(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path)
    await look(plane, replicas)
    entry = {"name": "e", "model": str(tmp_path / "m.onnx")}
    await plane.desired_state.apply({"endpoints": [entry]}, caller=SYSTEM)
    replicas.plans.clear()

    await look(plane, replicas)

    assert replicas.plans == {}
    with pytest.raises(FailedPreconditionError, match="not watched"):
        plane.telemetry.drift.set_reference("e", a_reference())
    with pytest.raises(EndpointNotFoundError):
        plane.telemetry.drift.settings("nobody")


async def test_other_settings_keep_the_reference_and_count_anew(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path)
    plane.telemetry.drift.set_reference("e", a_reference())
    await look(plane, replicas)
    await look(plane, replicas, normal(100, 2, 5))

    entry = {"name": "e", "model": str(tmp_path / "m.onnx"), "drift": {"margin": 0.2}}
    await plane.desired_state.apply({"endpoints": [entry]}, caller=SYSTEM)
    await look(plane, replicas)

    _, known = plane.telemetry.drift.version("e")
    assert known is not None
    assert known.settings.margin == 0.2
    assert [one.rows for one in known.reports()] == [0, 0]


async def test_the_api_tells_the_state_and_takes_a_reference(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    await serve(plane, tmp_path)
    path = "/endpoints/e/drift"
    async with client_of(plane) as client:
        before = (await client.get(path)).json()
        body = msgspec.json.encode(a_reference())
        headers = {"content-type": "application/json"}
        put = await client.put(f"{path}/reference", content=body, headers=headers)
        await look(plane, replicas)
        await look_often(plane, replicas, shifted(normal(360, 2, 5), 0.0, 1.0))
        after = (await client.get(path)).json()
        reset = await client.delete(f"{path}/reference")
        bad = await client.put(f"{path}/reference", content=b'{"features":[]}', headers=headers)
        nobody = await client.get("/endpoints/nobody/drift")

    assert (before["state"], before["features"], before["reference"]) == ("collecting", [], None)
    assert put.status_code == reset.status_code == 200
    assert (after["state"], after["reference"]["source"]) == ("drifted", "data")
    assert [one["name"] for one in after["features"]] == ["x[1]", "x[0]"]
    assert after["features"][0]["evidence"] >= after["features"][0]["needed"] > 0
    assert reset.json()["state"] == "collecting"
    assert (bad.status_code, nobody.status_code) == (400, 404)


async def test_a_reference_is_kept_beside_a_model_version(
    plane: ControlPlane, replicas: Replicas, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"good")
    plane.registry.push("fraud", model)
    body = msgspec.json.encode(a_reference())
    async with client_of(plane) as client:
        headers = {"content-type": "application/json"}
        path = "/models/fraud/versions/1/reference"
        put = await client.put(path, content=body, headers=headers)
        unknown = await client.put(
            "/models/fraud/versions/9/reference", content=body, headers=headers
        )
    await plane.desired_state.apply(
        {"endpoints": [{"name": "e", "model": "fraud", "drift": {}}]}, caller=SYSTEM
    )

    await look(plane, replicas)

    _, known = plane.telemetry.drift.version("e")
    assert known is not None
    assert [bins.name for bins in known.bins] == ["x[0]", "x[1]"]
    assert (put.status_code, put.json()["rows"], unknown.status_code) == (200, 2000, 404)


async def test_an_endpoint_without_drift_is_off(plane: ControlPlane, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"good")
    await plane.desired_state.apply(
        {"endpoints": [{"name": "e", "model": str(model)}]}, caller=SYSTEM
    )
    async with client_of(plane) as client:
        assert (await client.get("/endpoints/e/drift")).json()["state"] == "off"


def test_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    files = DriftFiles(tmp_path)
    files.write("e", EndpointDrift(versions={"1": StoredDrift()}, reference=a_reference()))
    assert files.read("e").reference == a_reference()
    (tmp_path / "drift" / "endpoints" / "e.json").write_bytes(b"{")

    assert files.read("e") == EndpointDrift()
    files.forget("e")
    assert files.read("e") == EndpointDrift()


def test_a_reference_is_found_by_registry_names_only(tmp_path: Path) -> None:
    files = DriftFiles(tmp_path)
    files.write_reference("fraud:3", a_reference())

    assert files.reference("fraud:3") == a_reference()
    assert files.reference("fraud:4") is None
    assert files.reference("/etc/passwd") is None
    assert files.reference("../x:1") is None


def test_a_reference_that_does_not_fit_itself_is_refused() -> None:
    one = a_reference().features[0]
    bad = [
        DriftReference(),
        DriftReference(features=[one] * 161),
        DriftReference(
            features=[
                msgspec.structs.replace(one, counts=msgspec.structs.replace(one.counts, bins=[1]))
            ]
        ),
    ]

    for reference in bad:
        with pytest.raises(InvalidArgumentError):
            decode_reference(msgspec.json.encode(reference))
    with pytest.raises(InvalidArgumentError, match=r"its 2 hours do not match .*--time"):
        decode_reference(
            msgspec.json.encode(
                DriftReference(features=[msgspec.structs.replace(one, hours=[[1], [2]])])
            )
        )
    with pytest.raises(InvalidArgumentError, match="invalid reference"):
        decode_reference(b"[]")
