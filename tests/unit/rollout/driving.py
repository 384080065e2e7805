"""A rollout in a healthy system, played look by look in virtual time."""

from dataclasses import dataclass

from msgspec.structs import replace

from headrace.core.spec.rollout import RolloutSpec
from headrace.rollout import machine
from headrace.rollout.outcomes import MetricVerdict, Outcome, RolloutVerdict
from headrace.rollout.state import RolloutFacts, RolloutState, Verb

BEGAN = 1_000_000.0
"""Seconds since 1970, for people: what the machine does starts at 0."""


def verdict_of(outcome: Outcome, reason: str = "as measured") -> RolloutVerdict:
    metric = MetricVerdict(metric="errors", outcome=outcome, reason=reason)
    return RolloutVerdict(outcome=outcome, at=BEGAN, metrics=(metric,), explanation=reason)


GOOD = verdict_of(Outcome.PROMOTE, "errors: no more than tolerated")
BAD = verdict_of(Outcome.ROLL_BACK, "errors: 5 % fail, 0 % before")
UNSURE = verdict_of(Outcome.WAIT, "errors: 40 requests do not tell")


@dataclass(slots=True)
class Driven:
    """`look` is what the driver does every second; replicas and gateway obey at once.

    A verdict is as new as the look.
    """

    state: RolloutState
    now: float = 0.0

    @classmethod
    def of(cls, settings: RolloutSpec) -> "Driven":
        return cls(machine.begin(settings, started=BEGAN))

    def look(
        self,
        *,
        after: float = 1.0,
        ready: bool = True,
        in_force: bool = True,
        failed: str = "",
        verdict: RolloutVerdict | None = None,
        samples: int = 1_000_000,
        insufficient_traffic: str = "",
    ) -> RolloutState:
        self.now += after
        facts = RolloutFacts(
            now=self.now,
            candidate_ready=ready,
            candidate_failed=failed,
            in_force=in_force,
            verdict=None if verdict is None else replace(verdict, at=BEGAN + self.now),
            judged_at=self.now,
            step_samples=samples,
            insufficient_traffic=insufficient_traffic,
        )
        self.state = machine.advance(self.state, facts)
        return self.state

    def looks(self, count: int, *, verdict: RolloutVerdict | None = None) -> RolloutState:
        for _ in range(count):
            self.look(verdict=verdict)
        return self.state

    def tell(self, verb: Verb, reason: str = "") -> RolloutState:
        self.now += 0.25
        self.state = machine.command(self.state, verb, now=self.now, reason=reason)
        return self.state

    def weights(self, looks: int, *, verdict: RolloutVerdict | None = None) -> list[int]:
        """The candidate's weights that these looks see, each once."""
        seen = [self.state.traffic.candidate]
        for _ in range(looks):
            weight = self.look(verdict=verdict).traffic.candidate
            if weight != seen[-1]:
                seen.append(weight)
        return seen
