"""Checks of an audit: their findings, and the values of a spec in the order of the file."""

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from headrace.advise.audit.facts import AuditFacts, FileFact, FindingSeverity, Listener, Need
from headrace.core.spec.parse import EndpointSpec, SystemSpec, is_model_path
from headrace.core.spec.upstream import UpstreamSpec


@dataclass(frozen=True, slots=True)
class Hit:
    """One place where a check's fault is."""

    where: str
    """A place in the spec (`endpoints[0].access`), a path, or a name."""
    seen: str
    """The evidence, with the value."""
    fix: str = ""
    """To paste; empty takes the check's."""
    severity: FindingSeverity | None = None
    """None takes the check's."""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheck:
    """One thing that is looked at; `id` never changes its meaning. `find` is pure."""

    id: str
    title: str
    severity: FindingSeverity
    why: str
    fix: str
    needs: tuple[Need, ...]
    find: Callable[[AuditFacts], Iterable[Hit]]


def check(  # noqa: PLR0917  # the columns of the published table
    id: str,  # noqa: A002  # as the report calls it
    severity: FindingSeverity,
    title: str,
    why: str,
    fix: str,
    needs: tuple[Need, ...] = (Need.SPEC,),
) -> Callable[[Callable[[AuditFacts], Iterable[Hit]]], AuditCheck]:
    """Make a check of the function that finds its fault."""

    def make(find: Callable[[AuditFacts], Iterable[Hit]]) -> AuditCheck:
        return AuditCheck(
            id=id, title=title, severity=severity, why=why, fix=fix, needs=needs, find=find
        )

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """One fault with its evidence."""

    id: str
    title: str
    severity: FindingSeverity
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

    findings: tuple[AuditFinding, ...]
    not_checked: tuple[NotChecked, ...]
    passed: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity, the worst first."""
        found = [finding.severity for finding in self.findings]
        return {severity.value: found.count(severity) for severity in reversed(FindingSeverity)}

    def reaches(self, severity: FindingSeverity) -> bool:
        """Whether a finding is at or above `severity`."""
        return any(finding.severity.rank >= severity.rank for finding in self.findings)


def run_checks(checks: Iterable[AuditCheck], facts: AuditFacts) -> Audit:
    """Look at `facts` with every check."""
    findings: list[AuditFinding] = []
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


def _findings(check: AuditCheck, facts: AuditFacts) -> Iterator[AuditFinding]:
    for hit in check.find(facts):
        line = hit.line or facts.line_of(hit.where)
        in_file = facts.spec_file is not None and line is not None
        yield AuditFinding(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file that the spec names. `kind`: certificate, key, ca, jwks, trusted or model."""

    place: str
    path: str
    kind: str


def endpoints(spec: SystemSpec) -> Iterator[tuple[str, EndpointSpec]]:
    """Each endpoint with its place."""
    for i, endpoint in enumerate(spec.endpoints):
        yield f"endpoints[{i}]", endpoint


def upstreams(spec: SystemSpec) -> Iterator[tuple[str, UpstreamSpec]]:
    """Each server that someone else runs, with its place."""
    for place, endpoint in endpoints(spec):
        if endpoint.upstream is not None:
            yield f"{place}.upstream", endpoint.upstream
        for j, version in enumerate(endpoint.versions or ()):
            if version.upstream is not None:
                yield f"{place}.versions[{j}].upstream", version.upstream


def models(spec: SystemSpec) -> Iterator[tuple[str, EndpointSpec, str]]:
    """Each model that is served: its place, its endpoint, and what the spec says."""
    for place, endpoint in endpoints(spec):
        if endpoint.model is not None:
            yield f"{place}.model", endpoint, endpoint.model
        for j, version in enumerate(endpoint.versions or ()):
            if version.model is not None:
                yield f"{place}.versions[{j}].model", endpoint, version.model


def named_files(spec: SystemSpec) -> Iterator[NamedFile]:
    """Every file that the spec names."""
    tls = spec.gateway.tls
    if tls is not None:
        yield NamedFile(
            place="gateway.tls.certificate_file", path=tls.certificate_file, kind="certificate"
        )
        yield NamedFile(place="gateway.tls.key_file", path=tls.key_file, kind="key")
        if tls.client_ca_file:
            yield NamedFile(place="gateway.tls.client_ca_file", path=tls.client_ca_file, kind="ca")
    for i, provider in enumerate(spec.auth.jwt):
        if provider.jwks_file:
            yield NamedFile(place=f"auth.jwt[{i}].jwks_file", path=provider.jwks_file, kind="jwks")
    for i, path in enumerate(spec.security.trusted_keys):
        yield NamedFile(place=f"security.trusted_keys[{i}]", path=path, kind="trusted")
    for place, upstream in upstreams(spec):
        yield from _upstream_files(place, upstream)
    for place, _, model in models(spec):
        if is_model_path(model):
            yield NamedFile(place=place, path=model, kind="model")


def _upstream_files(place: str, upstream: UpstreamSpec) -> Iterator[NamedFile]:
    if upstream.tls is None:
        return
    for name, kind in (("ca_file", "ca"), ("certificate_file", "certificate"), ("key_file", "key")):
        path = getattr(upstream.tls, name)
        if path:
            yield NamedFile(place=f"{place}.tls.{name}", path=path, kind=kind)


def files_of(facts: AuditFacts, *kinds: str) -> Iterator[tuple[NamedFile, FileFact]]:
    """The files of these kinds that were looked at, with what they are.

    Those that the spec names, and certificates that the system was started with besides.
    """
    of_spec = tuple(named_files(facts.spec))
    paths = {named.path for named in of_spec}
    others = tuple(
        NamedFile(place=f"certificate {one.name}", path=one.file, kind="certificate")
        for one in facts.in_force
        if one.file not in paths
    )
    for named in (*of_spec, *others):
        if named.kind in kinds and named.path in facts.files:
            yield named, facts.files[named.path]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name that is not `localhost` may be anything."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Whether the server that a URL names is this machine."""
    return is_loopback(host_of(url))


def host_of(url: str) -> str:
    """The host in a URL; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def exposed(facts: AuditFacts, role: str) -> tuple[Listener, ...]:
    """The addresses of this role that other machines reach."""
    return tuple(one for one in facts.listeners if one.role == role and not is_loopback(one.host))


def shown(listeners: tuple[Listener, ...]) -> str:
    """Addresses as people write them."""
    return ", ".join(
        f"[{one.host}]:{one.port}" if ":" in one.host else f"{one.host}:{one.port}"
        for one in listeners
    )


def mode_text(mode: int) -> str:
    """A mode as `chmod` takes it."""
    return f"0{mode & 0o7777:o}"


def mode_hit(file: FileFact, *, where: str, fix: str) -> Hit:
    """That others have rights to a file; a small matter where they do not get to it today."""
    seen = f"{file.path} has mode {mode_text(file.mode)}"
    if file.is_reachable:
        return Hit(where=where, seen=seen, fix=fix)
    seen += "; only the directories above it keep others out"
    return Hit(where=where, seen=seen, fix=fix, severity=FindingSeverity.LOW)
