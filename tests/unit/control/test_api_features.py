"""Features over the management API, in the status, and as metrics."""

from pathlib import Path

import pytest

from headrace.control.features.materialize_plan import failed, past_of
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.plane.metrics import own_families
from headrace.features import applied_definitions, apply_definitions
from tests.metrics import exposed
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio
YAML = """
entities: [{name: customer, datatype: INT64}]
feature_views:
  - name: stats
    entities: [customer]
    source: {path: stats.parquet}
    materialize: {cron: "*/5 * * * *"}
    features: [{name: age, datatype: INT64}]
  - name: by_hand
    entities: [customer]
    source: {path: other.parquet}
    features: [{name: size, datatype: FP32}]
feature_services: [{name: s, features: [by_hand, stats]}]
"""


@pytest.fixture
def featured(plane: ControlPlane, tmp_path: Path) -> ControlPlane:
    """A view that failed, and one without a schedule."""
    (tmp_path / "features.yaml").write_text(YAML)
    apply_definitions(tmp_path / "features.yaml", plane.home.root)
    plane.workloads.materializer.definitions = applied_definitions(plane.home.root)
    view = plane.workloads.materializer.definitions.view("stats")
    now = plane.clock.now()
    past = failed(past_of(view, None), "no such file", started=now, now=now)
    plane.workloads.materializer.memory.save([past])
    plane.workloads.materializer.load()
    return plane


async def test_views_and_services_are_listed(featured: ControlPlane) -> None:
    async with client_of(featured) as api:
        found = (await api.get("/features")).json()
        status = (await api.get("/status")).json()

    stats, by_hand = found["views"]
    assert (stats["name"], stats["state"], stats["failures"]) == ("stats", "failing", 1)
    assert (stats["cron"], stats["timezone"]) == ("*/5 * * * *", "UTC")
    assert stats["message"] == "no such file"
    assert (by_hand["name"], by_hand["state"]) == ("by_hand", "unscheduled")
    (service,) = found["services"]
    assert (service["name"], service["columns"]) == ("s", ["size", "age"])
    assert found["problem"] == ""
    assert [view["name"] for view in status["features"]] == ["stats", "by_hand"]


async def test_nothing_applied_is_an_empty_list(plane: ControlPlane) -> None:
    async with client_of(plane) as api:
        found = (await api.get("/features")).json()

    assert found == {"views": [], "services": [], "problem": ""}


async def test_who_sees_some_endpoints_sees_no_features(featured: ControlPlane) -> None:
    async with client_of(featured, "viewer:m") as api:
        refused = await api.get("/features")
        status = (await api.get("/status")).json()

    assert refused.status_code == 403
    assert status["features"] == []


async def test_scheduled_views_have_metrics(featured: ControlPlane) -> None:
    text = exposed(own_families(featured))

    assert 'headrace_feature_view_failures_total{view="stats"} 1' in text
    assert "by_hand" not in text
