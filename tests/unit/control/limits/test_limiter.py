"""What passes where several limits are counted at one place, and what it leaves behind."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.limits.limiter import (
    DAY_S,
    LimitDecision,
    Limiter,
    LimitKind,
    LimitRequest,
    LimitSubject,
    Moment,
    Rules,
    Scope,
    make_rules,
    token_costs,
)
from headrace.control.model.records import QuotaUse
from headrace.core.spec.access import (
    AccessSettings,
    EndpointLimitsSpec,
    LimitSpec,
    TierSpec,
    TokenWeightsSpec,
)
from headrace.gateway import EndpointRoute
from headrace.gateway.statistics import TokenUse

ALICE = LimitRequest(endpoint="m", caller="alice")
BOB = LimitRequest(endpoint="m", caller="bob")
NONE = LimitSpec()
KINDS = ("input", "cached", "output", "reasoning")
PARTS = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 4.0, 10.0)
"""Weights that floats add up exactly."""


def at(now: float, wall: float = 0.0) -> Moment:
    return Moment(now, wall or now)


def used(subject: str, count: int) -> QuotaUse:
    return QuotaUse(day="1970-01-01", subject=subject, used=count)


def a_limiter(
    *,
    total: LimitSpec = NONE,
    per_caller: LimitSpec = NONE,
    tiers: dict[str, LimitSpec] | None = None,
    **more: Any,  # noqa: ANN401  # any field
) -> Limiter:
    endpoint = EndpointLimitsSpec(total=total, per_caller=per_caller)
    rules = Rules(endpoints={"m": endpoint}, tiers=tiers or {}, longest_s={"m": 10.0})
    return Limiter(name="t", rules=rules, **more)


def passed(limiter: Limiter, asks: Sequence[LimitRequest], moment: Moment) -> list[bool]:
    return [limiter.ask(ask, moment).refused_by is None for ask in asks]


def test_what_nobody_limits_passes_without_a_trace() -> None:
    limiter = a_limiter()

    assert limiter.ask(ALICE, at(0.0)) == LimitDecision()
    assert (
        limiter.ask(LimitRequest(endpoint="other", caller="x", tier="y"), at(0.0))
        == LimitDecision()
    )


def test_each_caller_is_counted_for_itself_and_all_together_too() -> None:
    limiter = a_limiter(
        total=LimitSpec(requests_per_s=1.0, burst=4),
        per_caller=LimitSpec(requests_per_s=1.0, burst=3),
    )

    found = passed(limiter, [ALICE, ALICE, ALICE, ALICE, BOB, BOB], at(0.0))

    assert found == [True, True, True, False, True, False]
    assert limiter.refusals == {
        ("m", Scope.CALLER, LimitKind.REQUESTS): 1,
        ("m", Scope.ENDPOINT, LimitKind.REQUESTS): 1,
    }


def test_a_tier_holds_over_all_endpoints() -> None:
    limiter = a_limiter(tiers={"gold": LimitSpec(requests_per_day=2)})
    asks = [LimitRequest(endpoint=name, caller="alice", tier="gold") for name in ("m", "n", "o")]

    assert passed(limiter, asks, at(0.0)) == [True, True, False]


def test_a_day_ends_at_midnight_utc_and_a_clock_that_goes_back_gives_nothing_again() -> None:
    limiter = a_limiter(per_caller=LimitSpec(requests_per_day=1))
    evening, midnight = at(0.0, DAY_S - 10.0), at(10.0, DAY_S)

    assert passed(limiter, [ALICE, ALICE], evening) == [True, False]
    refused = limiter.ask(ALICE, evening).tightest
    assert refused is not None
    assert refused.wait_s == 10.0
    assert passed(limiter, [ALICE, ALICE], midnight) == [True, False]
    assert passed(limiter, [ALICE], evening) == [False]


def test_places_are_given_back_and_given_up_when_nobody_tells() -> None:
    limiter = a_limiter(per_caller=LimitSpec(max_concurrent=2))
    one, two = (limiter.ask(ALICE, at(0.0)).lease for _ in range(2))

    assert one != two
    assert passed(limiter, [ALICE, BOB], at(1.0)) == [False, True]
    limiter.end(one, now=2.0)
    limiter.end(one, now=2.0)
    limiter.end("unknown", rows=1.0, now=2.0)
    assert passed(limiter, [ALICE, ALICE], at(2.0)) == [True, False]
    # `two` should have ended 10 s after it began, and is waited for a while longer.
    assert passed(limiter, [ALICE, ALICE], at(14.0)) == [False, False]
    assert passed(limiter, [ALICE, ALICE], at(16.0)) == [True, False]


def test_a_request_without_a_known_end_is_given_up_after_an_hour() -> None:
    rules = Rules(endpoints={"m": EndpointLimitsSpec(total=LimitSpec(max_concurrent=1))})
    limiter = Limiter(name="t", rules=rules)
    limiter.ask(ALICE, at(0.0))

    assert passed(limiter, [ALICE], at(3600.0)) == [False]
    assert passed(limiter, [ALICE], at(3700.0)) == [True]


def test_what_nobody_told_the_end_of_is_forgotten() -> None:
    limiter = a_limiter(per_caller=LimitSpec(max_concurrent=1))
    limiter.ask(ALICE, at(0.0))

    limiter.expire(14.0)
    assert limiter._leases
    limiter.expire(16.0)
    assert not limiter._leases
    assert passed(limiter, [ALICE], at(16.0)) == [True]


def test_rows_are_taken_by_their_average_and_corrected_when_they_are_known() -> None:
    limiter = a_limiter(per_caller=LimitSpec(rows_per_s=10.0))
    lease = limiter.ask(ALICE, at(0.0)).lease

    limiter.end(lease, rows=25.0, now=0.0)

    decision = limiter.ask(ALICE, at(0.0))
    assert decision.tightest is not None
    assert (decision.refused_by, decision.tightest.kind) == (Scope.CALLER, LimitKind.ROWS)
    wait_s = decision.tightest.wait_s
    assert 1.5 < wait_s < 2.2  # 15 rows are owed, and the average of one request has to be there
    assert passed(limiter, [ALICE], at(wait_s - 0.01)) == [False]
    assert passed(limiter, [ALICE], at(wait_s + 0.01)) == [True]


@pytest.mark.parametrize(
    "limits",
    [
        LimitSpec(tokens_per_minute=6000.0),
        LimitSpec(output_tokens_per_minute=6000.0),
        LimitSpec(tokens_per_minute=6000.0, input_tokens_per_minute=60_000.0, max_concurrent=100),
    ],
)
def test_callers_beyond_their_budget_of_tokens_get_their_budget(limits: LimitSpec) -> None:
    draw = random.Random(7)  # noqa: S311  # the same each time
    limiter = a_limiter(per_caller=limits)
    got: Counter[str] = Counter()
    running: list[tuple[float, str, str, int]] = []
    arrivals = [(draw.expovariate(1.0), f"caller-{number}") for number in range(20)]
    heapq.heapify(arrivals)
    while arrivals[0][0] < 600.0:
        now, caller = heapq.heappop(arrivals)
        while running and running[0][0] <= now:
            ended, who, lease, tokens = heapq.heappop(running)
            limiter.end(lease, tokens=TokenUse(output=tokens), now=ended)
            got[who] += tokens
        decision = limiter.ask(LimitRequest(endpoint="m", caller=caller), at(now))
        if decision.refused_by is None:
            ends = now + draw.uniform(0.5, 15.0)
            heapq.heappush(running, (ends, caller, decision.lease, draw.randrange(50, 350)))
        heapq.heappush(arrivals, (now + draw.expovariate(1.0), caller))

    admitted = Counter[str]()
    for _, who, _, tokens in running:
        admitted[who] += tokens
    assert len(got) == 20
    for caller, tokens in got.items():
        assert tokens <= 60_000 * 1.02
        assert tokens + admitted[caller] >= 60_000 * 0.98


weights = st.builds(TokenWeightsSpec, **dict.fromkeys(KINDS, st.sampled_from(PARTS)))
usages = st.builds(TokenUse, **dict.fromkeys(KINDS, st.integers(0, 10_000)))


@given(weights, st.lists(usages, min_size=1, max_size=20))
def test_weighted_tokens_are_the_sum_over_all_tokens(
    weights: TokenWeightsSpec, answers: list[TokenUse]
) -> None:
    """Each token is listed by its kind; the limiter's daily count is the sum of their weights."""
    limiter = a_limiter(per_caller=LimitSpec(tokens_per_day=10**15, token_weights=weights))
    in_parts = {kind: Fraction(getattr(weights, kind)) for kind in KINDS}
    total = Fraction(0)
    for tokens in answers:
        lease = limiter.ask(ALICE, at(0.0)).lease
        limiter.end(lease, tokens=tokens, now=0.0)
        of_input = [("cached" if i < tokens.cached else "input") for i in range(tokens.input)]
        of_output = [
            ("reasoning" if i < tokens.reasoning else "output") for i in range(tokens.output)
        ]
        total += sum(
            in_parts[kind] * count for kind, count in Counter(of_input + of_output).items()
        )
        costs = token_costs(tokens, weights)
        both = costs[LimitKind.INPUT_TOKENS] + costs[LimitKind.OUTPUT_TOKENS]
        assert costs[LimitKind.TOKENS] == both

    counted = {use.subject: use.used for use in limiter.unsaved()}
    assert counted["tokens/caller:m:alice"] == math.floor(total)


