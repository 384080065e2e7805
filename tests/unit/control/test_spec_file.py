"""The spec file of a control plane on a cluster, and endpoints that resources define."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.auth.roles import SYSTEM
from headrace.control.base.home import Home
from headrace.control.desired.service import ResourceEndpoint
from headrace.control.model.desired import ResourceOrigin
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.state import home_url, open_store
from headrace.core import FailedPreconditionError, HeadraceError
from headrace.core.spec.parse import SpecError
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase, TrafficShares

pytestmark = pytest.mark.anyio
CANARY = {"strategy": "canary"}


@pytest.fixture(autouse=True)
def versions(registry: Registry, tmp_path: Path) -> None:
    """Three versions of the model `digits`."""
    for number in range(1, 4):
        push(registry, tmp_path, "digits", number)


def push(registry: Registry, folder: Path, name: str, number: int = 1) -> None:
    path = folder / f"{name}-{number}.onnx"
    path.write_bytes(b"%s %d" % (name.encode(), number))
    registry.push(name, path)


def entry(name: str = "digits", model: str = "digits:1", **fields: object) -> dict[str, Any]:
    return {"name": name, "model": model, **fields}


def document(*entries: dict[str, Any], **rest: object) -> dict[str, Any]:
    return {"version": 1, "endpoints": list(entries), **rest}


def resource(
    model: str = "digits:1", *, generation: int = 1, name: str = "digits", **fields: object
) -> ResourceEndpoint:
    pods: Any = fields.pop("pods", None)
    return ResourceEndpoint(
        entry=entry(name, model, **fields),
        pods=pods,
        origin=ResourceOrigin(uid="u1", generation=generation),
    )


def models(plane: ControlPlane) -> dict[str, list[str]]:
    """The models of each desired endpoint."""
    return {
        endpoint.name: [arm.revision.model for arm in endpoint.arms]
        for endpoint in plane.target_state.desired.endpoints
    }


def faults(plane: ControlPlane) -> dict[str, str]:
    return {fault.name: fault.message for fault in plane.faults.current()}


async def test_a_file_is_applied_once_so_that_undo_outlasts_a_restart(
    plane: ControlPlane, home: Home
) -> None:
    await plane.desired_state.apply_file(document(entry()))
    await plane.desired_state.apply_file(document(entry(model="digits:2")))
    await plane.desired_state.undo("digits", caller=SYSTEM)

    await plane.desired_state.apply_file(document(entry(model="digits:2")))

    assert models(plane) == {"digits": ["digits:1"]}
    store = open_store(home_url(home.root))
    assert store.load.blocking().file == plane.target_state.desired.file
    store.close()
    await plane.desired_state.apply_file(document(entry(model="digits:3")))
    assert models(plane) == {"digits": ["digits:3"]}


async def test_a_changed_file_is_applied_without_a_restart(
    plane: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "headrace.yaml"
    following = asyncio.ensure_future(plane.desired_state.follow_file(file, interval_s=0.0))
    await until(lambda: "file headrace.yaml" in faults(plane))  # it does not exist yet

    for version in ("1", "2"):
        write(file, f"version: 1\nendpoints: [{{name: digits, model: 'digits:{version}'}}]\n")
        await until(partial(is_applied, plane, f"digits:{version}"))
        write(file, "- nonsense")
        await until(lambda: "must be a mapping" in str(faults(plane)))
        assert models(plane) == {"digits": [f"digits:{version}"]}
    following.cancel()
    await asyncio.wait({following})


def is_applied(plane: ControlPlane, model: str) -> bool:
    return models(plane) == {"digits": [model]} and not faults(plane)


def write(path: Path, text: str) -> None:
    """Replace a file, as a kubelet does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not holds():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0)


