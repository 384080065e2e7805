"""What makes a revision another one, and how differences are told."""

import msgspec
import pytest

from headrace.control.desired.changes import changes_between
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.core import BatchingSpec, EndpointName, ReplicaSettings


def arm(
    version: str = "1",
    *,
    weight: int = 100,
    replicas: int = 1,
    batch: int = 32,
    reload: int = 0,
    path: str = "/m",
    declared: bool = False,
) -> DesiredArm:
    settings = ReplicaSettings(
        model_name="m",
        model_version=version,
        path=path,
        batching=BatchingSpec(max_batch_size=batch, rows_independent=declared or msgspec.UNSET),
    )
    revision = make_revision(
        endpoint=EndpointName("m"),
        model=f"m:{version}",
        settings=settings,
        reload=reload,
        content="sha256:1",
    )
    return DesiredArm(revision=revision, weight=weight, replicas=replicas)


def state(*arms: DesiredArm, timeout_s: float | None = 30.0, **spec: object) -> DesiredState:
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=timeout_s, arms=arms)
    return DesiredState(generation=1, spec=spec, endpoints=(endpoint,) if arms else ())


def test_weight_and_replica_count_are_no_part_of_a_revision() -> None:
    assert arm(weight=1, replicas=7).revision.id == arm().revision.id


@pytest.mark.parametrize("other", [arm("2"), arm(batch=8), arm(reload=1), arm(declared=True)])
def test_anything_a_process_depends_on_makes_a_new_revision(other: DesiredArm) -> None:
    assert other.revision.id != arm().revision.id


def test_a_state_finds_its_endpoints_and_revisions() -> None:
    found = state(arm())

    assert found.endpoint("m") is not None
    assert found.endpoint("x") is None
    assert list(found.revisions()) == [arm().revision.id]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (state(), state(arm(replicas=2)), ["endpoint 'm' added: version 1 (m:1, weight 100, 2"]),
        (state(arm()), state(), ["endpoint 'm' removed"]),
        (state(arm()), state(arm()), []),
        (state(arm()), state(arm("2")), ["version 1 removed", "version 2 (m:2"]),
        (state(arm()), state(arm(replicas=3)), ["replicas 1 becomes 3"]),
        (state(arm(weight=90)), state(arm(weight=10)), ["weight 90 becomes 10"]),
        (state(arm()), state(arm(batch=8)), ["new revision, its replicas are replaced"]),
        (state(arm()), state(arm(path="/moved/m")), ["the same under other paths"]),
        (state(arm()), state(arm(), timeout_s=None), ["timeout_s 30 becomes none"]),
        (state(arm()), state(arm(), gateway={"http_port": 1}), ["gateway settings changed"]),
    ],
)
def test_each_difference_is_one_line(
    old: DesiredState, new: DesiredState, expected: list[str]
) -> None:
    lines = changes_between(old, new)

    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True))