def test_each_limit_has_its_own_weights_and_unweighted_tokens_cost_one() -> None:
    tokens = TokenUse(input=100, cached=60, output=10, reasoning=4)
    weights = TokenWeightsSpec(input=1.0, cached=0.1, output=5.0, reasoning=0.0)
    total = EndpointLimitsSpec(
        total=LimitSpec(tokens_per_day=1000, token_weights=weights),
        per_caller=LimitSpec(tokens_per_day=1000),
    )
    limiter = Limiter(name="test", rules=Rules(endpoints={"m": total}))
    limiter.end(limiter.ask(ALICE, at(0.0)).lease, tokens=tokens, now=0.0)

    counted = {use.subject: use.used for use in limiter.unsaved()}
    assert counted == {"tokens/endpoint:m:": 76, "tokens/caller:m:alice": 110}


def test_tokens_of_a_day_end_at_their_number_and_are_stored() -> None:
    limiter = a_limiter(per_caller=LimitSpec(tokens_per_day=100, requests_per_day=10))
    for expected in (True, True, False):
        decision = limiter.ask(ALICE, at(0.0))
        assert (decision.refused_by is None) is expected
        limiter.end(decision.lease, tokens=TokenUse(output=60), now=0.0)

    assert limiter.ask(ALICE, at(0.0)).refused_by is Scope.CALLER
    assert limiter.refusals == {("m", Scope.CALLER, LimitKind.TOKENS_DAY): 2}
    unsaved = limiter.unsaved()
    assert unsaved == [used("caller:m:alice", 2), used("tokens/caller:m:alice", 120)]
    other = a_limiter(per_caller=LimitSpec(tokens_per_day=100, requests_per_day=10))
    other.restore(unsaved)
    assert other.ask(ALICE, at(0.0)).refused_by is Scope.CALLER
    assert other.refusals == {("m", Scope.CALLER, LimitKind.TOKENS_DAY): 1}
    assert other.ask(ALICE, at(DAY_S)).refused_by is None