async def test_a_mistake_in_one_endpoint_leaves_out_only_its_change(plane: ControlPlane) -> None:
    await plane.desired_state.apply_file(document(entry(), entry("b")))

    await plane.desired_state.apply_file(
        document(entry(model="fraud"), entry("b", "digits:2"), entry("c", replicas=0))
    )

    assert models(plane) == {"digits": ["digits:1"], "b": ["digits:2"]}
    assert plane.target_state.desired.file.refused == ("c", "digits")
    assert "the registry holds no model 'fraud'" in faults(plane)["digits"]
    assert "greater than or equal to 1" in faults(plane)["c"]
    assert plane.target_state.desired.entry("digits") == entry()


async def test_an_endpoint_that_was_left_out_is_applied_once_its_model_is_there(
    plane: ControlPlane, registry: Registry, tmp_path: Path
) -> None:
    file = document(entry(), entry("fraud", "fraud"))
    await plane.desired_state.apply_file(file)
    await plane.desired_state.scale("digits", replicas=3, caller=SYSTEM)
    push(registry, tmp_path, "fraud")

    await plane.desired_state.apply_file(file)

    assert models(plane) == {"digits": ["digits:1"], "fraud": ["fraud:1"]}
    assert faults(plane) == {}
    assert plane.target_state.desired.entry("digits") == entry(replicas=3)


async def test_an_endpoint_that_was_left_out_is_not_tried_again_once_a_user_defined_it(
    plane: ControlPlane,
) -> None:
    file = document(entry(model="fraud"))
    await plane.desired_state.apply_file(file)
    await plane.desired_state.put_endpoint("digits", entry(), caller=SYSTEM)

    await plane.desired_state.apply_file(file)

    assert models(plane) == {"digits": ["digits:1"]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"gateway": {"http_port": -1}},
        {"nonsense": 1},
        {"endpoints": 3},
        {"endpoints": [{"model": "digits:2"}]},
        {"streams": [{"name": "s"}]},
    ],
)
async def test_a_mistake_elsewhere_keeps_the_stored_state(
    plane: ControlPlane, wrong: dict[str, Any]
) -> None:
    await plane.desired_state.apply_file(document(entry()))

    await plane.desired_state.apply_file(document(entry(model="digits:2")) | wrong)

    assert models(plane) == {"digits": ["digits:1"]}
    assert "mistake" in faults(plane)["spec file"]


async def test_mistakes_of_pods_are_those_of_their_endpoint(plane: ControlPlane) -> None:
    pods = {"endpoints": {"digits": {"image": " "}, "b": {"image": "b:1"}}}

    await plane.desired_state.apply_file(document(entry(), entry("b"), kubernetes=pods))

    assert models(plane) == {"b": ["digits:1"]}
    assert plane.target_state.desired.spec["kubernetes"] == {"endpoints": {"b": {"image": "b:1"}}}


async def refused(plane: ControlPlane, **resources: ResourceEndpoint) -> dict[str, HeadraceError]:
    return await plane.desired_state.apply_endpoints(resources)


async def test_resources_add_and_change_endpoints_beside_those_of_the_spec(
    plane: ControlPlane,
) -> None:
    await plane.desired_state.apply_file(document(entry("a", "digits")))

    assert await refused(plane, digits=resource(pods={"image": "x:1"})) == {}

    assert models(plane) == {"a": ["digits:3"], "digits": ["digits:1"]}
    desired = plane.target_state.desired.endpoint("digits")
    assert desired is not None
    assert desired.resource == ResourceOrigin(uid="u1", generation=1)
    assert plane.target_state.desired.spec["kubernetes"] == {
        "endpoints": {"digits": {"image": "x:1"}}
    }
    assert await refused(plane, digits=resource(generation=2)) == {}
    assert "kubernetes" not in plane.target_state.desired.spec


async def test_a_wrong_resource_changes_nothing_and_holds_up_no_other(plane: ControlPlane) -> None:
    await refused(plane, digits=resource())

    errors = await refused(
        plane,
        digits=resource("fraud", generation=2),
        b=resource(name="b"),
        c=resource(name="c", timeout_s=-1.0),
        d=resource(name="d", model="/etc/passwd"),
    )

    assert models(plane) == {"digits": ["digits:1"], "b": ["digits:1"]}
    assert {name: type(error).__name__ for name, error in errors.items()} == {
        "c": "SpecError",
        "d": "PermissionDeniedError",
        "digits": "SpecError",
    }


