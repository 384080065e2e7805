"""What people read about an endpoint: ready or not, and why not."""

from dataclasses import replace

from headrace.control.gateway.first_request import FirstRequest
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, make_revision
from headrace.control.model.observed import Observed, Replica, ReplicaPhase
from headrace.control.reconcile.status import EndpointStatus, endpoint_statuses, revision_ids
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import EndpointRoute, RevisionTarget


def arm(version: str, *, weight: int = 100) -> DesiredArm:
    settings = ReplicaSettings(model_name="m", model_version=version, path="/m")
    revision = make_revision(endpoint=EndpointName("m"), model=f"m:{version}", settings=settings)
    return DesiredArm(revision=revision, weight=weight, replicas=1)


def replica(version: str, serial: int, *, revision_id: str = "") -> Replica:
    return Replica(
        name=f"m-{version}-{serial}",
        serial=serial,
        endpoint="m",
        version=version,
        revision_id=revision_id or arm(version).revision.id,
        address=f"unix:/r{serial}",
        phase=ReplicaPhase.READY,
        since=0.0,
        pid=100 + serial,
        was_ready=True,
    )


def route(**weights: int) -> EndpointRoute:
    arms = (
        RevisionTarget(version=v.removeprefix("v"), weight=w, replicas=("unix:/x",))
        for v, w in weights.items()
    )
    return EndpointRoute(name="m", timeout_s=None, arms=tuple(arms))


ENDPOINT = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=(arm("1"),))
ANSWERED = FirstRequest(
    answered=True, status=200, latency_s=0.01, message="", revisions=revision_ids(ENDPOINT)
)


def look(
    *replicas: Replica,
    published: tuple[EndpointRoute, ...] = (route(v1=100),),
    first: FirstRequest | None = ANSWERED,
    asks: bool = True,
    endpoint: DesiredEndpoint = ENDPOINT,
    trouble: str = "",
) -> EndpointStatus:
    requests = {"m": first} if first else {}
    [found] = endpoint_statuses(
        [endpoint],
        Observed(replicas={r.name: r for r in replicas}, published=published),
        first_requests=requests if asks else None,
        http_url="http://gw",
        rss_bytes={101: 5},
        arm_problem=lambda _endpoint, _arm: trouble,
    )
    return found


def test_an_endpoint_is_ready_when_a_real_request_was_answered() -> None:
    found = look(replica("1", 1))

    assert (found.ready, found.failed, found.message) == (True, False, "")
    assert found.url == "http://gw/v2/models/m/infer"
    assert found.revisions[0].replicas[0].rss_bytes == 5
    assert found.revisions[0].weight == 100


def test_until_then_it_says_what_it_waits_for() -> None:
    loading = replace(replica("1", 1), phase=ReplicaPhase.STARTING)
    stale = replace(ANSWERED, revisions=("other",))

    assert look(loading).message == "version 1: 0 of 1 replicas ready"
    assert look(replica("1", 1), published=()).message == "waiting for the gateway to route to it"
    assert look(replica("1", 1), first=None).message == "waiting for the first answer"
    assert look(replica("1", 1), first=stale).message == "waiting for the first answer"
    assert look(replica("1", 1), first=None, asks=False).ready


def test_a_model_that_cannot_load_is_failed_with_the_reason() -> None:
    dead = replace(
        replica("1", 1),
        phase=ReplicaPhase.EXITED,
        exit_code=3,
        failures=1,
        pid=None,
        reason="no op X",
    )
    found = look(dead)

    assert found.failed
    assert "no op X" in found.message
    assert found.revisions[0].replicas[0].pid is None


def test_a_few_crashes_are_no_failure_and_many_are() -> None:
    crashed = replace(replica("1", 1), phase=ReplicaPhase.EXITED, exit_code=-11, failures=2)

    assert not look(crashed).failed
    assert look(replace(crashed, failures=3)).failed
    assert not look(replace(replica("1", 1), failures=3)).failed


def test_a_first_request_that_failed_is_told_with_its_status() -> None:
    refused = replace(ANSWERED, answered=False, status=503, message="not ready")
    found = look(replica("1", 1), first=refused)

    assert found.failed
    assert found.message == "the first request failed with HTTP status 503: not ready"


def test_a_model_that_fails_on_made_up_inputs_is_ready_with_a_note() -> None:
    raised = replace(ANSWERED, status=500, message="KeyError")
    found = look(replica("1", 1), first=raised)
    stale = look(replica("1", 1), first=replace(raised, revisions=("other",)))
    unknown = look(replica("1", 1), first=replace(raised, status=404))

    assert (found.ready, found.failed, found.message) == (True, False, "")
    assert found.note.endswith("with synthetic inputs, got HTTP status 500: KeyError")
    assert (stale.note, unknown.note) == ("", "")


def test_what_is_replaced_is_listed_until_it_is_gone() -> None:
    endpoint = replace_arms(arm("2"))
    old = replace(replica("1", 1), phase=ReplicaPhase.DRAINING)
    older = replace(replica("2", 2, revision_id="former"))
    found = look(
        old, older, replica("2", 3), endpoint=endpoint, published=(route(v2=100),), asks=False
    )
    rows = [(r.version, r.weight, r.desired_replicas, len(r.replicas)) for r in found.revisions]

    assert found.ready
    assert rows == [("2", 100, 1, 1), ("1", 0, 0, 1), ("2", 0, 0, 1)]


def replace_arms(*arms: DesiredArm) -> DesiredEndpoint:
    return DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=arms)


def test_an_upstream_that_cannot_be_spoken_to_says_why() -> None:
    upstream = UpstreamSpec(url="https://them.example")
    revision = make_revision(
        endpoint=EndpointName("m"),
        model=upstream.url,
        settings=ReplicaSettings(model_name="m", model_version="1", path=""),
        upstream=upstream,
    )
    endpoint = replace_arms(DesiredArm(revision=revision, weight=100, replicas=0))
    published = EndpointRoute(
        name="m",
        timeout_s=None,
        arms=(RevisionTarget(version="1", weight=100, replicas=(), upstream=upstream),),
    )

    found = look(published=(published,), endpoint=endpoint, trouble="it is not who it says")

    assert not found.ready
    assert found.message == "version 1: upstream https://them.example: it is not who it says"
    assert look(published=(published,), endpoint=endpoint, asks=False).ready