def test_rows_that_are_not_known_stay_taken_and_a_refused_request_has_none() -> None:
    limiter = a_limiter(per_caller=LimitSpec(rows_per_s=1.0))
    lease = limiter.ask(ALICE, at(0.0)).lease
    limiter.end(lease, now=0.0)

    assert passed(limiter, [ALICE], at(0.0)) == [False]
    assert passed(limiter, [ALICE], at(1.0)) == [True]


def test_the_caller_is_told_of_the_limit_with_the_least_left() -> None:
    limiter = a_limiter(
        total=LimitSpec(requests_per_s=100.0),
        per_caller=LimitSpec(requests_per_day=10, max_concurrent=5),
    )

    standing = limiter.ask(ALICE, at(0.0)).tightest

    assert standing is not None
    assert (standing.kind, standing.limit, standing.remaining) == (LimitKind.CONCURRENT, 5, 4)


def test_a_changed_limit_holds_at_once_and_what_was_counted_stays() -> None:
    limiter = a_limiter(per_caller=LimitSpec(requests_per_day=5))
    assert passed(limiter, [ALICE] * 3, at(0.0)) == [True] * 3

    tighter = EndpointLimitsSpec(per_caller=LimitSpec(requests_per_day=3))
    limiter.rules = Rules(endpoints={"m": tighter})

    assert passed(limiter, [ALICE, BOB], at(0.0)) == [False, True]