async def test_a_resource_takes_over_no_endpoint_of_the_spec(plane: ControlPlane) -> None:
    await plane.desired_state.apply_file(document(entry()))

    errors = await refused(plane, digits=resource("digits:2"))

    assert isinstance(errors["digits"], FailedPreconditionError)
    assert models(plane) == {"digits": ["digits:1"]}


async def test_a_spec_keeps_endpoints_of_resources_and_does_not_define_them(
    plane: ControlPlane,
) -> None:
    await refused(plane, digits=resource(pods={"image": "x:1"}))

    await plane.desired_state.apply(document(entry("a")), caller=SYSTEM)

    assert models(plane) == {"digits": ["digits:1"], "a": ["digits:1"]}
    assert plane.target_state.desired.spec["kubernetes"] == {
        "endpoints": {"digits": {"image": "x:1"}}
    }
    with pytest.raises(SpecError, match="resource Endpoint 'digits'"):
        await plane.desired_state.apply(document(entry(model="digits:2")), caller=SYSTEM)
    await plane.desired_state.apply_file(document(entry(model="digits:2"), entry("b")))
    assert models(plane) == {"digits": ["digits:1"], "b": ["digits:1"]}
    with pytest.raises(FailedPreconditionError, match="resource"):
        await plane.desired_state.remove_endpoint("digits", caller=SYSTEM)
    await plane.desired_state.remove_endpoint("digits", caller=SYSTEM, with_resource=True)
    assert plane.target_state.desired.spec == document(entry("b"))


async def test_scaling_a_resource_keeps_its_version_pinned_and_its_rollout(
    plane: ControlPlane,
) -> None:
    await refused(plane, digits=resource("digits:1", rollout=CANARY))
    await refused(plane, digits=resource("digits", rollout=CANARY, generation=2))
    record = plane.target_state.rollout("digits")
    assert record is not None

    await refused(plane, digits=resource("digits", rollout=CANARY, generation=3, replicas=4))

    now = plane.target_state.rollout("digits")
    assert now is not None
    assert now.id == record.id
    assert [arm.replicas for arm in (*now.source.arms, *now.target.arms)] == [4, 4]
    assert models(plane) == {"digits": ["digits:3"]}


async def test_scaling_a_resource_does_not_repeat_a_rollout_that_was_rolled_back(
    plane: ControlPlane,
) -> None:
    await refused(plane, digits=resource(rollout=CANARY))
    await refused(plane, digits=resource("digits:2", rollout=CANARY, generation=2))
    record = plane.target_state.rollout("digits")
    assert record is not None
    state = msgspec.structs.replace(
        record.state, phase=RolloutPhase.ROLLED_BACK, traffic=TrafficShares()
    )
    saved = plane.store.save_rollout.blocking(msgspec.structs.replace(record, state=state))
    plane.target_state.set_target(rollouts=[saved])

    await refused(plane, digits=resource("digits:2", rollout=CANARY, generation=3, replicas=2))

    effective = plane.target_state.effective.endpoint("digits")
    assert effective is not None
    assert [(arm.key, arm.replicas) for arm in effective.arms] == [("1", 2)]


async def test_undo_outlasts_the_scaling_of_a_resource_but_not_another_version(
    plane: ControlPlane,
) -> None:
    await refused(plane, digits=resource())
    await refused(plane, digits=resource("digits:2", generation=2))
    await plane.desired_state.undo("digits", caller=SYSTEM)

    await refused(plane, digits=resource("digits:2", generation=3, replicas=2))

    assert models(plane) == {"digits": ["digits:1"]}
    desired = plane.target_state.desired.endpoint("digits")
    assert desired is not None
    assert [arm.replicas for arm in desired.arms] == [2]
    assert desired.resource == ResourceOrigin(uid="u1", generation=3)
    await refused(plane, digits=resource("digits:3", generation=4))
    assert models(plane) == {"digits": ["digits:3"]}
