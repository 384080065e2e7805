"""Alerts that the control plane makes of objectives and counts, over time and restarts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from headrace.control.model.records import Event
from headrace.control.telemetry.alerts import AlertFacts, Alerting
from headrace.core import FailedPreconditionError
from headrace.monitor.alert_state import Alert, AlertState, Key
from headrace.monitor.slo import CountWindow, EndpointFacts, StreamFacts, SystemFacts
from tests.metrics import exposed
from tests.unit.monitor.told import Counted

pytestmark = pytest.mark.anyio
START = 1764000000.0
SPEC = {
    "endpoints": [{"name": "fraud", "model": "fraud", "slo": {"latency_s": 0.2}}],
}
FINE, SLOW = Counted(1000, 0, 0.1), Counted(1000, 0, 0.3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(slots=True)
class Turned:
    """A clock that the test turns; `worked_s` is what work took of one look."""

    at: float = START
    worked_s: float = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at + self.worked_s


@dataclass(slots=True)
class Lab:
    """Alerts over made-up counts."""

    spec: dict[str, Any] = field(default_factory=lambda: dict(SPEC))
    counted: Counted = FINE
    costs_s: float = 0.0
    facts: AlertFacts = field(default_factory=AlertFacts)
    clock: Turned = field(default_factory=Turned)
    events: list[Event] = field(default_factory=list)
    heard: list[Sequence[Alert]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    stored: dict[Key, Alert] = field(default_factory=dict)
    writes: int = 0
    alerting: Alerting = field(init=False)

    def __post_init__(self) -> None:
        self.alerting = Alerting(
            history=self,
            spec=lambda: self.spec,
            facts=self._facts,
            emit=self._emit,
            save=self._save,
            notify=self.heard.append,
            clock=self.clock,
        )

    def window(
        self, endpoint: str, *, until: float, seconds: float, version: str = ""
    ) -> CountWindow:
        assert endpoint in {entry["name"] for entry in self.spec["endpoints"]}
        assert (until, version) == (self.clock.at, "")
        self.asked.append(seconds)
        self.clock.worked_s += self.costs_s
        return self.counted

    async def poll(self, after_s: float = 0.0) -> list[Alert]:
        self.clock.at += after_s
        await self.alerting.poll()
        return self.alerting.alerts()

    def states(self) -> dict[str, AlertState]:
        return {alert.name: alert.state for alert in self.alerting.alerts()}

    async def _facts(self) -> AlertFacts:
        return self.facts

    async def _emit(self, events: Sequence[Event]) -> None:
        self.events += events

    async def _save(self, alerts: Sequence[Alert], gone: Sequence[Key]) -> None:
        self.writes += 1
        self.stored = {key: alert for key, alert in self.stored.items() if key not in gone}
        self.stored |= {alert.key: alert for alert in alerts}


async def test_a_slow_endpoint_fires_and_is_over_when_it_is_fast_again() -> None:
    lab = Lab()

    await lab.poll()
    lab.counted = SLOW
    await lab.poll(10)
    pending = lab.states()
    await lab.poll(121)
    fired = lab.states()
    lab.counted = FINE
    await lab.poll(10)
    still = lab.states()
    await lab.poll(600)

    assert still["HeadraceLatencyP99"] is AlertState.FIRING
    assert pending["HeadraceLatencyP99"] is AlertState.PENDING
    assert pending["HeadraceLatencyBudgetFast"] is AlertState.FIRING
    assert fired["HeadraceLatencyP99"] is AlertState.FIRING
    assert lab.states()["HeadraceLatencyP99"] is AlertState.RESOLVED
    told = [event.reason for event in lab.events if event.data["alert"] == "HeadraceLatencyP99"]
    assert told == ["Firing", "Resolved"]
    assert lab.events[-1].kind == "alert"
    assert len(lab.heard) == 5


async def test_what_is_well_is_no_alert() -> None:
    lab = Lab(facts=AlertFacts(system=SystemFacts(gateway_ready=True)))

    assert await lab.poll() == []
    assert lab.events == []


async def test_the_whole_system_has_alerts_too() -> None:
    lab = Lab(facts=AlertFacts(system=SystemFacts(gateway_ready=False)))

    await lab.poll()
    (down,) = await lab.poll(31)

    assert (down.name, down.endpoint) == ("HeadraceGatewayDown", "")
    assert down.state is AlertState.FIRING


async def test_an_endpoint_without_a_replica_is_told() -> None:
    gone = EndpointFacts(replicas_ready=0, crashing=1)
    lab = Lab(facts=AlertFacts(endpoints={"fraud": gone}))

    await lab.poll()
    await lab.poll(61)

    assert lab.states() == {
        "HeadraceNoReplicaReady": AlertState.FIRING,
        "HeadraceReplicaCrashing": AlertState.FIRING,
    }


def streaming(**more: object) -> Lab:
    """A system with one stream and no endpoint."""
    return Lab(spec={"streams": [{"name": "pay", **more}]})


async def test_a_stream_that_is_behind_for_long_is_told_once_and_when_it_is_over() -> None:
    lab = streaming(alerts={"lag_s": 30.0})
    lab.facts = AlertFacts(streams={"pay": StreamFacts(lag_s=45.0, running=1)})
    await lab.poll()
    pending = lab.states()
    await lab.poll(299)
    still = lab.states()
    [fired] = await lab.poll(1)
    lab.facts = AlertFacts(streams={"pay": StreamFacts(lag_s=2.0, running=1)})
    await lab.poll(2)
    await lab.poll(300)

    assert pending == still == {"HeadraceStreamLagging": AlertState.PENDING}
    assert (fired.state, fired.stream, fired.endpoint) == (AlertState.FIRING, "pay", "")
    assert fired.summary == "stream pay is 45 s behind, more than it may be"
    assert fired.action.startswith("`headrace stream status pay`")
    assert [event.reason for event in lab.events] == ["Firing", "Resolved"]
    assert lab.events[0].data["stream"] == "pay"


async def test_a_stream_that_does_not_run_is_told_after_minutes() -> None:
    lab = streaming()
    lab.facts = AlertFacts(streams={"pay": StreamFacts(running=0, failing=1)})
    await lab.poll()
    await lab.poll(181)

    assert lab.states() == {
        "HeadraceStreamDown": AlertState.FIRING,
        "HeadraceStreamWorkerCrashing": AlertState.FIRING,
    }
    text = exposed(lab.alerting.families())
    assert 'headrace_alert_firing{alert="HeadraceStreamDown",endpoint="",stream="pay"} 1' in text


async def test_dead_letters_of_one_moment_are_no_alert_and_those_that_keep_coming_are() -> None:
    once, often = streaming(), streaming()
    some = AlertFacts(streams={"pay": StreamFacts(running=1, dead_letters=3)})
    none = AlertFacts(streams={"pay": StreamFacts(running=1)})
    once.facts = often.facts = some
    for lab in (once, often):
        await lab.poll()
        await lab.poll(299)
    once.facts = none
    for lab in (once, often):
        await lab.poll(302)

    assert once.states() == {}
    assert often.states() == {"HeadraceStreamDeadLetters": AlertState.FIRING}


async def test_alerts_of_a_stream_that_is_removed_are_over() -> None:
    lab = streaming()
    lab.facts = AlertFacts(streams={"pay": StreamFacts(running=0)})
    await lab.poll()
    await lab.poll(181)
    lab.spec = {"streams": []}
    await lab.poll(2)

    assert lab.states() == {"HeadraceStreamDown": AlertState.RESOLVED}


async def test_an_endpoint_and_a_stream_of_one_name_are_told_apart() -> None:
    spec = {
        "endpoints": [{"name": "pay", "model": "m"}],
        "streams": [{"name": "pay"}],
    }
    lab = Lab(spec=spec)
    lab.facts = AlertFacts(
        endpoints={"pay": EndpointFacts(replicas_ready=0)},
        streams={"pay": StreamFacts(running=0)},
    )
    await lab.poll()
    await lab.poll(181)

    found = {alert.name: (alert.endpoint, alert.stream) for alert in lab.alerting.alerts()}
    assert found == {"HeadraceNoReplicaReady": ("pay", ""), "HeadraceStreamDown": ("", "pay")}


async def test_long_windows_are_asked_for_seldom() -> None:
    lab = Lab()

    await lab.poll()
    first = len(lab.asked)
    for _ in range(4):
        await lab.poll(2)

    assert first == len(set(lab.asked))
    assert lab.asked.count(7200.0) == 1
    assert lab.asked.count(300.0) == 2


async def test_shorter_windows_are_asked_for_as_the_endpoint_says() -> None:
    lab = Lab()
    lab.spec["endpoints"] = [
        {"name": "fraud", "model": "m", "slo": {"latency_s": 0.2, "alert_window_ratio": 0.01}}
    ]
    lab.counted = SLOW

    await lab.poll()
    await lab.poll(1.3)

    assert 3.0 in lab.asked
    assert max(lab.asked) == 864.0
    assert lab.states()["HeadraceLatencyP95"] is AlertState.FIRING


@pytest.mark.parametrize("down_s", [20.0, 4 * 3600.0])
async def test_a_restart_ends_nothing_and_begins_nothing(down_s: float) -> None:
    before = Lab(counted=SLOW)
    await before.poll()
    await before.poll(121)

    after = Lab(counted=Counted())
    after.clock.at = before.clock.at + down_s
    after.alerting.load(before.stored.values())
    await after.poll()
    unknown = after.states()
    after.counted = SLOW
    await after.poll(10)

    assert unknown == before.states()
    assert after.states() == before.states()
    assert after.events == []


async def test_only_alerts_that_changed_their_state_are_stored() -> None:
    lab = Lab(counted=SLOW)
    await lab.poll()
    await lab.poll(121)
    writes = lab.writes

    for _ in range(10):
        await lab.poll(6)
    unchanged = lab.writes
    lab.spec = {"endpoints": []}
    await lab.poll(2)
    resolved = dict(lab.stored)
    await lab.poll(1000)

    assert unchanged == writes
    assert {alert.state for alert in resolved.values()} == {AlertState.RESOLVED}
    assert lab.stored == {}


async def test_alerts_that_cannot_be_stored_are_stored_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_alerts: Sequence[Alert], _gone: Sequence[Key]) -> None:
        raise FailedPreconditionError("disk full")

    lab = Lab(facts=AlertFacts(system=SystemFacts(gateway_ready=False)))
    save, lab.alerting.save = lab.alerting.save, fail
    await lab.poll()
    await lab.poll(31)
    lab.alerting.save = save
    await lab.poll(2)

    assert "cannot store the alerts" in caplog.text
    assert [alert.state for alert in lab.stored.values()] == [AlertState.FIRING]


async def test_an_endpoint_that_is_removed_has_no_alerts() -> None:
    lab = Lab(counted=SLOW)
    await lab.poll()
    await lab.poll(121)

    lab.spec = {"endpoints": []}
    await lab.poll(2)

    assert set(lab.states().values()) == {AlertState.RESOLVED}


async def test_firing_alerts_are_a_metric() -> None:
    lab = Lab(counted=SLOW)
    await lab.poll()
    await lab.poll(121)
    lab.counted = FINE
    await lab.poll(700)
    lab.facts = AlertFacts(system=SystemFacts(gateway_ready=False))
    await lab.poll(2)
    await lab.poll(31)

    text = exposed(lab.alerting.families())

    assert 'headrace_alert_firing{alert="HeadraceLatencyP99",endpoint="fraud"} 0' in text
    assert 'headrace_alert_firing{alert="HeadraceGatewayDown",endpoint=""} 1' in text
    assert lab.alerting.alerts()[0].name == "HeadraceGatewayDown"


async def test_a_store_that_fails_does_not_end_the_looking(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_events: Sequence[Event]) -> None:
        raise FailedPreconditionError("disk full")

    lab = Lab(facts=AlertFacts(system=SystemFacts(gateway_ready=False)))
    lab.alerting.emit = fail

    await lab.poll()
    found = await lab.poll(31)

    assert found[0].state is AlertState.FIRING
    assert "cannot write an event" in caplog.text


async def test_windows_of_many_endpoints_take_turns_and_facts_do_not() -> None:
    names = [f"e{number}" for number in range(10)]
    gone = EndpointFacts(replicas_ready=0)
    lab = Lab(facts=AlertFacts(endpoints=dict.fromkeys(names, gone)))
    lab.spec["endpoints"] = [
        {"name": name, "model": "m", "slo": {"latency_s": 0.2}} for name in names
    ]
    lab.counted, lab.costs_s = SLOW, 0.02

    looks = []
    for _ in range(12):
        await lab.poll(2)
        found = lab.alerting.alerts()
        looks.append({a.endpoint for a in found if a.name == "HeadraceLatencyBudgetFast"})

    told = {a.endpoint for a in lab.alerting.alerts() if a.name == "HeadraceNoReplicaReady"}
    assert told == set(names)
    assert 0 < len(looks[0]) < 10
    assert looks[-1] == set(names)
