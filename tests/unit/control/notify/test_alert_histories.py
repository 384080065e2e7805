"""Random histories of alerts: every receiver's last message is the alert's last state.

A history is alerts that flap, receivers that refuse, answer too late or are out of the spec,
silences, and processes that end at any point and go on with what was stored. Time is virtual.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.model.alerts import AlertNotice, NoticeKey, Silence
from headrace.control.notify.messages import AlertGroups, AlertMessage
from headrace.core.spec.alerts import AlertsSpec
from headrace.monitor.alert_kinds import ALERTS
from headrace.monitor.alert_state import Alert, AlertReading, AlertState, Key, advance
from headrace.monitor.slo import ConditionReading
from tests.unit.control.notify.alert_samples import settings, webhook

HISTORIES: Final = 1000
STEPS: Final = 80
P99 = next(kind for kind in ALERTS if kind.name == "HeadraceLatencyP99")
FAST = next(kind for kind in ALERTS if kind.name == "HeadraceErrorBudgetFast")
NAMES = ("ops", "chat")
ENDPOINTS = ("fraud", "spam")
BAD = ConditionReading(value=0.3, threshold=0.2, is_bad=True)
GOOD = ConditionReading(value=0.1, threshold=0.2, is_bad=False)
START = 1764000000.0


class KilledError(Exception):
    """The process ends here."""


@dataclass(slots=True)
class Inbox:
    """What reached one receiver of each alert, and of which a firing message may have."""

    messages: dict[Key, list[AlertState]] = field(default_factory=dict)
    attempted: set[Key] = field(default_factory=set)

    def take(self, message: AlertMessage) -> None:
        for alert in (*message.firing, *message.resolved):
            self.messages.setdefault(alert.key, []).append(alert.state)


@dataclass(slots=True)
class World:
    """The control plane's part of alerts, its database, and the receivers."""

    random: random.Random
    now: float = START
    readings: dict[Key, ConditionReading | None] = field(default_factory=dict)
    endpoints: set[str] = field(default_factory=lambda: set(ENDPOINTS))
    spec: AlertsSpec = field(default_factory=lambda: settings(*map(receiver, NAMES)))
    silences: list[Silence] = field(default_factory=list)
    health: dict[str, str] = field(default_factory=lambda: dict.fromkeys(NAMES, "well"))
    inboxes: dict[str, Inbox] = field(default_factory=lambda: {name: Inbox() for name in NAMES})
    kill_in: int | None = None
    # The process.
    alerts: dict[Key, Alert] = field(default_factory=dict)
    outbox: AlertGroups = field(default_factory=AlertGroups)
    under_way: list[tuple[AlertMessage, str]] = field(default_factory=list)
    # The database.
    stored_alerts: dict[Key, Alert] = field(default_factory=dict)
    stored_notices: dict[NoticeKey, AlertNotice] = field(default_factory=dict)

    def turn(self) -> None:
        """A second of the process; it may be killed at every line that something outside sees."""
        try:
            self.alerts = advance(self.alerts, self.findings(), now=self.now)
            self.may_die()
            self.stored_alerts = dict(self.alerts)
            self.may_die()
            messages = self.outbox.due(
                list(self.alerts.values()), self.spec, silences=self.silences, now=self.now
            )
            self.save()
            for message in messages:
                self.may_die()
                self.under_way.append((message, self.deliver(message)))
            for message, outcome in list(self.under_way):
                self.may_die()
                if outcome != "late" or self.random.random() < 0.3:
                    self.under_way.remove((message, outcome))
                    self.settle(message, outcome)
                    self.may_die()
                    self.save()
        except KilledError:
            self.restart()

    def findings(self) -> Iterator[AlertReading]:
        for kind in (P99, FAST):
            for endpoint in sorted(self.endpoints):
                yield AlertReading(
                    kind=kind,
                    endpoint=endpoint,
                    reading=self.readings.get((kind.name, endpoint)),
                    for_s=0.0 if kind is FAST else 20.0,
                    keep_firing_for_s=8.0,
                    hold_s=30.0,
                )

    def deliver(self, message: AlertMessage) -> str:
        """What becomes of a message; what reaches the receiver is in its inbox."""
        name = message.receiver.name
        outcome = self.health[name]
        if outcome == "flaky":
            outcome = self.random.choice(("well", "refuses", "lost", "lost-taken", "late"))
        if outcome in {"well", "lost-taken", "late"}:
            self.inboxes[name].take(message)
        if outcome != "refuses":
            self.inboxes[name].attempted |= {alert.key for alert in message.firing}
        return outcome

    def settle(self, message: AlertMessage, outcome: str) -> None:
        if outcome in {"well", "late"}:
            self.outbox.sent(message, now=self.now)
        else:
            self.outbox.failed(message, may_be_taken=outcome != "refuses", now=self.now)

    def save(self) -> None:
        self.may_die()
        notices, gone = self.outbox.take_unsaved()
        for key in gone:
            self.stored_notices.pop(key, None)
        self.stored_notices |= {notice.key: notice for notice in notices}

    def may_die(self) -> None:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise KilledError

    def restart(self) -> None:
        """Go on with what the database has; what the dead process had sent may have been taken."""
        for (name, _), notice in self.stored_notices.items():
            if notice.taken_at is None:
                self.inboxes[name].attempted.add(notice.alert.key)
        self.under_way = []
        self.outbox = AlertGroups()
        self.outbox.load(self.stored_notices.values())
        self.alerts = {
            key: msgspec.structs.replace(alert, bad_at=self.now)
            for key, alert in self.stored_alerts.items()
        }

    def happen(self) -> None:
        """Something of what can happen between two turns."""
        pick = self.random
        match pick.randrange(9):
            case 0 | 1 | 2 | 3:
                key = (pick.choice((P99, FAST)).name, pick.choice(ENDPOINTS))
                self.readings[key] = pick.choice((BAD, BAD, GOOD, None))
            case 4:
                self.health[pick.choice(NAMES)] = pick.choice(("well", "refuses", "flaky"))
            case 5:
                self.kill_in = pick.randrange(12)
            case 6:
                self.endpoints ^= {pick.choice(ENDPOINTS)}
            case 7:
                names = [name for name in NAMES if pick.random() < 0.7]
                severities = pick.choice((["page", "ticket"], ["page"]))
                self.spec = settings(*(receiver(name, severities) for name in names))
            case _:
                about = {"endpoint": pick.choice(("", *ENDPOINTS))}
                ends = self.now + pick.uniform(1, 200)
                self.silences = [Silence(id="a", begins=self.now, ends=ends, **about)]

    def settle_down(self) -> None:
        """All receivers are well and in the spec, no silence is left; time passes."""
        self.spec, self.silences, self.kill_in = settings(*map(receiver, NAMES)), [], None
        self.health = dict.fromkeys(NAMES, "well")
        for _ in range(60):
            self.now += 30
            self.turn()