def test_used_quotas_are_given_once_and_come_back() -> None:
    limiter = a_limiter(per_caller=LimitSpec(requests_per_day=3))
    passed(limiter, [ALICE, ALICE, BOB], at(0.0))

    unsaved = limiter.unsaved()
    assert unsaved == [used("caller:m:alice", 2), used("caller:m:bob", 1)]
    assert limiter.unsaved() == []

    other = a_limiter(per_caller=LimitSpec(requests_per_day=3))
    other.restore([*unsaved, used("nothing of ours", 9), used("tier", 9)])
    assert passed(other, [ALICE, ALICE], at(0.0)) == [True, False]
    assert other.unsaved() == [used("caller:m:alice", 1)]


def test_what_could_not_be_saved_is_given_again_and_what_others_counted_is_learned() -> None:
    limiter = a_limiter(per_caller=LimitSpec(requests_per_day=5))
    passed(limiter, [ALICE], at(0.0))

    limiter.put_back(limiter.unsaved())
    passed(limiter, [ALICE], at(0.0))
    assert limiter.unsaved() == [used("caller:m:alice", 2)]
    passed(limiter, [ALICE], at(0.0))  # not saved yet when the answer comes
    limiter.restore([used("caller:m:alice", 3)])

    assert passed(limiter, [ALICE, ALICE], at(0.0)) == [True, False]


def test_yesterdays_use_is_not_todays() -> None:
    limiter = a_limiter(per_caller=LimitSpec(requests_per_day=1))
    limiter.ask(ALICE, at(0.0, DAY_S))

    limiter.restore([used("caller:m:alice", 50)])

    assert passed(limiter, [ALICE], at(0.0, DAY_S)) == [False]
    assert passed(limiter, [ALICE], at(0.0, 2 * DAY_S)) == [True]


def test_strangers_never_crowd_out_callers_with_a_name() -> None:
    limiter = a_limiter(
        total=LimitSpec(requests_per_day=10**9),
        per_caller=LimitSpec(requests_per_day=1),
        most_accounts=50,
    )
    limiter.ask(ALICE, at(0.0))
    for i in range(500):
        limiter.ask(LimitRequest(endpoint="m", caller=f"address:10.0.{i}.1/32"), at(0.0))

    assert passed(limiter, [ALICE], at(0.0)) == [False]
    assert len(limiter._anonymous) == 50
    lease = limiter.ask(BOB, at(0.0)).lease
    assert lease == ""


def test_the_end_of_somebody_who_was_forgotten_is_no_mistake() -> None:
    limiter = a_limiter(per_caller=LimitSpec(max_concurrent=1), most_accounts=1)
    lease = limiter.ask(ALICE, at(0.0)).lease
    limiter.ask(BOB, at(0.0))

    limiter.end(lease, rows=1.0, now=1.0)

    assert passed(limiter, [BOB], at(1.0)) == [False]


sets = st.builds(
    LimitSpec,
    requests_per_s=st.none() | st.floats(0.1, 20.0),
    burst=st.none() | st.integers(1, 5),
    rows_per_s=st.none() | st.floats(0.5, 50.0),
    max_concurrent=st.none() | st.integers(1, 4),
    requests_per_day=st.none() | st.integers(1, 12),
)
callers = st.sampled_from(["a", "b", "address:10.0.0.1/32"])
tiers = st.sampled_from(["", "gold"])
events = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), callers, tiers, st.floats(0.0, 3.0)),
        st.tuples(st.just("end"), st.integers(0, 5), st.integers(0, 30), st.floats(0.0, 1.0)),
    ),
    max_size=60,
)


@given(sets, sets, sets, events)
def test_limits_hold_whatever_comes_and_a_refusal_uses_nothing(
    total: LimitSpec, each: LimitSpec, gold: LimitSpec, wanted: list[Any]
) -> None:
    limiter = a_limiter(total=total, per_caller=each, tiers={"gold": gold})
    limits = {Scope.ENDPOINT: total, Scope.CALLER: each, Scope.TIER: gold}
    running: Counter[LimitSubject] = Counter()
    used: Counter[LimitSubject] = Counter()
    open_: list[tuple[str, list[LimitSubject]]] = []
    now = 0.0
    for event in wanted:
        now += event[3]
        if event[0] == "end":
            if open_:
                lease, subjects = open_.pop(event[1] % len(open_))
                limiter.end(lease, rows=float(event[2]), now=now)
                running.subtract(subjects)
            continue
        ask = LimitRequest(endpoint="m", caller=event[1], tier=event[2])
        before = _state(limiter, now)
        decision = limiter.ask(ask, at(now))
        if decision.refused_by is not None:
            assert decision.tightest is not None
            assert decision.tightest.wait_s > 0
            assert _state(limiter, now) == pytest.approx(before)
            continue
        subjects = [subject for subject, _ in limiter.rules.of(ask)]
        used.update(subjects)
        running.update(subjects)
        if decision.lease:
            open_.append((decision.lease, subjects))
        else:
            running.subtract(subjects)

    for subject, count in used.items():
        settings = limits[subject.scope]
        if settings.requests_per_day is not None:
            assert count <= settings.requests_per_day
        if settings.requests_per_s is not None:
            assert count <= settings.most_at_once + settings.requests_per_s * now + 1e-6
        if settings.max_concurrent is not None and now < 15:  # before anything is given up
            assert running[subject] <= settings.max_concurrent


