"""The resource `Endpoint`: its definition, status and controller."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.desired.service import ResourceEndpoint
from headrace.control.kubernetes.endpoints import (
    EndpointController,
    ResourceFacts,
    endpoint_of,
    event_of,
    finalizer_change,
    origin_of,
    status_of,
)
from headrace.control.kubernetes.names import FINALIZER
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.control.model.desired import DesiredEndpoint, ResourceOrigin, Source
from headrace.control.model.records import Event, RolloutRecord
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.status import EndpointStatus, ReplicaStatus, RevisionStatus
from headrace.core import FailedPreconditionError, HeadraceError, PermissionDeniedError, SystemClock
from headrace.core.spec.parse import SpecError, SpecMistake
from headrace.core.spec.rollout import CanarySpec
from headrace.deploy.endpoint_resource import endpoint_definition
from headrace.deploy.helm_values import ENDPOINT_RESOURCE, chart_files, chart_folder
from headrace.rollout.machine import begin
from headrace.rollout.state import RolloutPhase
from tests.unit.control.conftest import *  # noqa: F403  # a plane
from tests.unit.control.kubernetes.states import PLACE, an_api, an_arm, an_endpoint

Object = dict[str, Any]
MISTAKE = SpecError(
    [SpecMistake(place="endpoints[0].model", message="the registry holds no model")]
)


def resource(*, generation: int = 1, status: Object | None = None, **spec: object) -> Object:
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "Endpoint",
        "metadata": {
            "name": "digits", "namespace": "models", "uid": "u1",
            "generation": generation, "resourceVersion": "7",
        },
        "spec": {"model": "digits:1", **spec},
        **({} if status is None else {"status": status}),
    }  # fmt: skip


def seen(*, ready: bool = True, failed: bool = False, replicas: int = 1) -> EndpointStatus:
    rows = tuple(
        ReplicaStatus(
            name=f"p{i}", state="ready", pid=None, address="", restarts=0, reason="", rss_bytes=None
        )
        for i in range(replicas)
    )
    revision = RevisionStatus(
        version="1", model="digits:1", weight=100, desired_weight=100, desired_replicas=replicas,
        replicas=rows,
    )  # fmt: skip
    return EndpointStatus(
        name="digits", ready=ready, failed=failed, url="http://gateway/v2/models/digits/infer",
        revisions=(revision,), message="" if ready else "0 of 1 replicas ready",
    )  # fmt: skip


def rollout(phase: RolloutPhase) -> RolloutRecord:
    state = msgspec.structs.replace(begin(CanarySpec(), started=1.0), phase=phase, reason="worse")
    source, target = an_endpoint(), an_endpoint(an_arm(version="2"))
    return RolloutRecord(
        id="r1", endpoint="digits", created=1.0, source=source, target=target, state=state
    )


def status(
    facts: ResourceFacts, of: Object | None = None, *, now: float = 100.0
) -> tuple[Object, dict[str, Object]]:
    result = status_of(of or resource(), facts, instance="headrace", now=now)
    return result, {row["type"]: row for row in result["conditions"]}


def applied(generation: int = 1, *, spec_source: Source = ()) -> DesiredEndpoint:
    origin = ResourceOrigin(uid="u1", generation=generation)
    return msgspec.structs.replace(an_endpoint(), resource=origin, spec_source=spec_source)


def test_a_resource_is_an_entry_of_a_spec_and_its_pods() -> None:
    found = endpoint_of(resource(replicas=2, kubernetes={"image": "x:1"}))

    assert found == ResourceEndpoint(
        entry={"name": "digits", "model": "digits:1", "replicas": 2},
        pods={"image": "x:1"},
        origin=ResourceOrigin(uid="u1", generation=1),
    )


def test_the_status_of_an_endpoint_that_serves_has_all_that_kubectl_shows() -> None:
    result, conditions = status(ResourceFacts(desired=applied(), status=seen(replicas=2)))

    assert {kind: row["status"] for kind, row in conditions.items()} == {
        "Ready": "True", "Progressing": "False", "RolledBack": "False", "Degraded": "False",
    }  # fmt: skip
    assert result["versions"] == [
        {"version": "1", "model": "digits:1", "weight": 100, "replicas": 2, "ready": 2}
    ]
    assert (result["replicas"], result["readyReplicas"], result["split"]) == (2, 2, "1 (100%)")
    assert result["observedGeneration"] == 1
    assert result["selector"] == "headrace.dev/endpoint=digits,app.kubernetes.io/instance=headrace"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MISTAKE, "InvalidSpec"),
        (PermissionDeniedError("only an admin names files"), "NotAllowed"),
        (FailedPreconditionError("defined by the spec"), "Conflict"),
    ],
)
def test_a_refused_generation_is_not_ready_though_an_earlier_one_serves(
    error: HeadraceError, reason: str
) -> None:
    facts = ResourceFacts(desired=applied(1), status=seen(), error=error)

    result, conditions = status(facts, resource(generation=2))

    assert result["observedGeneration"] == 2
    for kind, value in (("Ready", "False"), ("Degraded", "True")):
        assert (conditions[kind]["status"], conditions[kind]["reason"]) == (value, reason)
        assert conditions[kind]["message"] == str(error)


def test_a_generation_that_was_not_applied_yet_is_not_observed() -> None:
    before = {"observedGeneration": 1, "conditions": []}
    facts = ResourceFacts(desired=applied(1), status=seen())

    result, conditions = status(facts, resource(generation=2, status=before))

    assert result["observedGeneration"] == 1
    assert conditions["Ready"]["observedGeneration"] == 1
    assert "observedGeneration" not in status(ResourceFacts())[0]


def test_what_undo_led_to_is_rolled_back_and_a_promotion_is_not() -> None:
    undone = applied(spec_source=(("2", "digits:2", "", 100),))

    _, conditions = status(ResourceFacts(desired=undone, status=seen()))
    assert conditions["RolledBack"]["status"] == "True"
    assert conditions["RolledBack"]["message"] == ("digits:1 runs, and the resource names digits:2")
    promoted = rollout(RolloutPhase.PROMOTED)
    _, conditions = status(ResourceFacts(desired=undone, status=seen(), rollout=promoted))
    assert conditions["RolledBack"]["status"] == "False"


FACTS = st.builds(
    ResourceFacts,
    desired=st.sampled_from([None, applied(1), applied(2)])
    | st.just(applied(2, spec_source=(("2", "digits:2", "", 100),))),
    status=st.none() | st.builds(seen, ready=st.booleans(), failed=st.booleans()),
    rollout=st.none() | st.sampled_from(RolloutPhase).map(rollout),
    error=st.sampled_from([None, MISTAKE]),
)


@given(FACTS, FACTS, st.integers(1, 3))
def test_conditions_are_consistent_and_written_once(
    before: ResourceFacts, facts: ResourceFacts, generation: int
) -> None:
    old = status(before, resource(generation=generation))[0]
    live = resource(generation=generation, status=old)

    result, conditions = status(facts, live, now=200.0)

    assert sorted(conditions) == ["Degraded", "Progressing", "Ready", "RolledBack"]
    assert all(row["reason"] for row in conditions.values())
    values = {kind: row["status"] == "True" for kind, row in conditions.items()}
    if facts.error is not None:
        assert (values["Ready"], values["Degraded"]) == (False, True)
    assert not (values["Progressing"] and values["RolledBack"] and facts.rollout is not None)
    assert result.get("observedGeneration", 0) <= generation
    for row in old["conditions"]:
        is_same = row["status"] == conditions[row["type"]]["status"]
        kept = row["lastTransitionTime"] == conditions[row["type"]]["lastTransitionTime"]
        assert kept is is_same
    assert status(facts, live | {"status": result}, now=300.0)[0] == result


def test_an_event_of_the_journal_is_one_of_the_cluster_with_its_number() -> None:
    event = Event(
        at=60.0, endpoint="digits", kind="rollout", reason="RolledBack", message="x" * 2000
    )

    once = event_of(event, resource(), first=0.0, count=1)
    again = event_of(event, resource(), first=0.0, count=2)

    assert once["metadata"] == again["metadata"]
    assert (once["type"], again["count"], len(again["message"])) == ("Warning", 2, 1024)
    assert again["firstTimestamp"] == "1970-01-01T00:00:00Z"
    assert again["involvedObject"]["uid"] == "u1"


def test_the_finalizer_is_added_and_removed_beside_those_of_others() -> None:
    live = resource()
    live["metadata"]["finalizers"] = ["other"]
    added = finalizer_change(live, is_set=True)

    assert added is not None
    assert added["metadata"] == {"finalizers": ["other", FINALIZER], "resourceVersion": "7"}
    assert finalizer_change(live, is_set=False) is None


def parts_of(schema: Object) -> Iterator[Object]:
    yield schema
    for key in ("properties", "items", "additionalProperties"):
        inner = schema.get(key)
        if isinstance(inner, dict):
            for part in inner.values() if key == "properties" else [inner]:
                yield from parts_of(part)


def test_the_definition_is_structural_and_the_chart_has_it() -> None:
    (version,) = endpoint_definition()["spec"]["versions"]
    parts = list(parts_of(version["schema"]["openAPIV3Schema"]))

    assert len(parts) > 200
    for part in parts:
        assert not part.keys() & {"$ref", "anyOf", "oneOf", "const", "title", "default", "$defs"}
        assert ("type" in part) != part.get("x-kubernetes-preserve-unknown-fields", False)
        assert not ("properties" in part and "additionalProperties" in part)
    assert (chart_folder() / ENDPOINT_RESOURCE).read_text() == chart_files()[ENDPOINT_RESOURCE]


@pytest.mark.anyio
@pytest.mark.parametrize(("code", "kept"), [(404, 1), (403, 1), (200, 0)])
async def test_endpoints_go_with_their_resources_only_if_the_cluster_has_the_kind(
    plane: ControlPlane, code: int, kept: int
) -> None:
    path = plane.home.root / "digits.onnx"
    path.write_bytes(b"digits")
    plane.registry.push("digits", path)
    await plane.desired_state.apply_endpoints({"digits": endpoint_of(resource())})
    empty = {"metadata": {"resourceVersion": "9"}, "items": []}

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.params.get("watch"):
            return httpx2.Response(200, text="")
        return httpx2.Response(code, text=json.dumps(empty if code == 200 else {"message": "no"}))

    api = an_api(answer)
    reconciler = KubernetesReconciler(
        api=api, publisher=plane.reconciling.gateway_supervisor, clock=SystemClock(),
        installation=PLACE, is_leader=lambda: True,
    )  # fmt: skip
    controller = EndpointController(
        api=api, reconciler=reconciler, desired_state=plane.desired_state,
        statuses=lambda _: (), has_file=False,
    )  # fmt: skip
    watching = asyncio.create_task(controller.watches.run())
    while not controller.watches.is_synced:  # noqa: ASYNC110  # no time passes
        await asyncio.sleep(0)

    await controller.step()

    watching.cancel()
    assert len(plane.target_state.desired.endpoints) == kept
    assert origin_of(resource()) == ResourceOrigin(uid="u1", generation=1)
