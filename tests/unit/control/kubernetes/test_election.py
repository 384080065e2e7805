import asyncio
import json
from dataclasses import dataclass, field

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes.api import LeadershipLostError
from headrace.control.kubernetes.election import (
    ElectionStep,
    Elector,
    LeaseState,
    LeaseTimes,
    is_leading,
    lease_object,
    next_step,
    observed_lease,
    released,
)
from headrace.control.kubernetes.names import Object
from headrace.core import SystemClock
from tests.unit.control.kubernetes.states import PLACE, an_api

TIMES = LeaseTimes(duration_s=15.0, margin_s=5.0, renew_s=2.0)


def a_lease(holder: str, *, wall: float = 0.0) -> Object:
    return lease_object(None, installation=PLACE, identity=holder, times=TIMES, wall=wall)


def known(holder: str, *, at: float) -> LeaseState:
    found = observed_lease(a_lease(holder), None, now=at)
    assert found is not None
    return found


def test_without_a_lease_one_is_made() -> None:
    assert next_step(None, identity="a", now=0.0) is ElectionStep.CREATE


def test_a_holder_that_is_heard_of_is_waited_for() -> None:
    assert next_step(known("b", at=0.0), identity="a", now=14.9) is ElectionStep.WAIT


def test_a_holder_that_says_nothing_is_followed() -> None:
    assert next_step(known("b", at=0.0), identity="a", now=15.0) is ElectionStep.TAKE


def test_a_lease_that_was_given_back_is_taken_at_once() -> None:
    found = observed_lease(released(known("b", at=0.0)), None, now=0.0)

    assert next_step(found, identity="a", now=0.0) is ElectionStep.TAKE


def test_the_holder_of_a_deleted_lease_is_given_time_to_create_it_again() -> None:
    lost = observed_lease(None, known("b", at=0.0), now=14.0)
    later = observed_lease(None, lost, now=20.0)

    assert next_step(later, identity="b", now=20.0) is ElectionStep.CREATE
    assert next_step(later, identity="a", now=28.9) is ElectionStep.WAIT
    assert next_step(later, identity="a", now=29.0) is ElectionStep.CREATE


def test_time_runs_from_the_last_change_that_was_seen_whatever_clocks_say() -> None:
    before = known("b", at=0.0)
    same = observed_lease(a_lease("b"), before, now=10.0)
    renewed = observed_lease(a_lease("b", wall=7.0), before, now=10.0)

    assert same is not None
    assert same.changed_at == 0.0
    assert renewed is not None
    assert renewed.changed_at == 10.0


def test_who_never_renewed_does_not_lead() -> None:
    assert not is_leading(None, TIMES, now=0.0)


def test_a_leader_stops_before_another_may_begin() -> None:
    assert is_leading(0.0, TIMES, now=9.9)
    assert not is_leading(0.0, TIMES, now=10.0)


def test_a_change_of_holder_is_counted_and_a_renewal_is_not() -> None:
    first = known("a", at=0.0)
    again = lease_object(first, installation=PLACE, identity="a", times=TIMES, wall=1.0)
    other = lease_object(first, installation=PLACE, identity="b", times=TIMES, wall=1.0)

    assert again["spec"]["leaseTransitions"] == 0
    assert other["spec"]["leaseTransitions"] == 1


@dataclass
class Candidate:
    """One control plane, as the elector drives it: it may look, write late, or be cut off."""

    name: str
    known: LeaseState | None = None
    renewed_at: float | None = None
    pending: tuple[Object, float, int] | None = None

    def look(self, lease: Object | None, version: int, now: float) -> None:
        wall = now if self.name == "a" else 4e9 - now  # clocks of two machines may differ
        self.known = observed_lease(lease, self.known, now=now)
        self.pending = None
        step = next_step(self.known, identity=self.name, now=now)
        if step is not ElectionStep.WAIT:
            new = lease_object(
                self.known, installation=PLACE, identity=self.name, times=TIMES, wall=wall
            )
            self.pending = (new, now, version)


@dataclass
class Server:
    """Accepts a write only if it follows from the newest version."""

    lease: Object | None = None
    version: int = 0

    def write(self, who: Candidate) -> None:
        assert who.pending is not None
        new, sent_at, version = who.pending
        who.pending = None
        if version != self.version:
            return
        self.version += 1
        self.lease = new
        who.known = observed_lease(new, who.known, now=sent_at)
        who.renewed_at = sent_at


moves = st.lists(
    st.tuples(
        st.sampled_from("ab"), st.sampled_from(["look", "write", "delete"]), st.floats(0.0, 6.0)
    ),
    max_size=60,
)


@given(moves=moves)
def test_never_do_two_lead_at_once(moves: list[tuple[str, str, float]]) -> None:
    server = Server()
    candidates = {name: Candidate(name) for name in "ab"}
    now = 0.0
    for name, move, pause in moves:
        now += pause
        who = candidates[name]
        if move == "delete":
            if server.lease is not None and all(c.known for c in candidates.values()):
                server.lease, server.version = None, server.version + 1
        elif move == "look":
            who.look(server.lease, server.version, now)
        elif who.pending is not None and now - who.pending[1] < TIMES.duration_s - TIMES.margin_s:
            server.write(who)
        leading = [one for one in candidates.values() if is_leading(one.renewed_at, TIMES, now=now)]
        assert len(leading) <= 1


@dataclass
class LeaseServer:
    """Stores the Lease as an API server does."""

    lease: Object | None = None
    version: int = 10
    requests: list[str] = field(default_factory=list)

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request.method)
        if request.method == "GET" or (request.method == "PUT" and self.lease is None):
            status = 404 if self.lease is None else 200
            return httpx2.Response(status, json=self.lease or {})
        new = json.loads(request.content)
        known = new["metadata"].get("resourceVersion")
        if (self.lease["metadata"]["resourceVersion"] if self.lease else None) != known:
            return httpx2.Response(409, json={})
        return httpx2.Response(200, json=self.store(new))

    def store(self, new: Object) -> Object:
        self.version += 1
        metadata = {**new["metadata"], "uid": "u", "resourceVersion": str(self.version)}
        self.lease = {**new, "metadata": metadata}
        return self.lease


def an_elector(server: LeaseServer) -> Elector:
    api = an_api(server.answer)
    return Elector(api=api, installation=PLACE, identity="a", clock=SystemClock(), times=TIMES)


@pytest.mark.anyio
async def test_a_leader_renews_with_one_request_and_creates_a_deleted_lease_again() -> None:
    server = LeaseServer()
    elector = an_elector(server)
    running = asyncio.create_task(elector.run())
    await asyncio.sleep(7.0)
    assert server.requests == ["GET", "POST", "PUT", "PUT", "PUT"]
    server.lease = None
    await asyncio.sleep(2.0)

    assert server.lease is not None
    assert server.lease["spec"]["holderIdentity"] == "a"
    assert elector.is_leading()
    running.cancel()
    await asyncio.wait({running})
    await elector.resign()
    assert server.lease["spec"]["holderIdentity"] == ""


@pytest.mark.anyio
@pytest.mark.parametrize(("version", "is_restored"), [(5, True), (50, False)])
async def test_a_leader_whose_lease_is_of_another_ends_and_says_why(
    version: int, *, is_restored: bool
) -> None:
    server = LeaseServer()
    running = asyncio.create_task(an_elector(server).run())
    await asyncio.sleep(3.0)
    server.version = version
    server.store(a_lease("b"))

    with pytest.raises(LeadershipLostError, match="b holds the lease now") as lost:
        await running
    assert ("put back to an earlier state" in str(lost.value)) is is_restored
