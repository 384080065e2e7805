"""What is new and good is delivered; what is not is told, and kept out of force."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.control.gateway.certificates import Certificates, Pem, PemFiles, PemWatch
from headrace.control.model.records import Event
from headrace.core import UnavailableError
from tests.certificates import Authority, now
from tests.metrics import exposed

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0


@dataclass
class World:
    """A certificate, and what becomes of it."""

    folder: Path
    at: float = field(default_factory=now)
    jumped_s: float = 0.0
    delivered: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    is_broken: bool = False
    error: Exception = field(default_factory=lambda: UnavailableError("Envoy is gone"))

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder)
        self.files = self.authority.server("a", "one.example")
        self.certificates = Certificates(clock=self, emit=self._emit)

    def keep(self) -> None:
        files = PemFiles(
            name="gateway",
            what="the certificate",
            certificate_file=self.files.certificate,
            key_file=self.files.key,
        )
        self.certificates.keep(PemWatch(files=files), self._deliver)

    def now(self) -> float:
        return self.at + self.jumped_s

    def monotonic(self) -> float:
        return self.at

    async def poll(self, after_s: float = 0.0) -> None:
        self.at += after_s
        await self.certificates.poll("gateway")

    async def _deliver(self, pem: Pem) -> None:
        if self.is_broken:
            raise self.error
        assert pem.facts is not None
        self.delivered.append(pem.facts.names[0])

    async def _emit(self, events: Sequence[Event]) -> None:
        self.events += events

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.events]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.keep()
    return world


async def test_a_replaced_certificate_is_delivered_and_told(world: World) -> None:
    await world.poll()
    world.files.replace_by(world.authority.server("b", "two.example"))
    await world.poll()
    await world.poll()

    assert world.delivered == ["one.example", "two.example"]
    assert world.reasons == ["CertificateReplaced"]
    assert world.events[0].kind == "gateway"
    assert "10 days left" in world.events[0].message


async def test_a_broken_one_is_told_once_it_stays_so_and_only_once(world: World) -> None:
    await world.poll()
    world.files.certificate.write_text("hello")
    await world.poll()
    early = list(world.reasons)
    for _ in range(5):
        await world.poll(0.5)

    assert early == []
    assert world.reasons == ["CertificateRefused"]
    assert "the one before stays in force" in world.events[0].message
    assert world.certificates.is_in_force("gateway")
    assert world.certificates.statuses()[0].names == ("one.example",)
    assert "no PEM certificate" in world.certificates.problem("gateway")


@pytest.mark.parametrize("error", [UnavailableError("Envoy is gone"), OSError(28, "disk is full")])
async def test_what_could_not_be_delivered_is_tried_again(world: World, error: Exception) -> None:
    world.is_broken, world.error = True, error
    await world.poll()
    in_force = world.certificates.is_in_force("gateway")
    world.is_broken = False
    await world.poll(1.0)
    early = list(world.delivered)
    await world.poll(6.0)

    assert not in_force
    assert early == []
    assert world.delivered == ["one.example"]
    assert world.certificates.problem("gateway") == ""


async def test_a_clock_that_is_set_back_delays_no_second_try(world: World) -> None:
    world.is_broken = True
    await world.poll()
    world.is_broken, world.jumped_s = False, -30.0
    await world.poll(6.0)

    assert world.delivered == ["one.example"]


async def test_the_status_counts_the_days_and_says_when_they_are_over(world: World) -> None:
    await world.poll()
    (before,) = world.certificates.statuses()
    world.at += 12 * DAY_S
    (after,) = world.certificates.statuses()

    assert before.days_left == pytest.approx(10, abs=0.01)
    assert before.problem == ""
    assert after.days_left == pytest.approx(-2, abs=0.01)
    assert after.problem == "it expired 2.0 days ago"
    assert 'left_seconds{certificate="gateway"} -172' in exposed(world.certificates.families())


async def test_nothing_watched_has_no_metrics(world: World) -> None:
    world.certificates.drop("gateway")
    await world.poll()

    assert exposed(world.certificates.families()) == ""
    assert world.certificates.names() == []
    assert world.certificates.problem("gateway") == ""


async def test_of_what_is_not_in_force_only_the_problem_is_known(world: World) -> None:
    world.files.key.unlink()
    await world.poll()
    (status,) = world.certificates.statuses()

    assert "cannot read" in status.problem
    assert (status.fingerprint, status.days_left) == ("", None)
    await world.poll(1.5)
    assert "nothing is in force" in world.events[0].message
