"""Rate limiter: limits of a request's endpoint and tier, and their use. Pure."""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from headrace.control.model.records import QuotaUse
from headrace.core.spec.access import (
    AccessSettings,
    EndpointLimitsSpec,
    LimitSpec,
    TokenWeightsSpec,
)
from headrace.gateway import EndpointRoute
from headrace.gateway.statistics import TokenUse

ANONYMOUS: Final = "address:"
"""Prefix of the name of a caller without credentials; its address follows."""
UNKNOWN: Final = f"{ANONYMOUS}unknown"
"""Name of a caller without credentials and without a known address."""


class Scope(StrEnum):
    """Scope of a limit."""

    ENDPOINT = "endpoint"
    """All callers of an endpoint together."""
    CALLER = "caller"
    """Each caller of an endpoint."""
    TIER = "tier"
    """Each caller of a tier, over all endpoints."""


class LimitSubject(NamedTuple):
    """Subject of a limit: an endpoint (`caller` is empty), or a caller of an endpoint or tier."""

    scope: Scope
    name: str
    caller: str = ""

    @property
    def is_anonymous(self) -> bool:
        """Whether the caller is known only by its address."""
        return self.caller.startswith(ANONYMOUS)

    def text(self) -> str:
        """Return the text form stored in the state."""
        return f"{self.scope}:{self.name}:{self.caller}"

    @classmethod
    def parse(cls, text: str) -> "LimitSubject | None":
        """Parse the result of `text`; None for other texts. No endpoint or tier has a colon."""
        scope, _, rest = text.partition(":")
        name, colon, caller = rest.partition(":")
        return cls(Scope(scope), name, caller) if scope in set(Scope) and colon else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRequest:
    """A request to decide about. `tier` is empty for none."""

    endpoint: str
    caller: str
    tier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All limits that the service counts."""

    endpoints: Mapping[str, EndpointLimitsSpec] = field(default_factory=dict)
    tiers: Mapping[str, LimitSpec] = field(default_factory=dict)
    longest_s: Mapping[str, float] = field(default_factory=dict)
    """Longest duration of a request in seconds, by endpoint; absent for no limit."""

    @property
    def is_empty(self) -> bool:
        """Whether no limit has to be counted."""
        return not self.endpoints and not self.tiers

    def of(self, ask: LimitRequest) -> list[tuple[LimitSubject, LimitSpec]]:
        """Return the limits that apply to a request, each with its subject."""
        applicable = []
        endpoint = self.endpoints.get(ask.endpoint)
        if endpoint is not None:
            applicable.append((LimitSubject(Scope.ENDPOINT, ask.endpoint), endpoint.total))
            caller = LimitSubject(Scope.CALLER, ask.endpoint, ask.caller)
            applicable.append((caller, endpoint.per_caller))
        tier = self.tiers.get(ask.tier)
        if tier is not None:
            applicable.append((LimitSubject(Scope.TIER, ask.tier, ask.caller), tier))
        return [(subject, limits) for subject, limits in applicable if not limits.is_unlimited]


def make_rules(access: AccessSettings, endpoints: Iterable[EndpointRoute]) -> Rules:
    """Return the limits that the service counts; each gateway counts the other limits itself."""
    shared = access.shared_limits
    routes = list(endpoints)
    counted = [e for e in routes if e.limits.is_counted_by_service(shared=shared)]
    tiers = access.tiers if access.are_tiers_counted_by_service else ()
    return Rules(
        endpoints={endpoint.name: endpoint.limits for endpoint in counted},
        tiers={tier.name: tier.limits for tier in tiers},
        longest_s={e.name: e.timeout_s for e in routes if e.timeout_s is not None},
    )


@dataclass(slots=True, kw_only=True)
class TokenBucket:
    """A token bucket: it starts full and gains `rate` tokens per second, up to `size`.

    A cost that is known only afterwards may be taken too. The balance is then negative, and nothing
    passes until it is positive again. An earlier `now` counts as the latest one.
    """

    rate: float
    size: float
    refilled_at: float
    tokens: float = 0.0
    each: float = 1.0
    """Average of a request: this much is taken before the real amount is known."""

    def __post_init__(self) -> None:
        self.tokens = self.size

    def refill(self, now: float) -> None:
        """Add the tokens gained until `now`."""
        if now > self.refilled_at:
            self.tokens = min(self.size, self.tokens + (now - self.refilled_at) * self.rate)
            self.refilled_at = now

    def change(self, *, rate: float, size: float) -> None:
        """Change rate and size; the tokens stay, up to the new size."""
        self.rate, self.size = rate, size
        self.tokens = min(self.tokens, size)

    def wait_s(self, amount: float) -> float:
        """Return the seconds until `amount` tokens (`size` at most) are available."""
        return max(min(amount, self.size) - self.tokens, 0.0) / self.rate

    def take(self, amount: float) -> None:
        """Take `amount` tokens, even below zero; a negative amount gives tokens back."""
        self.tokens = min(self.size, self.tokens - amount)


DAY_S: Final = 86_400.0
_WEIGHT: Final = 0.2
"""Weight of a new request in the moving average of rows and tokens."""
_TOKEN_BURST_S: Final = 10.0
"""Seconds of a token rate that may be used at once."""
_RETRY_AFTER_END_S: Final = 1.0
"""Retry delay in seconds at the concurrency limit: the end of running requests is unknown."""


class LimitKind(StrEnum):
    """Kind of limit, as the spec names it."""

    REQUESTS = "requests_per_s"
    ROWS = "rows_per_s"
    TOKENS = "tokens_per_minute"
    INPUT_TOKENS = "input_tokens_per_minute"
    OUTPUT_TOKENS = "output_tokens_per_minute"
    CONCURRENT = "max_concurrent"
    DAY = "requests_per_day"
    TOKENS_DAY = "tokens_per_day"


TOKEN_KINDS: Final = (LimitKind.TOKENS, LimitKind.INPUT_TOKENS, LimitKind.OUTPUT_TOKENS)
Amounts: TypeAlias = Mapping[LimitKind, float]
"""Cost of a request in limits of rows and tokens, which is known at its end."""


def token_costs(tokens: TokenUse, weights: TokenWeightsSpec) -> Amounts:
    """Return what an answer costs in limits of tokens.

    Cached tokens are a part of the input, reasoning tokens a part of the output: each token costs
    the weight of its own kind alone. Parts beyond the whole are not counted.
    """
    cached, reasoning = min(tokens.cached, tokens.input), min(tokens.reasoning, tokens.output)
    input_cost = weights.input * (tokens.input - cached) + weights.cached * cached
    output_cost = weights.output * (tokens.output - reasoning) + weights.reasoning * reasoning
    return {
        LimitKind.TOKENS: input_cost + output_cost,
        LimitKind.INPUT_TOKENS: input_cost,
        LimitKind.OUTPUT_TOKENS: output_cost,
    }


def _rates(limits: LimitSpec) -> Iterator[tuple[LimitKind, float, float]]:
    """Yield the limits of rates: kind, rate per second, and burst."""
    if limits.requests_per_s is not None:
        yield LimitKind.REQUESTS, limits.requests_per_s, float(limits.most_at_once)
    if limits.rows_per_s is not None:
        yield LimitKind.ROWS, limits.rows_per_s, max(limits.rows_per_s, 1.0)
    for kind in TOKEN_KINDS:
        if (per_minute := getattr(limits, kind)) is not None:
            yield kind, per_minute / 60, max(per_minute / 60 * _TOKEN_BURST_S, 1.0)


class Moment(NamedTuple):
    """Now, on both clocks: monotonic seconds, and seconds since 1970."""

    now: float
    wall: float

    @property
    def day(self) -> str:
        """UTC date as stored in the state, such as `2026-11-25`."""
        return datetime.fromtimestamp(self.wall, UTC).date().isoformat()

    @property
    def midnight_s(self) -> float:
        """Seconds until the next day begins, UTC."""
        return DAY_S - self.wall % DAY_S


class LimitStatus(NamedTuple):
    """Current state of one limit."""

    kind: LimitKind
    limit: float
    remaining: float
    wait_s: float
    """Seconds until a request may pass; 0 if it may pass now."""


@dataclass(slots=True)
class Account:
    """One subject's use of its rate, concurrency and daily limits."""

    buckets: dict[LimitKind, TokenBucket] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    """Expiry time of each running request, by lease id."""
    day: str = ""
    used: Counter[LimitKind] = field(default_factory=Counter)
    """Requests and tokens counted on `day`, by kind of daily limit."""
    part: float = 0.0
    """Part of a token, below 1, that is not in `used` yet."""

    def statuses(self, limits: LimitSpec, moment: Moment) -> Iterator[LimitStatus]:
        """Yield the state of each of `limits` at a moment, before another request."""
        for kind, rate, size in _rates(limits):
            bucket = self.buckets.get(kind)
            if bucket is None:
                bucket = TokenBucket(rate=rate, size=size, refilled_at=moment.now)
                self.buckets[kind] = bucket
            bucket.refill(moment.now)
            bucket.change(rate=rate, size=size)
            remaining = max(math.floor(bucket.tokens), 0)
            yield LimitStatus(kind, bucket.size, remaining, bucket.wait_s(bucket.each))
        if limits.max_concurrent is not None:
            most = limits.max_concurrent
            if len(self.leases) >= most:
                running = self.leases.items()
                self.leases = {id_: until for id_, until in running if until > moment.now}
            left = max(most - len(self.leases), 0)
            wait_s = 0.0 if left else _RETRY_AFTER_END_S
            yield LimitStatus(LimitKind.CONCURRENT, most, left, wait_s)
        for kind in (LimitKind.DAY, LimitKind.TOKENS_DAY):
            if (quota := getattr(limits, kind)) is not None:
                self.turn(moment.day)
                left = max(quota - self.used[kind], 0)
                yield LimitStatus(kind, quota, left, 0.0 if left else moment.midnight_s)

    def take(self, limits: LimitSpec, lease: str, until: float) -> Amounts:
        """Count a request that passes; return the estimated amounts, which `end` corrects."""
        if limits.max_concurrent is not None:
            self.leases[lease] = until
        if limits.requests_per_day is not None:
            self.used[LimitKind.DAY] += 1
        taken = {kind: self.buckets[kind].each for kind, _, _ in _rates(limits)}
        for kind, amount in taken.items():
            self.buckets[kind].take(amount)
        return taken

    def end(self, lease: str, *, amounts: Amounts, taken: Amounts, now: float) -> None:
        """Release an ended request and correct its amounts; those that are unknown stay taken."""
        self.leases.pop(lease, None)
        for kind in taken.keys() & amounts.keys() & self.buckets.keys():
            bucket, actual = self.buckets[kind], amounts[kind]
            bucket.refill(now)
            bucket.take(actual - taken[kind])
            bucket.each += _WEIGHT * (max(actual, 1.0) - bucket.each)

    def take_daily(self, tokens: float) -> int:
        """Count tokens on the day; return the whole ones, and keep the rest for the next answer."""
        whole = math.floor(self.part + tokens)
        self.part += tokens - whole
        self.used[LimitKind.TOKENS_DAY] += whole
        return whole

    def turn(self, day: str) -> None:
        """Begin another day; a clock that is set back restores no earlier day's quota."""
        if day > self.day:
            self.day, self.used = day, Counter()


