"""State files that version 0.1 wrote are loaded whole."""

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from headrace.control.agents.counts import StoredTotals
from headrace.control.base.ownership import HomeIdentity
from headrace.control.base.settings import ControlFile
from headrace.control.features.materialize_plan import ViewPast
from headrace.control.gateway.supervisor import GatewayRecord
from headrace.control.local.driver import ReplicaRecord
from headrace.control.model.audit_log import Head
from headrace.control.scaling.scaler import ScalerStates
from headrace.control.streams.driver import WorkerRecord
from headrace.control.streams.supervisor import StreamOrders
from headrace.control.telemetry.drift_files import EndpointDrift
from headrace.core.state_file import StateFile
from headrace.gateway.settings import EndpointRoute

FOLDER: Final = Path(__file__).parent / "state_0_1"
SCHEMAS: Final[dict[str, Any]] = {
    "control.json": ControlFile,
    "drift.json": EndpointDrift,
    "gateway-counts.json": StoredTotals,
    "gateway.json": GatewayRecord,
    "identity.json": HomeIdentity,
    "materialized.json": list[ViewPast],
    "replica.json": ReplicaRecord,
    "routes.json": tuple[EndpointRoute, ...],
    "scaling.json": ScalerStates,
    "streams.json": dict[str, StreamOrders],
    "trail-checkpoint.json": Head,
    "worker.json": WorkerRecord,
}


def contains(document: Any, part: Any) -> bool:  # noqa: ANN401  # JSON
    """Whether `part` is in `document` with the same values; `document` may have more fields."""
    if isinstance(part, dict):
        return isinstance(document, dict) and all(
            key in document and contains(document[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(document, list)
            and len(document) == len(part)
            and all(map(contains, document, part))
        )
    return bool(document == part)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_a_state_file_of_0_1_is_loaded_with_every_value(name: str) -> None:
    value = StateFile(FOLDER / name, SCHEMAS[name], name).load()

    stored = msgspec.json.decode((FOLDER / name).read_bytes())
    assert contains(msgspec.json.decode(msgspec.json.encode(value)), stored)
