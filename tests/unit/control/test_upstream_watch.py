"""Whether an upstream can be spoken to is read from what Envoy counted."""

from collections.abc import Sequence

import pytest

from headrace.control.gateway.upstream_watch import ArmKey, UpstreamWatch, tls_problem
from headrace.control.model.records import Event
from headrace.core import SystemClock, UnavailableError
from headrace.core.spec.upstream import UpstreamSpec, UpstreamTlsSpec
from headrace.gateway import EndpointRoute, Handshakes, RevisionTarget
from headrace.gateway.statistics import read_handshakes

NOTHING = Handshakes()
UNCHECKED = "no health check has passed yet"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Handshakes(wrong_name=1), "is not for 'them'"),
        (Handshakes(untrusted=1), "not signed by"),
        (Handshakes(failed=1), "no TLS connection"),
        (Handshakes(failed=1, wrong_name=1), "is not for 'them'"),
        (NOTHING, "as before"),
        (Handshakes(done=3, failed=3), "no TLS connection"),
        (Handshakes(untrusted=1, healthy=1), ""),
    ],
)
def test_of_a_checked_upstream_one_healthy_server_is_enough(now: Handshakes, said: str) -> None:
    found = tls_problem(NOTHING, now, "as before", name="them", is_checked=True)

    assert said in found
    assert bool(found) == bool(said)


def test_of_an_unchecked_upstream_a_handshake_is_the_sign_of_life() -> None:
    known = tls_problem(NOTHING, Handshakes(untrusted=1, healthy=2), "", name="m", is_checked=False)
    kept = tls_problem(
        Handshakes(untrusted=1), Handshakes(untrusted=1), known, name="m", is_checked=False
    )
    gone = tls_problem(NOTHING, Handshakes(done=1), kept, name="m", is_checked=False)

    assert "not signed" in known
    assert kept == known
    assert gone == ""


def test_envoys_counters_become_one_per_arm() -> None:
    found = read_handshakes(
        {
            "cluster.a+b~1.ssl.handshake": 2,
            "cluster.a+b~1.ssl.fail_verify_error": 1,
            "cluster.a+b~1.ssl.fail_verify_no_cert": 1,
            "cluster.a+b~1.health_check.network_failure": 3,
            "cluster.a+b~1.upstream_cx_connect_fail": 4,
            "cluster.m~2~baseline.membership_healthy": 5,
            "cluster.control.membership_healthy": 1,
        }
    )

    assert found == {
        ("a.b", "1"): Handshakes(done=2, untrusted=2, failed=7),
        ("m", "2~baseline"): Handshakes(healthy=5),
    }


class _World:
    def __init__(
        self, url: str, *, tls: UpstreamTlsSpec | None = None, health_path: str | None = ""
    ) -> None:
        upstream = UpstreamSpec(url=url, tls=tls, health_path=health_path)
        arm = RevisionTarget(version="1", weight=100, replicas=(), upstream=upstream)
        self.route = EndpointRoute(name="m", timeout_s=None, arms=(arm,))
        self.counts: Handshakes | None = NOTHING
        self.reads = 0
        self.changes = 0
        self.events: list[Event] = []
        self.watch = UpstreamWatch(
            routes=lambda: (self.route,),
            read=self._read,
            on_change=self._note,
            clock=SystemClock(),
            emit=self._emit,
        )

    async def _read(self) -> dict[ArmKey, Handshakes]:
        self.reads += 1
        if self.counts is None:
            raise UnavailableError("Envoy is gone")
        return {("m", "1"): self.counts}

    def _note(self) -> None:
        self.changes += 1

    async def _emit(self, events: Sequence[Event]) -> None:
        self.events += events

    async def says(self, counts: Handshakes | None) -> str:
        self.counts = counts
        await self.watch.poll()
        (arm,) = self.route.arms
        assert arm.upstream is not None
        return self.watch.problem("m", "1", arm.upstream)


@pytest.mark.anyio
async def test_trouble_is_told_once_and_forgotten_once_it_is_over() -> None:
    world = _World("https://them.example", tls=UpstreamTlsSpec(server_name="they.example"))
    said = [
        await world.says(Handshakes()),
        await world.says(Handshakes(wrong_name=2)),
        await world.says(Handshakes(wrong_name=2)),
        await world.says(None),
        await world.says(Handshakes(wrong_name=2, done=1, healthy=1)),
    ]

    trouble_text = "its certificate is not for 'they.example'"
    assert said == [UNCHECKED, trouble_text, trouble_text, trouble_text, ""]
    assert world.changes == 2


@pytest.mark.anyio
async def test_an_envoy_that_counts_anew_hides_nothing() -> None:
    world = _World("https://them.example")
    await world.says(Handshakes(untrusted=9, healthy=1))

    assert "not signed" in await world.says(Handshakes(untrusted=1))


@pytest.mark.anyio
async def test_an_upstream_whose_health_checks_fail_is_reported_until_one_passes() -> None:
    world = _World("http://them.example")
    problems = [
        await world.says(NOTHING),  # no check has ended yet
        await world.says(Handshakes(healthy=1)),
        await world.says(Handshakes(unhealthy=1, healthy=1)),
        await world.says(Handshakes(unhealthy=2)),
        await world.says(Handshakes(unhealthy=2)),
        await world.says(Handshakes(unhealthy=3, healthy=1)),
    ]

    assert problems[:3] == [UNCHECKED, "", ""]
    assert [bool(problem) for problem in problems[3:]] == [True, True, False]
    assert "no server passes its health check" in problems[3]
    assert [event.reason for event in world.events] == ["UpstreamFailed", "UpstreamRecovered"]
    assert world.events[0].endpoint == "m"
    assert "http://them.example" in world.events[0].message


@pytest.mark.anyio
async def test_an_upstream_with_tls_that_refuses_its_health_check_has_no_tls_problem() -> None:
    world = _World("https://them.example")

    assert "health check" in await world.says(Handshakes(done=1, unhealthy=1))


@pytest.mark.anyio
async def test_an_upstream_that_was_never_up_fails_without_a_recovery_before() -> None:
    world = _World("http://them.example")

    assert await world.says(NOTHING) == UNCHECKED
    assert "no server passes" in await world.says(Handshakes(unhealthy=1))
    assert [event.reason for event in world.events] == ["UpstreamFailed"]


@pytest.mark.anyio
async def test_upstreams_in_plain_text_without_health_checks_are_not_checked() -> None:
    world = _World("http://them.example", health_path=None)
    await world.says(Handshakes(failed=9))

    assert world.reads == 0