MAX_ACCOUNTS: Final = 50_000
"""Most accounts of each kind: named callers, and callers known only by address."""
_GRACE_S: Final = 5.0
"""Seconds after a request's deadline at which its lease expires: its gateway is gone."""
_WITHOUT_LIMIT_S: Final = 3600.0
"""Lease duration in seconds of a request without a time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDecision:
    """Decision about one request."""

    refused_by: Scope | None = None
    """Scope of the limit that refuses; None if the request may pass."""
    tightest: LimitStatus | None = None
    """The limit that refuses, else the one with the least remaining."""
    tokens: LimitStatus | None = None
    """The same among the limits of tokens."""
    lease: str = ""
    """Id under which the gateway reports the request's end; empty if no report is needed."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """A running request: its subjects with their limits and the amounts taken, and its expiry."""

    taken: tuple[tuple[LimitSubject, LimitSpec, Amounts], ...]
    until: float


_OF_TOKENS: Final = frozenset({*TOKEN_KINDS, LimitKind.TOKENS_DAY})
_TOKENS_PREFIX: Final = "tokens/"
"""What precedes a subject's text in the state for daily tokens; no scope begins so."""


def _share_left(standing: LimitStatus) -> float:
    return standing.remaining / standing.limit


@dataclass(slots=True)
class Limiter:
    """Counts requests. `name` is part of every lease id, so ids of other limiters are unknown."""

    name: str
    rules: Rules = field(default_factory=Rules)
    refusals: Counter[tuple[str, Scope, LimitKind]] = field(default_factory=Counter)
    """Number of refusals by endpoint and limit."""
    most_accounts: int = MAX_ACCOUNTS
    _endpoints: OrderedDict[LimitSubject, Account] = field(default_factory=OrderedDict)
    _named: OrderedDict[LimitSubject, Account] = field(default_factory=OrderedDict)
    _anonymous: OrderedDict[LimitSubject, Account] = field(default_factory=OrderedDict)
    _leases: dict[str, _Lease] = field(default_factory=dict)
    _unsaved: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Daily counts by day and subject as in the state."""
    _last_lease: int = 0

    def ask(self, ask: LimitRequest, moment: Moment) -> LimitDecision:
        """Decide whether a request may pass; count it if it may."""
        applied = [(s, limits, self._account(s)) for s, limits in self.rules.of(ask)]
        statuses = [
            (subject, standing)
            for subject, limits, account in applied
            for standing in account.statuses(limits, moment)
        ]
        if not statuses:
            return LimitDecision()
        subject, worst = max(statuses, key=lambda standing: standing[1].wait_s)
        if worst.wait_s > 0:
            self.refusals[ask.endpoint, subject.scope, worst.kind] += 1
            of_tokens = worst if worst.kind in _OF_TOKENS else None
            return LimitDecision(refused_by=subject.scope, tightest=worst, tokens=of_tokens)
        self._last_lease += 1
        lease = f"{self.name}-{self._last_lease:x}"
        until = moment.now + self.rules.longest_s.get(ask.endpoint, _WITHOUT_LIMIT_S) + _GRACE_S
        taken = []
        has_end = False
        for who, limits, account in applied:
            amounts = account.take(limits, lease, until)
            taken.append((who, limits, amounts))
            has_end |= bool(limits.max_concurrent or limits.tokens_per_day)
            has_end |= not amounts.keys() <= {LimitKind.REQUESTS}
            if limits.requests_per_day is not None:
                self._unsaved[account.day, who.text()] += 1
        if has_end:
            self._leases[lease] = _Lease(tuple(taken), until)
        left = [s for _, limits, account in applied for s in account.statuses(limits, moment)]
        about_tokens = (standing for standing in left if standing.kind in _OF_TOKENS)
        return LimitDecision(
            tightest=min(left, key=_share_left),
            tokens=min(about_tokens, key=_share_left, default=None),
            lease=lease if has_end else "",
        )

    def end(
        self,
        lease: str,
        *,
        now: float,
        rows: float | None = None,
        tokens: TokenUse | None = None,
    ) -> None:
        """Record the end of a request; an unknown lease has expired already.

        Args:
            rows: Its rows; None leaves those that were taken for it.
            tokens: Its tokens; None as for `rows`.
        """
        pending = self._leases.pop(lease, None)
        of_rows: Amounts = {} if rows is None else {LimitKind.ROWS: rows}
        for subject, limits, taken in pending.taken if pending is not None else ():
            account = self._accounts(subject).get(subject)
            if account is None:
                continue
            costs = {} if tokens is None else token_costs(tokens, limits.token_weights)
            account.end(lease, amounts={**of_rows, **costs}, taken=taken, now=now)
            if limits.tokens_per_day and costs:
                whole = account.take_daily(costs[LimitKind.TOKENS])
                self._unsaved[account.day, f"{_TOKENS_PREFIX}{subject.text()}"] += whole

    def expire(self, now: float) -> None:
        """Expire the leases of requests whose end was never reported."""
        late = [lease for lease, pending in self._leases.items() if pending.until <= now]
        for lease in late:
            self.end(lease, now=now)

    def unsaved(self) -> list[QuotaUse]:
        """Return the daily counts since the last call, to be added to the stored ones."""
        uses, self._unsaved = self._unsaved, Counter()
        return [QuotaUse(day=day, subject=text, used=used) for (day, text), used in uses.items()]

    def put_back(self, quotas: Iterable[QuotaUse]) -> None:
        """Take back what `unsaved` returned, because it could not be stored."""
        for quota in quotas:
            self._unsaved[quota.day, quota.subject] += quota.used

    def restore(self, quotas: Iterable[QuotaUse]) -> None:
        """Take the stored counts of all control planes; unsaved local counts are added to them."""
        for quota in quotas:
            has_prefix = quota.subject.startswith(_TOKENS_PREFIX)
            kind = LimitKind.TOKENS_DAY if has_prefix else LimitKind.DAY
            subject = LimitSubject.parse(quota.subject.removeprefix(_TOKENS_PREFIX))
            if subject is None:
                continue
            account = self._account(subject)
            account.turn(quota.day)
            if account.day == quota.day:
                account.used[kind] = quota.used + self._unsaved[quota.day, quota.subject]

    def _accounts(self, subject: LimitSubject) -> OrderedDict[LimitSubject, Account]:
        """Return the table of a subject's kind: unnamed addresses never displace named callers."""
        if subject.scope is Scope.ENDPOINT:
            return self._endpoints
        return self._anonymous if subject.is_anonymous else self._named

    def _account(self, subject: LimitSubject) -> Account:
        accounts = self._accounts(subject)
        account = accounts.get(subject)
        if account is None:
            account = accounts[subject] = Account()
            if len(accounts) > self.most_accounts:
                accounts.popitem(last=False)
        else:
            accounts.move_to_end(subject)
        return account
