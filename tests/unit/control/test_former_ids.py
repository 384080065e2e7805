"""What a former release called otherwise keeps its name, as long as it is the same."""

import hashlib

import msgspec

from headrace.control.desired.documents import is_same, with_known_ids
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    make_revision,
)
from headrace.control.model.records import RolloutRecord
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.rollout import CanarySpec
from headrace.rollout.machine import begin

NAME = EndpointName("m")
ONE, OTHER = "1a" * 32, "2b" * 32


def revision(
    version: str = "1", *, home: str = "/h", reload: int = 0, digest: str = ONE
) -> Revision:
    path = f"{home}/artifacts/sha256/{digest}/m.onnx"
    settings = ReplicaSettings(model_name="m", model_version=version, path=path)
    return make_revision(endpoint=NAME, model=f"m:{version}", settings=settings, reload=reload)


def served_where_it_lies(path: str = "/repo/m/1/model.onnx", content: str = "") -> Revision:
    settings = ReplicaSettings(model_name="m", model_version="1", path=path)
    return make_revision(endpoint=NAME, model="/repo", settings=settings, content=content)


def former(found: Revision) -> Revision:
    """As the release before named it: by the settings as they are, with the home in their path."""
    parts = msgspec.json.encode([NAME, found.settings, found.reload], order="deterministic")
    id_ = hashlib.sha256(parts).hexdigest()[:16]
    assert id_ != found.id
    return msgspec.structs.replace(found, id=id_)


def endpoint(*revisions: Revision, name: str = NAME) -> DesiredEndpoint:
    arms = tuple(DesiredArm(revision=one, weight=100, replicas=1) for one in revisions)
    return DesiredEndpoint(name=EndpointName(name), timeout_s=None, arms=arms)


def ids_after(new: Revision, *known: Revision, name: str = NAME) -> list[str]:
    [found] = with_known_ids(
        [endpoint(new)], DesiredState(endpoints=(endpoint(*known, name=name),))
    )
    return [arm.revision.id for arm in found.arms]


def test_the_same_keeps_the_id_that_it_has() -> None:
    old = former(revision())

    assert ids_after(revision(), old) == [old.id]
    assert ids_after(revision(home="/moved"), old) == [old.id]


def test_all_else_of_it_is_what_is_wanted_now() -> None:
    new = revision(home="/moved")
    [found] = with_known_ids(
        [endpoint(new)], DesiredState(endpoints=(endpoint(former(revision())),))
    )

    assert found.arms[0].revision.settings == new.settings


def test_whatever_differs_gets_the_id_of_this_release() -> None:
    old = former(revision())

    for new in (revision("2"), revision(reload=1), revision(digest=OTHER)):
        assert ids_after(new, old) == [new.id]
    assert ids_after(revision(), old, name="another endpoint") == [revision().id]


def test_an_id_of_this_release_goes_before_a_former_one() -> None:
    assert ids_after(revision(), former(revision()), revision()) == [revision().id]


def test_a_rollout_goes_on_with_what_it_came_from() -> None:
    source, target = former(revision("1")), former(revision("2"))
    record = RolloutRecord(
        id="r1",
        endpoint=NAME,
        created=0.0,
        source=endpoint(source),
        target=endpoint(target),
        state=begin(CanarySpec(), started=0.0),
    )
    desired = DesiredState(endpoints=(endpoint(target),))

    [found] = with_known_ids([endpoint(revision("1"), revision("2"))], desired, [record])

    assert [arm.revision.id for arm in found.arms] == [source.id, target.id]


def test_a_model_served_where_it_lies_is_the_same_while_it_lies_there() -> None:
    old = msgspec.structs.replace(served_where_it_lies(), id="of a former one")
    new = served_where_it_lies(content=f"sha256:{ONE}")

    assert is_same(old, new)
    assert not is_same(old, served_where_it_lies("/repo2/m/1/model.onnx", f"sha256:{ONE}"))


def test_once_its_content_is_known_that_decides() -> None:
    known = served_where_it_lies(content=f"sha256:{ONE}")
    old = msgspec.structs.replace(known, id="of a former one")

    assert is_same(old, served_where_it_lies("/moved/m/1/model.onnx", f"sha256:{ONE}"))
    assert not is_same(old, served_where_it_lies(content=f"sha256:{OTHER}"))
