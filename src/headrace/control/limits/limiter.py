"""May a request pass? Decides for all of its limits at once; the caller brings the time.

A request that one limit refuses uses nothing of the others.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from headrace.control.limits.account import Account, Kind, Moment, Standing
from headrace.control.limits.rules import Ask, Rules, Scope, Subject

MOST_ACCOUNTS: Final = 50_000
"""Callers who are remembered of each sort, those with a name and those with an address only."""
_GRACE_S: Final = 5.0
"""A place is given up so long after its request should have ended: its gateway is gone."""
_WITHOUT_LIMIT_S: Final = 3600.0
"""How long a request may take where nothing says so."""


class Quota(NamedTuple):
    """Requests of a subject on one day (days since 1970, UTC)."""

    day: int
    subject: str
    used: int


class Refusal(NamedTuple):
    """Which limit refused a request."""

    scope: Scope
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer. `tightest`: the limit that refuses, else the one with the least left.

    `lease`: names the request until its end has to be told; empty if that does not matter.
    """

    refusal: Refusal | None = None
    tightest: Standing | None = None
    lease: str = ""


@dataclass(frozen=True, slots=True)
class _Lease:
    """A request under way: whose rows were taken, how many, and when it is given up."""

    taken: tuple[tuple[Subject, float], ...]
    until: float


@dataclass(slots=True)
class Limiter:
    """Counts what passes. `name` is part of every lease's id, so that no other limiter knows it."""

    name: str
    rules: Rules = field(default_factory=Rules)
    refusals: Counter[tuple[str, Refusal]] = field(default_factory=Counter)
    """By endpoint."""
    most_accounts: int = MOST_ACCOUNTS
    _endpoints: OrderedDict[Subject, Account] = field(default_factory=OrderedDict)
    _named: OrderedDict[Subject, Account] = field(default_factory=OrderedDict)
    _anonymous: OrderedDict[Subject, Account] = field(default_factory=OrderedDict)
    _leases: dict[str, _Lease] = field(default_factory=dict)
    _unsaved: Counter[tuple[int, Subject]] = field(default_factory=Counter)
    _last_lease: int = 0

    def ask(self, ask: Ask, at: Moment) -> Decision:
        """Whether a request may pass; if it may, it is counted."""
        applied = [(s, limits, self._account(s)) for s, limits in self.rules.of(ask)]
        standings = [
            (subject, standing)
            for subject, limits, account in applied
            for standing in account.standings(limits, at)
        ]
        if not standings:
            return Decision()
        subject, worst = max(standings, key=lambda found: found[1].wait_s)
        if worst.wait_s > 0:
            refusal = Refusal(subject.scope, worst.kind)
            self.refusals[ask.endpoint, refusal] += 1
            return Decision(refusal=refusal, tightest=worst)
        self._last_lease += 1
        lease = f"{self.name}-{self._last_lease:x}"
        until = at.now + self.rules.longest_s.get(ask.endpoint, _WITHOUT_LIMIT_S) + _GRACE_S
        taken = []
        has_end = False
        for who, limits, account in applied:
            taken.append((who, account.take(limits, lease, until)))
            has_end |= limits.max_concurrent is not None or limits.rows_per_s is not None
            if limits.requests_per_day is not None:
                self._unsaved[account.day, who] += 1
        if has_end:
            self._leases[lease] = _Lease(tuple(taken), until)
        left = [s for _, limits, account in applied for s in account.standings(limits, at)]
        return Decision(tightest=min(left, key=_left), lease=lease if has_end else "")

    def end(self, lease: str, *, rows: float | None, now: float) -> None:
        """A request that passed has ended; a lease that is not known was given up already.

        Args:
            rows: None if nobody knows: what was taken for it stays taken.
        """
        found = self._leases.pop(lease, None)
        for subject, taken in found.taken if found is not None else ():
            account = self._accounts(subject).get(subject)
            if account is not None:
                account.end(lease, rows=rows, taken=taken, now=now)

    def expire(self, now: float) -> None:
        """Give up requests whose end nobody told."""
        late = [lease for lease, found in self._leases.items() if found.until <= now]
        for lease in late:
            self.end(lease, rows=None, now=now)

    def unsaved(self) -> list[Quota]:
        """What was counted of days since the last call, to be added to what is stored."""
        found, self._unsaved = self._unsaved, Counter()
        return [Quota(day, subject.text(), used) for (day, subject), used in found.items()]

    def put_back(self, quotas: Iterable[Quota]) -> None:
        """What `unsaved` gave could not be stored: give it again."""
        for quota in quotas:
            subject = Subject.parse(quota.subject)
            if subject is not None:
                self._unsaved[quota.day, subject] += quota.used

    def restore(self, quotas: Iterable[Quota]) -> None:
        """What is stored, of all who count there: what is not stored yet comes on top."""
        for quota in quotas:
            subject = Subject.parse(quota.subject)
            if subject is None:
                continue
            account = self._account(subject)
            account.turn(quota.day)
            if account.day == quota.day:
                account.used = quota.used + self._unsaved[quota.day, subject]

    def _accounts(self, subject: Subject) -> OrderedDict[Subject, Account]:
        """Where a subject is remembered: strangers' addresses never crowd out names."""
        if subject.scope is Scope.ENDPOINT:
            return self._endpoints
        return self._anonymous if subject.is_anonymous else self._named

    def _account(self, subject: Subject) -> Account:
        accounts = self._accounts(subject)
        account = accounts.get(subject)
        if account is None:
            account = accounts[subject] = Account()
            if len(accounts) > self.most_accounts:
                accounts.popitem(last=False)
        else:
            accounts.move_to_end(subject)
        return account


def _left(standing: Standing) -> float:
    """The share that is left."""
    return standing.remaining / standing.limit
