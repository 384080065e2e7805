import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from headrace.control.auth.roles import SYSTEM
from headrace.control.base.home import Home
from headrace.control.desired.applier import Applied, can_roll
from headrace.control.desired.documents import with_entry
from headrace.control.desired.models import MAX_INSPECTIONS
from headrace.control.model.records import EndpointGeneration, RolloutRecord
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.state.store import Store
from headrace.core import (
    ConflictError,
    EndpointNotFoundError,
    FailedPreconditionError,
    Inspected,
    InvalidArgumentError,
    NotFoundError,
    RequestCancelledError,
)
from headrace.core.spec.parse import SpecError
from headrace.core.spec.rollout import BlueGreenSpec, CanarySpec
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase, TrafficShares, Verb
from tests.unit.control.conftest import admin_called, inspect

pytestmark = pytest.mark.anyio

CANARY = {"strategy": "canary"}


@pytest.fixture
def versions(registry: Registry, tmp_path: Path) -> None:
    """Three versions of the model `digits`."""
    for number in range(1, 4):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"model %d" % number)
        registry.push("digits", path)


def entry(version: int, **fields: object) -> dict[str, Any]:
    return {"name": "digits", "model": f"digits:{version}", **fields}


def document(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"endpoints": list(entries)}


def served(plane: ControlPlane) -> dict[str, int]:
    """What runs now: weights by arm."""
    endpoint = plane.target_state.effective.endpoint("digits")
    assert endpoint is not None
    return {arm.key: arm.weight for arm in endpoint.arms}


async def finish(plane: ControlPlane, phase: RolloutPhase, traffic: TrafficShares) -> RolloutRecord:
    """The current rollout, moved to its end as the driver would."""
    record = plane.target_state.rollout("digits")
    assert record is not None
    state = msgspec.structs.replace(record.state, phase=phase, traffic=traffic)
    saved = plane.store.save_rollout.blocking(msgspec.structs.replace(record, state=state))
    plane.target_state.set_target(rollouts=[saved])
    return saved


@pytest.mark.usefixtures("versions")
async def test_a_new_version_takes_over_by_the_endpoints_plan(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)

    await plane.desired_state.apply(document(entry(2, rollout=CANARY)), caller=SYSTEM)

    record = plane.target_state.rollout("digits")
    assert record is not None
    assert record.id == "r1"
    assert record.state.phase is RolloutPhase.PREPARING
    assert served(plane) == {"2": 0, "1": 100}
    assert plane.target_state.generation("digits") == 2
    assert [e.reason for e in await plane.journal.events("digits")] == [
        "Added",
        "Started",
        "Changed",
    ]


@pytest.mark.usefixtures("versions")
async def test_applying_the_same_again_begins_nothing(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)
    await plane.desired_state.apply(document(entry(2, rollout=CANARY)), caller=SYSTEM)
    await finish(plane, RolloutPhase.ROLLED_BACK, TrafficShares())

    again = await plane.desired_state.apply(document(entry(2, rollout=CANARY)), caller=SYSTEM)

    assert again.changes == []
    assert served(plane) == {"1": 100}
    assert len(await plane.rollouts.records()) == 1


@pytest.mark.usefixtures("versions")
async def test_without_a_plan_a_new_version_takes_over_at_once(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)

    await plane.desired_state.apply(document(entry(2)), caller=SYSTEM)

    assert plane.target_state.rollouts.get("digits") is None
    assert served(plane) == {"2": 100}


@pytest.mark.usefixtures("versions")
async def test_a_change_that_is_no_new_version_begins_no_rollout(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)

    await plane.desired_state.apply(
        document(entry(1, rollout=CANARY, timeout_s=5.0)), caller=SYSTEM
    )

    assert plane.target_state.rollouts.get("digits") is None
    assert plane.target_state.generation("digits") == 2


