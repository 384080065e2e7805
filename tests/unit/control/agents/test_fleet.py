"""When does a publication return, and what is summed? With agents that only report."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from headrace.control.agents.counts import FleetCounts
from headrace.control.agents.fleet import GatewayFleet
from headrace.control.agents.messages import (
    PROTOCOL,
    Active,
    AgentStatus,
    Arm,
    EnvoyCounts,
    Poll,
    UpstreamState,
    decode_bundle,
    decode_instructions,
    encode_instructions,
)
from headrace.control.agents.registry import AgentTimeouts, SyncStatus
from headrace.control.base.ownership import ProcessOwner
from headrace.control.gateway.routes import GatewayRefusedError, NoGatewayError, log_level_of
from headrace.control.gateway.supervisor import EnvoySupervisor, routes_file
from headrace.control.model.records import Event
from headrace.core import InvalidArgumentError
from headrace.gateway import (
    ApiKey,
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    GatewayPolicy,
    GatewayUnavailableError,
    Handshakes,
    RevisionTarget,
)
from headrace.testing import LoopClock, VirtualTimeLoop

pytestmark = pytest.mark.anyio
KEY = ApiKey(id="k", name="n", digest="0" * 64, scopes=("infer:*",))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def route(name: str = "m", *, weights: Sequence[int] = (100,), held: bool = False) -> EndpointRoute:
    arms = tuple(
        RevisionTarget(version=str(number), replicas=(f"127.0.0.1:{9000 + number}",), weight=weight)
        for number, weight in enumerate(weights, start=1)
    )
    return EndpointRoute(name=name, timeout_s=None, arms=arms, split_id="s", held=held, hold_s=3.0)


def fleet(tmp_path: Path, **more: object) -> GatewayFleet:
    clock = LoopClock(1_700_000_000.0)
    found = GatewayFleet(
        settings=EnvoySettings(run_dir=tmp_path / "e"),
        clock=clock,
        routes_path=tmp_path / "routes.json",
        counts=FleetCounts(path=tmp_path / "counts.json"),
        timeouts=AgentTimeouts(max_behind_s=5.0, lost_after_s=20.0),
    )
    for name, value in more.items():
        setattr(found, name, value)
    return found


def report(name: str, in_force: str = "", **more: object) -> AgentStatus:
    return AgentStatus(
        protocol=PROTOCOL,
        agent="1",
        name=name,
        in_force=in_force,
        ready=bool(in_force),
        **more,  # type: ignore[arg-type]  # as a Report has them
    )


async def offered(found: GatewayFleet, held: str = "", refused: str = "") -> str:
    """The version that an agent is given now; empty for none."""
    poll = Poll(
        protocol=PROTOCOL,
        agent="1",
        held=held,
        refused=refused,
        request_number=found.counts.request_number,
    )
    ask, data = await found.poll(poll, wait_s=0.0)
    told = decode_instructions(encode_instructions("1", ask=ask, bundle=data))
    return "" if told.bundle is None else told.bundle.version


async def test_a_publication_waits_for_everybody_and_is_kept(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open(())
    found.take_report(report("one"))
    found.take_report(report("two"))

    publishing = asyncio.ensure_future(found.publish([route()]))
    await asyncio.sleep(1.0)
    version = await offered(found)
    found.take_report(report("one", version))
    await asyncio.sleep(1.0)
    assert not publishing.done()
    found.take_report(report("two", version))
    await publishing

    assert found.is_ready
    assert routes_file(found.routes_path).load() == (route(),)


async def test_who_does_not_take_it_is_behind_and_held_against_nobody(tmp_path: Path) -> None:
    events: list[Event] = []

    async def emit(some: Sequence[Event]) -> None:
        events.extend(some)

    found = fleet(tmp_path, emit=emit)
    running = asyncio.ensure_future(found.run())
    await found.open(())
    found.take_report(report("one"))
    found.take_report(report("two"))
    publishing = asyncio.ensure_future(found.publish([route()]))
    await asyncio.sleep(0.1)
    found.take_report(report("one", await offered(found)))
    began = found.clock.monotonic()

    await publishing

    assert found.clock.monotonic() - began == pytest.approx(5.0, abs=0.2)
    stands = {one.name: one.standing for one in found.states()}
    assert stands == {"one": SyncStatus.CURRENT, "two": SyncStatus.BEHIND}
    again = found.clock.monotonic()
    publishing = asyncio.ensure_future(found.publish([route(), route("n")]))
    await asyncio.sleep(0.1)
    found.take_report(report("one", await offered(found)))
    await publishing
    assert found.clock.monotonic() - again < 1.0, "it is not waited for again"
    await asyncio.sleep(1.5)
    running.cancel()
    assert [event.reason for event in events] == ["GatewayCurrent", "GatewayBehind"]


async def test_a_refusal_is_an_error_that_names_the_gateway(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open(())
    found.take_report(report("one"))
    publishing = asyncio.ensure_future(found.publish([route()]))
    await asyncio.sleep(0.1)
    version = await offered(found)

    found.take_report(report("one", refused=version, reason="no such cluster"))
    with pytest.raises(GatewayRefusedError, match="refused by gateway 'one': no such cluster"):
        await publishing

    assert await offered(found, refused=version) == "", "it would refuse it again"
    assert not found.routes_path.exists()


async def test_what_a_gateway_uses_is_what_others_may_begin_with(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open(())
    found.take_report(report("one"))
    publishing = asyncio.ensure_future(found.publish([route()]))
    await asyncio.sleep(1.0)
    version = await offered(found)
    offered_only = found.accepted()

    found.take_report(report("one", version))
    await publishing

    assert offered_only == b""
    assert decode_bundle(found.accepted()).version == version


async def test_nobody_connected_is_an_error_and_the_routes_are_kept(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open(())

    with pytest.raises(NoGatewayError, match="the first one that connects receives the routes"):
        await found.publish([route()])

    assert not found.is_ready
    assert found.reason == "no gateway is connected"
    version = await offered(found)
    publishing = asyncio.ensure_future(found.publish([route()]))
    found.take_report(report("one", version))
    await publishing


async def test_what_became_of_the_envoy_here_is_told(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    found.local = EnvoySupervisor(
        envoy=EnvoyGateway(found.settings),
        owner=ProcessOwner.of(tmp_path),
        record_path=tmp_path / "gateway.json",
        routes_path=tmp_path / "own-routes.json",
        clock=found.clock,
    )
    found.local.restarts, found.local.reason = 2, "ended unexpectedly"

    assert (found.restarts, found.reason) == (2, "ended unexpectedly")
    found.local.reason = ""
    assert found.reason == "no gateway is connected"


async def test_without_a_gateway_of_ours_everything_is_published_at_once(tmp_path: Path) -> None:
    found = fleet(tmp_path, is_needed=False)
    await found.open(())

    await found.publish([route()])

    assert found.is_ready


async def test_a_fresh_control_plane_takes_nothing_from_gateways_that_serve(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open(())

    assert await offered(found, held="what another knew") == ""
    assert await offered(found) != ""
    with pytest.raises(NoGatewayError):
        await found.publish([route()])
    assert await offered(found, held="what another knew") != ""


async def test_a_new_leader_sends_no_empty_routes_before_it_knows_any(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open(())
    poll = Poll(protocol=PROTOCOL, agent="1", request_number=found.counts.request_number)
    asking = asyncio.ensure_future(found.poll(poll, wait_s=30.0, has_desired_state=lambda: True))
    await asyncio.sleep(1.0)
    assert not asking.done(), "a gateway that has just begun would deny every endpoint"

    with pytest.raises(NoGatewayError):
        await found.publish(())
    assert (await asking)[1] is not None, "it is told at once when it is known that there is none"


async def test_a_restarted_control_plane_offers_what_gateways_have(tmp_path: Path) -> None:
    first = fleet(tmp_path)
    await first.open([route()])
    version = await offered(first)

    second = fleet(tmp_path)
    await second.open([route()])

    assert await offered(second) == version
    assert await offered(second, held=version) == ""


async def test_a_policy_that_one_refuses_keeps_revoked_keys_revoked(tmp_path: Path) -> None:
    found = fleet(tmp_path, policy=GatewayPolicy(keys=(KEY,)))
    await found.open([route()])
    held = await offered(found)
    found.take_report(report("one", held))

    async def agent() -> None:
        """Refuses the first that comes, and takes what comes then."""
        bad = await _newer(found, held)
        found.take_report(report("one", held, refused=bad, reason="no good"))
        good = await _newer(found, held, refused=bad)
        found.take_report(report("one", good, refused=bad))

    acting = asyncio.ensure_future(agent())
    with pytest.raises(GatewayRefusedError, match="no good"):
        await found.set_policy(GatewayPolicy(key_sets={"corp": "{}"}))
    await acting

    assert found.policy == GatewayPolicy()


async def _newer(found: GatewayFleet, held: str, refused: str = "") -> str:
    poll = Poll(
        protocol=PROTOCOL,
        agent="1",
        held=held,
        refused=refused,
        request_number=found.counts.request_number,
    )
    ask, data = await found.poll(poll, wait_s=30.0)
    bundle = decode_instructions(encode_instructions("1", ask=ask, bundle=data)).bundle
    assert bundle is not None
    return bundle.version


async def test_a_policy_is_not_in_force_while_a_gateway_is_behind(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    held = await offered(found)
    for name in ("one", "two"):
        found.take_report(report(name, held))
    setting = asyncio.ensure_future(found.set_policy(GatewayPolicy(keys=(KEY,))))
    await asyncio.sleep(0.1)
    found.take_report(report("one", await offered(found, held)))

    with pytest.raises(
        GatewayUnavailableError, match="still apply the previous caller policy: 'two'"
    ):
        await setting


def counted(requests: int, epoch: str = "1", *, active: int = 0) -> EnvoyCounts:
    arm = Arm(endpoint="m", key="1", requests=requests)
    return EnvoyCounts(
        epoch=epoch,
        every=(arm,),
        splits=(arm,),
        active=(Active(endpoint="m", key="1", requests=active),),
        upstreams=(
            UpstreamState(
                endpoint="m", key="1", handshakes=Handshakes(done=requests), healthy=active > 0
            ),
        ),
    )


async def test_counts_of_all_gateways_are_one_reading(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    held = await offered(found)
    for name, before, now in (("one", 5, 8), ("two", 10, 14)):
        found.take_report(report(name, held, counts=counted(before)))
        found.take_report(report(name, held, counts=counted(now, active=2)))
    reading = asyncio.ensure_future(found.read_arms(["m"]))
    await asyncio.sleep(0.01)
    for name, count in (("one", 9), ("two", 20)):
        counts = counted(count, active=int(name == "one"))
        found.take_report(report(name, held, ask=found.counts.request_number, counts=counts))

    splits = await reading
    every = await found.read_endpoints(["m"])

    assert splits.arms["m", "1"].requests == 4 + 10, "since each was heard first"
    assert splits.healthy == {("m", "1"): False}, "not all find it healthy"
    assert every.arms["m", "1"].requests == 29
    assert await found.in_flight() == {("m", "1"): 1}
    assert (await found.handshakes())["m", "1"].done == 29
    assert (await found.endpoint_statistics()).arms["m", "1"].requests == 29


async def test_a_reading_is_newer_than_its_question(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    held = await offered(found)
    found.take_report(report("one", held, counts=counted(1)))

    with pytest.raises(GatewayUnavailableError, match="does not report its counters"):
        await found.read_arms(["m"])


async def test_a_poll_returns_at_once_for_a_question_and_else_waits(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    held = await offered(found)
    poll = Poll(protocol=PROTOCOL, agent="1", held=held, request_number=found.counts.request_number)
    began = found.clock.monotonic()

    assert await found.poll(poll, wait_s=30.0) == (poll.request_number, None)
    assert found.clock.monotonic() - began == pytest.approx(30.0, abs=0.1)

    asking = asyncio.ensure_future(found.poll(poll, wait_s=30.0))
    await asyncio.sleep(1.0)
    reading = asyncio.ensure_future(found.read_arms(["m"]))
    assert (await asking)[0] == found.counts.request_number
    reading.cancel()


async def test_who_waits_wakes_what_is_held_and_nothing_else(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route(held=True), route("n")])

    waiting = found.take_report(report("one", held={"m": 3, "n": 2, "unknown": 9}))

    assert waiting == {"m": 3}


async def test_sums_go_on_after_a_restart(tmp_path: Path) -> None:
    first = fleet(tmp_path)
    await first.open([route()])
    held = await offered(first)
    first.take_report(report("one", held, counts=counted(5)))
    first.counts.save()

    second = fleet(tmp_path)
    second.counts.load()
    await second.open([route()])
    second.take_report(report("one", held, counts=counted(7)))
    second.take_report(report("two", held, counts=counted(1, epoch="9")))

    reading = await second.read_endpoints(["m"])
    assert reading.arms["m", "1"].requests == 8
    assert reading.epoch == first.counts.epoch


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"epoch":1}', b"\x00"])
def test_sums_that_cannot_be_read_begin_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "counts.json").write_bytes(content)
    counts = FleetCounts(path=tmp_path / "counts.json")

    counts.load()

    assert counts.every({"m"}).arms == {}


async def test_numbers_that_nobody_can_have_counted_can_be_kept_still(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    held = await offered(found)

    with pytest.raises(InvalidArgumentError, match="out of range"):
        found.take_report(report("odd", held, counts=counted(2**64)))
    for number in range(2 * 1024 + 2):
        found.take_report(report("odd", held, counts=counted(2**53, epoch=str(number))))
    found.take_report(report("one", held, counts=counted(3)))
    found.counts.save()

    again = FleetCounts(path=tmp_path / "counts.json")
    again.load()
    assert again.every({"m"}).arms["m", "1"].requests == 2**53


@pytest.mark.parametrize(
    "odd",
    [
        {"held": {"m": -1}},
        {"held": {"m": 2**63}},
        {"counts": EnvoyCounts(epoch="1", active=(Active(endpoint="m", key="1", requests=-5),))},
        {"counts": EnvoyCounts(epoch="1", active=(Active(endpoint="m", key="1", requests=2**63),))},
        {"name": "one\n"},
        {"name": "one/" + "x" * 600},
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, odd: dict[str, object]
) -> None:
    found = fleet(tmp_path)
    await found.open([route(held=True)])
    good = report("one", counts=counted(1, active=2))
    found.take_report(good)

    with pytest.raises(InvalidArgumentError):
        found.take_report(msgspec.structs.replace(good, **odd))

    assert [state.name for state in found.states()] == ["one"]
    assert await found.in_flight() == {("m", "1"): 2}


async def test_texts_of_a_report_are_cut_and_no_script_is_a_link(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])

    found.take_report(report("one", problem="p" * 10**6, url="javascript:alert(1)"))
    found.take_report(report("two", url="https://two.lan"))

    one, two = found.states()
    assert len(one.reason) < 10_000
    assert (one.url, two.url) == ("", "https://two.lan")


async def test_what_was_counted_of_endpoints_that_nobody_knows_is_not_kept(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    arms = tuple(Arm(endpoint=f"e{number}", key="1", requests=1) for number in range(1000))

    counts = msgspec.structs.replace(counted(1), every=(*counted(1).every, *arms), splits=arms)
    found.take_report(report("one", await offered(found), counts=counts))
    found.counts.save()

    assert (tmp_path / "counts.json").stat().st_size < 2000
    assert found.counts.splits({arm.endpoint for arm in arms}, ()).arms == {}


async def test_two_gateways_of_one_name_are_both_waited_for_and_people_are_told(
    tmp_path: Path,
) -> None:
    found = fleet(tmp_path)
    await found.open([route()])
    old = await offered(found)
    for _ in range(3):
        for instance, count in (("a" * 16, 1000), ("b" * 16, 500)):
            counts = counted(count, epoch=instance)
            found.take_report(report("gw", old, instance=instance, counts=counts))
    publishing = asyncio.ensure_future(found.publish([route("n")]))
    await asyncio.sleep(0.1)

    found.take_report(report("gw", await offered(found), instance="b" * 16))
    await asyncio.sleep(0.1)
    assert not publishing.done(), "the other one may still send requests by the old routes"
    found.take_report(report("gw", await offered(found), instance="a" * 16))
    await publishing

    assert [one.name for one in found.states()] == ["gw", "gw#aaaaaaaa"]
    assert "give each its own --name" in found.states()[1].reason
    every = await found.read_endpoints(["m"])
    assert every.arms["m", "1"].requests <= 2500, "not anew with each report"


async def test_an_agent_that_was_started_anew_has_its_name_again(tmp_path: Path) -> None:
    found = fleet(tmp_path)
    await found.open([route()])

    for number in range(40):
        found.take_report(report("gw", await offered(found), instance=str(number)))

    assert [(one.name, one.reason) for one in found.states()] == [("gw", "")]


def test_a_gateway_that_is_still_to_come_is_no_error_in_the_log() -> None:
    assert log_level_of(NoGatewayError("no gateway is connected")) == logging.INFO
    assert log_level_of(GatewayRefusedError({"a": "no"})) == logging.ERROR
    assert log_level_of(GatewayUnavailableError("gone")) == logging.ERROR
