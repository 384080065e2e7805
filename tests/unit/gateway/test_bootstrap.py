"""What Envoy bounds by itself, and what goes first when there is too little of something."""

from pathlib import Path
from typing import Any

from headrace.core.spec.scale import ConnectionsSpec
from headrace.gateway import EnvoySettings, build_snapshot
from headrace.gateway.bootstrap import bootstrap
from tests.unit.gateway.arbitrary import plain

SETTINGS = EnvoySettings(
    run_dir=Path("/tmp/g"),  # noqa: S108  # never written
    connections=ConnectionsSpec(max_memory_bytes=1 << 30, max=99),
)


def overload() -> Any:  # noqa: ANN401  # Envoy's JSON
    return plain(bootstrap(SETTINGS))["overload_manager"]


def begins_at(action: Any) -> float:  # noqa: ANN401  # as above
    (trigger,) = action["triggers"]
    kind = trigger.get("scaled", {}).get("scaling_threshold")
    return float(trigger["threshold"]["value"] if kind is None else kind)


def test_memory_and_connections_have_the_limits_of_the_settings() -> None:
    heap, connections = (m["typed_config"] for m in overload()["resource_monitors"])

    assert heap["max_heap_size_bytes"] == 1 << 30
    assert connections["max_active_downstream_connections"] == 99


def test_the_largest_requests_are_cut_before_anybody_else_is_refused() -> None:
    actions = {one["name"].rpartition(".")[2]: one for one in overload()["actions"]}

    cut, refuse = actions["reset_high_memory_stream"], actions["stop_accepting_requests"]
    assert begins_at(cut) < begins_at(refuse) < 1


def test_a_caller_has_as_long_as_the_settings_say() -> None:
    settings = EnvoySettings(
        run_dir=Path("/tmp/g"),  # noqa: S108  # never written
        connections=ConnectionsSpec(headers_timeout_s=1.5, request_timeout_s=7.0),
    )

    listener, *_ = plain(build_snapshot(settings, []).listeners)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]

    assert manager["request_headers_timeout"] == "1.500s"
    assert manager["request_timeout"] == "7.000s"