@pytest.mark.usefixtures("versions")
async def test_another_apply_supersedes_a_rollout_and_starts_from_what_serves(
    plane: ControlPlane,
) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)
    await plane.desired_state.apply(document(entry(2, rollout=CANARY)), caller=SYSTEM)

    await plane.desired_state.apply(document(entry(3, rollout=CANARY)), caller=SYSTEM)

    second, first = await plane.rollouts.records()
    assert first.state.phase is RolloutPhase.SUPERSEDED
    assert second.state.phase is RolloutPhase.PREPARING
    assert [arm.key for arm in second.source.arms] == ["1"]
    assert served(plane) == {"3": 0, "1": 100}


@pytest.mark.usefixtures("versions")
async def test_applying_the_old_version_ends_a_rollout_at_once(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)
    await plane.desired_state.apply(document(entry(2, rollout=CANARY)), caller=SYSTEM)

    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)

    (record,) = await plane.rollouts.records()
    assert record.state.phase is RolloutPhase.SUPERSEDED
    assert served(plane) == {"1": 100}


@pytest.mark.usefixtures("versions")
async def test_a_rollout_by_hand_keeps_the_endpoints_own_plan(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)

    record = await plane.desired_state.start_rollout(
        "digits", version="2", rollout={"strategy": "blue-green"}, caller=admin_called("ada")
    )

    assert isinstance(record.state.settings, BlueGreenSpec)
    assert record.actor == "ada"
    endpoint = plane.target_state.desired.endpoint("digits")
    assert endpoint is not None
    assert isinstance(endpoint.rollout, CanarySpec)
    assert plane.target_state.desired.entry("digits") == entry(2, rollout=CANARY)


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize(
    ("more", "max_ratio"),
    [
        ({}, 0.05),
        ({"metrics": {"errors": {}}}, 0.05),
        ({"metrics": {"errors": {"max_ratio": 0.02}}}, 0.02),
        ({"slo": {"availability": 0.99}}, pytest.approx(0.01)),
        ({"slo": {"availability": 0.99}, "metrics": {"errors": {"max_ratio": None}}}, None),
        ({"metrics": {"errors": {"max_ratio": None}}}, None),
        ({"metrics": {"errors": None}}, None),
    ],
)
async def test_blue_green_judges_errors_unless_somebody_says_otherwise_and_is_warned(
    plane: ControlPlane, more: dict[str, Any], max_ratio: float | None
) -> None:
    slo = {name: value for name, value in more.items() if name == "slo"}
    metrics = {name: value for name, value in more.items() if name == "metrics"}
    how = {"strategy": "blue-green", **metrics}

    applied = await plane.desired_state.apply(document(entry(1, rollout=how, **slo)), caller=SYSTEM)

    endpoint = plane.target_state.desired.endpoint("digits")
    assert endpoint is not None
    assert endpoint.rollout is not None
    errors = endpoint.rollout.metrics.errors
    assert (None if errors is None else errors.max_ratio) == max_ratio
    assert [("'digits'" in line, "max_ratio" in line) for line in applied.warnings] == (
        [(True, True)] if max_ratio is None else []
    )