def _state(limiter: Limiter, now: float) -> dict[str, float]:
    """What everybody has used and may still use, and how many requests are under way."""
    found: dict[str, float] = {"leases": len(limiter._leases)}
    for accounts in (limiter._endpoints, limiter._named, limiter._anonymous):
        for subject, account in accounts.items():
            for kind, bucket in account.buckets.items():
                bucket.refill(now)
                if bucket.tokens != bucket.size:
                    found[f"{subject} {kind}"] = bucket.tokens
            if account.used:
                found[f"{subject} used"] = account.used.total()
            held = sum(until > now for until in account.leases.values())
            if held:
                found[f"{subject} held"] = held
    return found


@given(sets, st.integers(1, 30), st.lists(st.floats(0.0, 100.0), max_size=5))
def test_who_comes_back_when_told_passes(
    settings: LimitSpec, count: int, rows: list[float]
) -> None:
    limiter = a_limiter(per_caller=settings)
    now = 0.0
    leases: list[str] = []
    refused = None
    for _ in range(count):
        decision = limiter.ask(ALICE, at(now, 100.0 + now))
        if decision.refused_by is not None:
            refused = decision
            break
        leases.append(decision.lease)
        for lease, told in zip(leases, rows, strict=False):
            limiter.end(lease, rows=told, now=now)
    if refused is None or refused.tightest is None:
        return
    if refused.tightest.kind is LimitKind.CONCURRENT:
        return  # that depends on others

    later = now + refused.tightest.wait_s + 1e-6
    for lease in leases:
        limiter.end(lease, now=later)
    again = limiter.ask(ALICE, at(later, 100.0 + later))

    assert again.tightest is not None
    assert again.refused_by is None or again.tightest.kind is LimitKind.CONCURRENT


def test_the_service_counts_only_what_a_gateway_cannot() -> None:
    local = EndpointRoute(
        arms=(), name="a", limits=EndpointLimitsSpec(total=LimitSpec(requests_per_s=1.0))
    )
    daily = EndpointRoute(
        arms=(),
        name="b",
        limits=EndpointLimitsSpec(per_caller=LimitSpec(requests_per_day=1)),
        timeout_s=3.0,
    )
    free = EndpointRoute(arms=(), name="c", limits=EndpointLimitsSpec())
    gold = TierSpec(name="gold", limits=LimitSpec(requests_per_s=1.0))
    heavy = TierSpec(name="heavy", limits=LimitSpec(rows_per_s=1.0))
    every = [local, daily, free]

    assert make_rules(AccessSettings(), [local, free]).is_empty
    assert make_rules(AccessSettings(tiers=(gold,)), [local]).is_empty
    rules = make_rules(AccessSettings(tiers=(gold, heavy)), every)
    assert (set(rules.endpoints), set(rules.tiers)) == ({"b"}, {"gold", "heavy"})
    assert rules.longest_s == {"b": 3.0}
    together = make_rules(AccessSettings(tiers=(gold,), shared_limits=True), every)
    assert (set(together.endpoints), set(together.tiers)) == ({"a", "b"}, {"gold"})


@given(st.sampled_from(Scope), st.from_regex(r"[a-z0-9._-]{1,9}", fullmatch=True), st.text())
def test_a_subject_is_read_as_it_was_written(scope: Scope, name: str, caller: str) -> None:
    subject = LimitSubject(scope, name, caller)

    assert LimitSubject.parse(subject.text()) == subject


def test_a_moment_knows_its_day() -> None:
    moment = Moment(0.0, 3 * DAY_S + 100.0)

    assert moment.day == "1970-01-04"
    assert math.isclose(moment.midnight_s, DAY_S - 100.0)