def receiver(name: str, severities: list[str] | None = None) -> dict[str, object]:
    return {**webhook(severities=severities or ["page", "ticket"]), "name": name}


def check(world: World) -> int:
    """Hold the law; how many messages there were."""
    count = 0
    for inbox in world.inboxes.values():
        for key, states in inbox.messages.items():
            fires = key in world.alerts and world.alerts[key].state is AlertState.FIRING
            assert (states[-1] is AlertState.FIRING) == fires, (key, states)
            if states[0] is AlertState.RESOLVED:
                assert key in inbox.attempted, (key, states)
            count += len(states)
        for key, alert in world.alerts.items():
            assert alert.state is not AlertState.FIRING or key in inbox.messages
    return count


def play(seed: int, steps: int) -> World:
    world = World(random.Random(seed))  # noqa: S311  # no secret
    for _ in range(steps):
        world.now += world.random.choice((0.5, 1.0, 2.0, 7.0, 30.0))
        if world.random.random() < 0.4:
            world.happen()
        world.turn()
    world.settle_down()
    return world


def test_the_last_message_of_a_thousand_random_histories_is_the_last_state() -> None:
    counts = [check(play(seed, STEPS)) for seed in range(HISTORIES)]

    assert sum(counts) > 10 * HISTORIES
    assert sum(1 for count in counts if count) > 0.9 * HISTORIES


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 200))
def test_the_last_message_is_the_last_state(seed: int, steps: int) -> None:
    check(play(seed, steps))


@pytest.mark.parametrize("health", ["well", "refuses", "flaky"])
def test_a_receiver_without_restarts_is_never_told_an_end_before_a_beginning(health: str) -> None:
    world = World(random.Random(1))  # noqa: S311  # no secret
    world.health = dict.fromkeys(NAMES, health)
    for _ in range(300):
        world.now += 5
        key = (P99.name, world.random.choice(ENDPOINTS))
        world.readings[key] = world.random.choice((BAD, GOOD))
        world.turn()
        if health == "refuses":
            assert world.stored_notices == {}
    world.settle_down()

    check(world)
    if health == "refuses":
        assert all(
            states[0] is AlertState.FIRING for states in world.inboxes["ops"].messages.values()
        )