async def test_a_broken_model_of_a_repository_takes_nothing_over_and_is_warned_of(
    plane: ControlPlane, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    for version, content in (("1", b"model"), ("2", b"bad")):
        (root / "m" / version).mkdir(parents=True)
        (root / "m" / version / "model.onnx").write_bytes(content)
    spec = document({"name": "all", "model": str(root), "rollout": CANARY})
    policy = root / "m" / "config.pbtxt"
    policy.write_text("version_policy: { specific: { versions: [ 1 ] } }")
    first = await plane.desired_state.apply(spec, caller=SYSTEM)
    policy.unlink()
    second = await plane.desired_state.apply(spec, caller=SYSTEM)
    [status] = plane.endpoint_statuses(plane.target_state.effective.endpoints)

    assert first.warnings == []
    [warning] = second.warnings
    assert warning.startswith("endpoint 'm': version 2 cannot be served: ")
    assert plane.target_state.active() == []  # a canary of what cannot run would wait for nothing
    assert status.failed
    assert "version 2: " in status.message


@pytest.mark.usefixtures("versions")
async def test_a_rollout_starts_again_after_it_was_taken_back(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    await finish(plane, RolloutPhase.ROLLED_BACK, TrafficShares())

    record = await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)

    assert record.id == "r2"
    assert [arm.key for arm in record.source.arms] == ["1"]
    assert served(plane) == {"2": 0, "1": 100}


@pytest.mark.usefixtures("versions")
async def test_after_a_promotion_the_next_rollout_starts_from_the_new_version(
    plane: ControlPlane,
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    await finish(plane, RolloutPhase.PROMOTED, TrafficShares(candidate=100, has_stable=False))

    record = await plane.desired_state.start_rollout("digits", version="3", caller=SYSTEM)

    assert [arm.key for arm in record.source.arms] == ["2"]


@pytest.mark.usefixtures("versions")
async def test_a_rollout_to_what_is_served_is_refused(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)

    with pytest.raises(InvalidArgumentError, match="serves version 1 already"):
        await plane.desired_state.start_rollout("digits", version="1", caller=SYSTEM)


@pytest.mark.usefixtures("versions")
async def test_two_rollouts_of_one_endpoint_exclude_each_other(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)

    with pytest.raises(FailedPreconditionError, match=r"rollout r1 .* is under way"):
        await plane.desired_state.start_rollout("digits", version="3", caller=SYSTEM)


@pytest.mark.usefixtures("versions")
async def test_a_rollout_to_a_missing_version_changes_nothing(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)

    with pytest.raises(SpecError, match="no version 9"):
        await plane.desired_state.start_rollout("digits", version="9", caller=SYSTEM)
    with pytest.raises(SpecError, match="strateg"):
        await plane.desired_state.start_rollout(
            "digits", version="2", rollout={"strategy": "hope"}, caller=SYSTEM
        )
    with pytest.raises(InvalidArgumentError, match="name the version"):
        await plane.desired_state.start_rollout("digits", caller=SYSTEM)
    with pytest.raises(EndpointNotFoundError):
        await plane.desired_state.start_rollout("letters", version="2", caller=SYSTEM)

    assert plane.target_state.generation("digits") == 1


@pytest.mark.usefixtures("versions")
async def test_undo_restores_the_generation_before_at_once(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1, rollout=CANARY)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    await finish(plane, RolloutPhase.PROMOTED, TrafficShares(candidate=100, has_stable=False))

    await plane.desired_state.undo("digits", caller=SYSTEM)

    assert served(plane) == {"1": 100}
    assert plane.target_state.desired.entry("digits") == entry(1, rollout=CANARY)
    newest = (await plane.store.history("digits"))[0]
    assert (newest.generation, newest.reason) == (3, "undone to generation 1")


@pytest.mark.usefixtures("versions")
async def test_undo_of_a_rollout_taken_back_gives_up_what_was_held_back(
    plane: ControlPlane,
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    await finish(plane, RolloutPhase.ROLLED_BACK, TrafficShares())

    await plane.desired_state.undo("digits", caller=SYSTEM)

    assert plane.target_state.desired.entry("digits") == entry(1)
    assert plane.target_state.rollout("digits") is None


@pytest.mark.usefixtures("versions")
async def test_undo_never_goes_back_to_what_was_held_back(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    for _ in range(2):
        await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
        await finish(plane, RolloutPhase.ROLLED_BACK, TrafficShares())

    await plane.desired_state.undo("digits", caller=SYSTEM)

    assert served(plane) == {"1": 100}
    with pytest.raises(FailedPreconditionError, match="nothing to undo"):
        await plane.desired_state.undo("digits", caller=SYSTEM)


@pytest.mark.usefixtures("versions")
async def test_undo_in_the_middle_of_a_rollout_gives_it_up(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)

    await plane.desired_state.undo("digits", caller=SYSTEM)

    assert served(plane) == {"1": 100}
    assert (await plane.rollouts.records())[0].state.phase is RolloutPhase.SUPERSEDED


@pytest.mark.usefixtures("versions")
async def test_undo_twice_is_where_one_was(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.apply(document(entry(2)), caller=SYSTEM)

    await plane.desired_state.undo("digits", caller=SYSTEM)
    first = served(plane)
    await plane.desired_state.undo("digits", caller=SYSTEM)

    assert first == {"1": 100}
    assert served(plane) == {"2": 100}


@pytest.mark.usefixtures("versions")
async def test_undo_brings_a_removed_endpoint_back(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.remove_endpoint("digits", caller=SYSTEM)

    await plane.desired_state.undo("digits", generation=1, caller=SYSTEM)

    assert served(plane) == {"1": 100}
    assert [e.generation for e in await plane.store.history("digits")] == [3, 2, 1]


@pytest.mark.usefixtures("versions")
async def test_undo_says_what_it_cannot_restore(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)

    with pytest.raises(FailedPreconditionError, match="nothing to undo"):
        await plane.desired_state.undo("digits", caller=SYSTEM)
    with pytest.raises(NotFoundError, match="no generation 7; the newest is 1"):
        await plane.desired_state.undo("digits", generation=7, caller=SYSTEM)
    with pytest.raises(EndpointNotFoundError):
        await plane.desired_state.undo("letters", caller=SYSTEM)


@pytest.mark.usefixtures("versions")
async def test_undo_to_a_model_that_is_gone_is_refused(
    plane: ControlPlane, registry: Registry
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.apply(document(entry(2)), caller=SYSTEM)
    registry.path(registry.get("digits:1")).unlink()

    with pytest.raises(FailedPreconditionError, match="gone from the registry"):
        await plane.desired_state.undo("digits", caller=SYSTEM)

    assert served(plane) == {"2": 100}


@pytest.mark.usefixtures("versions")
async def test_a_writer_who_read_an_older_generation_loses(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.put_endpoint(
        "digits", {"model": "digits:2"}, expected=1, caller=SYSTEM
    )

    with pytest.raises(ConflictError, match="at generation 2, not 1"):
        await plane.desired_state.put_endpoint(
            "digits", {"model": "digits:3"}, expected=1, caller=SYSTEM
        )
    with pytest.raises(ConflictError):
        await plane.desired_state.remove_endpoint("digits", expected=1, caller=SYSTEM)
    with pytest.raises(ConflictError):
        await plane.desired_state.apply(document(entry(3)), expected={"digits": 1}, caller=SYSTEM)

    assert served(plane) == {"2": 100}


@pytest.mark.usefixtures("versions")
async def test_one_endpoint_is_put_and_the_others_stay_pinned(
    plane: ControlPlane, registry: Registry, tmp_path: Path
) -> None:
    await plane.desired_state.apply(
        document(entry(1), {"name": "newest", "model": "digits"}), caller=SYSTEM
    )
    newer = tmp_path / "newer.onnx"
    newer.write_bytes(b"newer")
    registry.push("digits", newer)

    await plane.desired_state.put_endpoint("digits", {"model": "digits:2"}, caller=SYSTEM)

    pinned = plane.target_state.desired.endpoint("newest")
    assert pinned is not None
    assert pinned.arms[0].key == "3"
    assert served(plane) == {"2": 100}


@pytest.mark.usefixtures("versions")
async def test_a_diff_tells_and_changes_nothing(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)

    diff = await plane.desired_state.diff(
        document(entry(2), {"name": "other", "model": "digits:1"}), caller=SYSTEM
    )
    same = await plane.desired_state.diff(document(entry(1)), caller=SYSTEM)

    assert diff.endpoints["digits"].before == entry(1)
    assert diff.endpoints["digits"].after == entry(2)
    assert diff.endpoints["other"].before is None
    assert any("version 1 removed" in change for change in diff.changes)
    assert (same.changes, same.endpoints) == ([], {})
    assert served(plane) == {"1": 100}
    assert plane.target_state.desired.generation == 1


@pytest.mark.usefixtures("versions")
async def test_a_rollout_stored_without_its_state_has_no_say(plane: ControlPlane) -> None:
    """The control plane died after the first of two writes."""
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    (record,) = await plane.rollouts.records()
    early = msgspec.structs.replace(
        record, target=msgspec.structs.replace(record.target, generation=3)
    )

    plane.target_state.set_target(rollouts=[early])

    assert plane.target_state.rollout("digits") is None
    assert plane.target_state.active() == []


@pytest.mark.usefixtures("versions")
async def test_rollouts_go_on_where_they_were_after_a_restart(plane: ControlPlane) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    before = await finish(plane, RolloutPhase.PROGRESSING, TrafficShares(candidate=25))
    plane.target_state.rollouts.clear()

    plane.rollouts.load()

    assert plane.target_state.rollout("digits") == before
    assert served(plane) == {"2": 25, "1": 75}


def test_a_line_of_the_spec_is_replaced_added_or_taken_out() -> None:
    before = document({"name": "a", "model": "x"})

    assert with_entry(before, "a", {"name": "a", "model": "y"})["endpoints"] == [
        {"name": "a", "model": "y"}
    ]
    assert len(with_entry(before, "b", {"name": "b", "model": "y"})["endpoints"]) == 2
    assert with_entry(before, "a", None)["endpoints"] == []


@pytest.mark.usefixtures("versions")
async def test_only_one_version_that_is_not_served_can_be_rolled_out(plane: ControlPlane) -> None:
    split = [{"model": "digits:1", "weight": 90}, {"model": "digits:2", "weight": 10}]
    await plane.desired_state.apply(document({"name": "digits", "versions": split}), caller=SYSTEM)
    source = plane.target_state.desired.endpoint("digits")
    await plane.desired_state.apply(document(entry(3)), caller=SYSTEM)
    target = plane.target_state.desired.endpoint("digits")
    assert source is not None
    assert target is not None

    assert can_roll(source, target)
    assert not can_roll(target, source)
    assert not can_roll(source, source)


def with_former_ids(plane: ControlPlane) -> None:
    """Let the state be as a former release left it: ids that have the home's path in them."""
    desired = plane.target_state.desired
    endpoints = []
    for endpoint in desired.endpoints:
        arms = tuple(
            msgspec.structs.replace(
                arm, revision=msgspec.structs.replace(arm.revision, id=f"former-{arm.key}")
            )
            for arm in endpoint.arms
        )
        endpoints.append(msgspec.structs.replace(endpoint, arms=arms))
    plane.target_state.set_target(
        desired=msgspec.structs.replace(desired, endpoints=tuple(endpoints))
    )


def ids(plane: ControlPlane) -> list[str]:
    endpoint = plane.target_state.effective.endpoint("digits")
    assert endpoint is not None
    return [arm.revision.id for arm in endpoint.arms]


@pytest.mark.usefixtures("versions")
async def test_what_a_former_release_serves_is_replaced_when_it_changes_and_not_before(
    plane: ControlPlane,
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    [new_id] = ids(plane)
    with_former_ids(plane)

    again = await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    assert (again.changes, ids(plane)) == ([], ["former-1"])
    assert (await plane.desired_state.diff(document(entry(1)), caller=SYSTEM)).endpoints == {}
    await plane.desired_state.apply(document(entry(1, replicas=2)), caller=SYSTEM)
    assert ids(plane) == ["former-1"]
    await plane.desired_state.put_endpoint("digits", entry(1, replicas=3), caller=SYSTEM)
    assert ids(plane) == ["former-1"]
    await plane.desired_state.load("digits", caller=SYSTEM)

    [reloaded] = ids(plane)
    assert reloaded not in {"former-1", new_id}


@pytest.mark.usefixtures("versions")
async def test_an_endpoint_can_be_undone_to_what_it_was_before_its_home_moved(
    plane: ControlPlane, home: Home
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    [before] = ids(plane)
    await plane.desired_state.apply(document(entry(2)), caller=SYSTEM)
    moved = Registry(home.root.rename(home.root.with_name("moved")), inspect)
    plane.desired_state.registry = moved

    await plane.desired_state.undo("digits", caller=SYSTEM)

    endpoint = plane.target_state.effective.endpoint("digits")
    assert endpoint is not None
    assert ids(plane) == [before]
    assert endpoint.arms[0].revision.settings.path.startswith(str(moved.home))


async def test_a_repository_that_moved_is_told_and_its_replicas_go_on(
    plane: ControlPlane, tmp_path: Path
) -> None:
    model = tmp_path / "here" / "digits" / "1" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"model")
    await plane.desired_state.apply(
        document({"name": "all", "model": str(tmp_path / "here")}), caller=SYSTEM
    )
    before = ids(plane)
    there = (tmp_path / "here").rename(tmp_path / "there")

    applied = await plane.desired_state.apply(
        document({"name": "all", "model": str(there)}), caller=SYSTEM
    )

    assert ids(plane) == before
    assert applied.changes == [
        "endpoint 'digits': version 1: the same under other paths or names, its replicas go on"
    ]
    endpoint = plane.target_state.effective.endpoint("digits")
    assert endpoint is not None
    assert endpoint.arms[0].revision.settings.path == str(there / "digits/1/model.onnx")


class SlowInspect:
    """Inspects a model called `slow` for as long as `go` is not set."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(
        self,
        path: Path,
        runtime: str = "",
        *,
        allow_code: bool = False,
        cancel: threading.Event | None = None,
    ) -> Inspected:
        if path.name.startswith("slow"):
            self.began.set()
            while not self.go.wait(0.01):
                if cancel is not None and cancel.is_set():
                    raise RequestCancelledError("the caller left")
        return inspect(path, runtime, allow_code=allow_code)


@pytest.fixture
def slow(plane: ControlPlane, tmp_path: Path) -> Iterator[SlowInspect]:
    (tmp_path / "slow.onnx").write_bytes(b"slow")
    plane.desired_state.work.inspect = SlowInspect()
    yield plane.desired_state.work.inspect
    plane.desired_state.work.inspect.go.set()


@asynccontextmanager
async def loading(
    plane: ControlPlane,
    slow: SlowInspect,
    tmp_path: Path,
    **more: Any,  # noqa: ANN401  # as `put_endpoint`
) -> AsyncIterator[asyncio.Task[Applied]]:
    """Endpoint `slow` is put, and its model is being inspected."""
    line = {"name": "slow", "model": str(tmp_path / "slow.onnx")}
    put = plane.desired_state.put_endpoint("slow", line, caller=SYSTEM, **more)
    task = asyncio.create_task(put)
    await asyncio.to_thread(slow.began.wait, 30.0)
    yield task
    slow.go.set()


@pytest.mark.usefixtures("versions")
async def test_a_slow_model_holds_up_no_change_and_no_rollback_of_others(
    plane: ControlPlane, slow: SlowInspect, tmp_path: Path
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)

    async with loading(plane, slow, tmp_path) as task:
        await plane.rollouts.command("digits", Verb.ABORT)
        await plane.desired_state.put_endpoint("digits", entry(3), caller=SYSTEM)
        assert not task.done()
        assert plane.target_state.generation("digits") == 3

    await task
    assert {str(e.name) for e in plane.target_state.desired.endpoints} == {"digits", "slow"}
    assert plane.target_state.desired.entry("digits") == entry(3)


async def test_a_change_that_was_overtaken_is_made_again_for_what_is_there(
    plane: ControlPlane, slow: SlowInspect, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    async with loading(plane, slow, tmp_path) as task:
        overtaking = {"name": "slow", "model": str(model), "timeout_s": 7.0}
        await plane.desired_state.put_endpoint("slow", overtaking, caller=SYSTEM)

    assert (await task).generation == 2
    assert plane.target_state.desired.entry("slow") == {
        "name": "slow",
        "model": str(tmp_path / "slow.onnx"),
    }


async def test_a_change_for_a_generation_that_was_overtaken_is_refused(
    plane: ControlPlane, slow: SlowInspect, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    async with loading(plane, slow, tmp_path, expected=0) as task:
        await plane.desired_state.put_endpoint("slow", {"model": str(model)}, caller=SYSTEM)

    with pytest.raises(ConflictError):
        await task


async def test_whoever_leaves_ends_the_inspection_and_changes_nothing(
    plane: ControlPlane, slow: SlowInspect, tmp_path: Path
) -> None:
    left = threading.Event()
    async with loading(plane, slow, tmp_path, cancel=left) as task:
        left.set()
        with pytest.raises(RequestCancelledError):
            await task

    assert plane.target_state.desired.endpoints == ()


async def test_one_callers_slow_models_leave_turns_for_others(
    plane: ControlPlane, slow: SlowInspect, tmp_path: Path
) -> None:
    line = {"model": str(tmp_path / "slow.onnx")}
    puts = [
        asyncio.create_task(
            plane.desired_state.put_endpoint(f"e{i}", line, caller=admin_called("ann"))
        )
        for i in range(MAX_INSPECTIONS + 3)
    ]
    await asyncio.to_thread(slow.began.wait, 30.0)
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")

    await plane.desired_state.put_endpoint(
        "bobs", {"model": str(model)}, caller=admin_called("bob")
    )

    assert not any(put.done() for put in puts)
    slow.go.set()
    await asyncio.gather(*puts)
    assert len(plane.target_state.desired.endpoints) == len(puts) + 1


async def test_no_model_is_read_from_the_home(plane: ControlPlane) -> None:
    secret = plane.home.root / "admin-token"
    secret.write_text("secret")
    for path in (secret, plane.home.root, plane.home.root.parent):
        with pytest.raises(SpecError, match="in the home"):
            await plane.desired_state.put_endpoint("e", {"model": str(path)}, caller=SYSTEM)


@pytest.mark.parametrize(
    "sections",
    [
        {"online_stores": [{"name": "main", "url": "redis://cache/0"}]},
        {"tracing": {"collector": "http://127.0.0.1:4318"}},
        {"kubernetes": {"max_rolling_ratio": 0.5}},
        {"endpoints": [entry(1, allow_code=True)]},
    ],
)
@pytest.mark.usefixtures("versions")
async def test_whatever_a_spec_changes_is_stored(
    plane: ControlPlane, sections: dict[str, Any]
) -> None:
    await plane.desired_state.apply(document(entry(1)), caller=SYSTEM)

    applied = await plane.desired_state.apply({**document(entry(1)), **sections}, caller=SYSTEM)

    assert applied.changes
    assert sections.items() <= plane.store.load.blocking().spec.items()
    assert plane.target_state.generation("digits") == 1
    again = await plane.desired_state.apply({**document(entry(1)), **sections}, caller=SYSTEM)
    assert again.changes == []


class SlowStore:
    """A store that returns a long history only once `go` is set."""

    def __init__(self, store: Store) -> None:
        self._of, self.go, self.reading = store, asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # as the real one
        return getattr(self._of, name)

    async def history(self, name: str, *, limit: int = 100) -> list[EndpointGeneration]:
        result = await self._of.history(name, limit=limit)
        if limit > 1:
            self.reading.set()
            await self.go.wait()
        return result


@pytest.mark.usefixtures("versions")
async def test_an_undo_that_was_overtaken_takes_no_newer_change_back(plane: ControlPlane) -> None:
    for version in (1, 2):
        await plane.desired_state.apply(document(entry(version)), caller=SYSTEM)
    slow = SlowStore(plane.store)
    plane.desired_state.store = cast("Store", slow)
    undo = asyncio.create_task(plane.desired_state.undo("digits", caller=SYSTEM))
    await slow.reading.wait()

    await plane.desired_state.put_endpoint("digits", entry(3), caller=SYSTEM)
    slow.go.set()

    with pytest.raises(ConflictError, match="changed concurrently"):
        await undo
    assert plane.target_state.desired.entry("digits") == entry(3)
