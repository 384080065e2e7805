"""Checks of an audit and their findings."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from headrace.advise.facts import Facts, Need, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One place where a check's fault is.

    `where`: a place in the spec (`endpoints[0].access`), a path, or a name. `seen`: the evidence,
    with the value. `fix`: to paste; empty takes the check's. `severity`: None takes the check's.
    """

    where: str
    seen: str
    fix: str = ""
    severity: Severity | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that is looked at; `id` never changes its meaning. `find` is pure."""

    id: str
    title: str
    severity: Severity
    why: str
    fix: str
    needs: tuple[Need, ...]
    find: Callable[[Facts], Iterable[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault with its evidence."""

    id: str
    title: str
    severity: Severity
    where: str
    evidence: str
    why: str
    fix: str
    file: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotChecked:
    """A check that could not be made."""

    id: str
    title: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit found: findings from the worst, each in a fixed order."""

    findings: tuple[Finding, ...]
    not_checked: tuple[NotChecked, ...]
    passed: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity, the worst first."""
        found = [finding.severity for finding in self.findings]
        return {severity.value: found.count(severity) for severity in reversed(Severity)}

    def reaches(self, severity: Severity) -> bool:
        """Whether a finding is at or above `severity`."""
        return any(finding.severity.rank >= severity.rank for finding in self.findings)


def run_checks(checks: Iterable[Check], facts: Facts) -> Audit:
    """Look at `facts` with every check."""
    findings: list[Finding] = []
    not_checked: list[NotChecked] = []
    passed: list[str] = []
    for check in sorted(checks, key=lambda check: check.id):
        reasons = dict.fromkeys(facts.missing[n] for n in check.needs if n in facts.missing)
        if reasons:
            reason = "; ".join(reasons)
            not_checked.append(NotChecked(id=check.id, title=check.title, reason=reason))
            continue
        found = list(_findings(check, facts))
        findings += found
        if not found:
            passed.append(check.id)
    # A stable sort: what is equally bad stays in the order of checks, and of the spec.
    findings.sort(key=lambda finding: -finding.severity.rank)
    return Audit(findings=tuple(findings), not_checked=tuple(not_checked), passed=tuple(passed))


def _findings(check: Check, facts: Facts) -> Iterator[Finding]:
    for hit in check.find(facts):
        line = hit.line or facts.line_of(hit.where)
        in_file = facts.spec_file is not None and line is not None
        yield Finding(
            id=check.id,
            title=check.title,
            severity=hit.severity or check.severity,
            where=hit.where,
            evidence=hit.seen,
            why=check.why,
            fix=hit.fix or check.fix,
            file=facts.spec_file.path if in_file and facts.spec_file is not None else "",
            line=line if in_file else None,
        )
