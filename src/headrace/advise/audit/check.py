"""Checks of an audit: their findings, and the values of a spec in the order of the file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from headrace.advise.audit.facts import AuditFacts, FileFact, FindingSeverity, Listener, Need
from headrace.core.names import is_loopback
from headrace.core.spec.parse import EndpointSpec, SystemSpec, is_model_path
from headrace.core.spec.upstream import UpstreamSpec


@dataclass(frozen=True, slots=True)
class Hit:
    """One location of a check's problem."""

    where: str
    """A location in the spec (`endpoints[0].access`), a path, or a name."""
    evidence: str
    """The evidence, with the value."""
    fix: str = ""
    """Text to paste; empty uses the check's fix."""
    severity: FindingSeverity | None = None
    """Severity of this finding; None uses the check's severity."""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheck:
    """One check of the published list. `find` is a pure function."""

    id: str
    """Stable: never reused with another meaning."""
    title: str

    severity: FindingSeverity

    why: str
    """The risk."""

    fix: str
    """The remedy: text to paste, or a sentence."""

    needs: tuple[Need, ...]
    """Facts without which the check cannot run."""
    find: Callable[[AuditFacts], Iterable[Hit]]


def check(  # noqa: PLR0917  # the columns of the published table
    id: str,  # noqa: A002  # the name in the report
    severity: FindingSeverity,
    title: str,
    reason: str,
    fix: str,
    needs: tuple[Need, ...] = (Need.SPEC,),
) -> Callable[[Callable[[AuditFacts], Iterable[Hit]]], AuditCheck]:
    """Return a decorator that makes an `AuditCheck` of the function that detects the problem."""

    def make(find: Callable[[AuditFacts], Iterable[Hit]]) -> AuditCheck:
        return AuditCheck(
            id=id, title=title, severity=severity, why=reason, fix=fix, needs=needs, find=find
        )

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """One problem with its evidence."""

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
    """A check that could not run."""

    id: str
    title: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The result of an audit: findings by severity, worst first, in a stable order."""

    findings: tuple[AuditFinding, ...]
    not_checked: tuple[NotChecked, ...]
    passed: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of findings by severity, worst first."""
        severities = [finding.severity for finding in self.findings]
        return {
            severity.value: severities.count(severity) for severity in reversed(FindingSeverity)
        }

    def reaches(self, severity: FindingSeverity) -> bool:
        """Whether a finding is at or above `severity`."""
        return any(finding.severity.rank >= severity.rank for finding in self.findings)


def run_checks(checks: Iterable[AuditCheck], facts: AuditFacts) -> Audit:
    """Run every check on `facts`."""
    findings: list[AuditFinding] = []
    not_checked: list[NotChecked] = []
    passed: list[str] = []
    for check in sorted(checks, key=lambda check: check.id):
        reasons = dict.fromkeys(facts.missing[n] for n in check.needs if n in facts.missing)
        if reasons:
            reason = "; ".join(reasons)
            not_checked.append(NotChecked(id=check.id, title=check.title, reason=reason))
            continue
        hits = list(_findings(check, facts))
        findings += hits
        if not hits:
            passed.append(check.id)
    # Stable sort: findings of equal severity stay in the order of checks and of the spec.
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
            evidence=hit.evidence,
            why=check.why,
            fix=hit.fix or check.fix,
            file=facts.spec_file.path if in_file and facts.spec_file is not None else "",
            line=line if in_file else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file named in the spec."""

    location: str
    path: str
    kind: str
    """Certificate, key, ca, jwks, trusted or model."""


def endpoints(spec: SystemSpec) -> Iterator[tuple[str, EndpointSpec]]:
    """Yield each endpoint with its location."""
    for i, endpoint in enumerate(spec.endpoints):
        yield f"endpoints[{i}]", endpoint


def upstreams(spec: SystemSpec) -> Iterator[tuple[str, UpstreamSpec]]:
    """Yield each external server with its location."""
    for location, endpoint in endpoints(spec):
        if endpoint.upstream is not None:
            yield f"{location}.upstream", endpoint.upstream
        for j, version in enumerate(endpoint.versions or ()):
            if version.upstream is not None:
                yield f"{location}.versions[{j}].upstream", version.upstream


def models(spec: SystemSpec) -> Iterator[tuple[str, EndpointSpec, str]]:
    """Yield each served model: its location, endpoint and reference in the spec."""
    for location, endpoint in endpoints(spec):
        if endpoint.model is not None:
            yield f"{location}.model", endpoint, endpoint.model
        for j, version in enumerate(endpoint.versions or ()):
            if version.model is not None:
                yield f"{location}.versions[{j}].model", endpoint, version.model


def named_files(spec: SystemSpec) -> Iterator[NamedFile]:
    """Yield every file named in the spec."""
    tls = spec.gateway.tls
    if tls is not None:
        yield NamedFile(
            location="gateway.tls.certificate_file", path=tls.certificate_file, kind="certificate"
        )
        yield NamedFile(location="gateway.tls.key_file", path=tls.key_file, kind="key")
        if tls.client_ca_file:
            yield NamedFile(
                location="gateway.tls.client_ca_file", path=tls.client_ca_file, kind="ca"
            )
    for i, provider in enumerate(spec.auth.jwt):
        if provider.jwks_file:
            yield NamedFile(
                location=f"auth.jwt[{i}].jwks_file", path=provider.jwks_file, kind="jwks"
            )
    for i, path in enumerate(spec.security.trusted_keys):
        yield NamedFile(location=f"security.trusted_keys[{i}]", path=path, kind="trusted")
    for location, upstream in upstreams(spec):
        yield from _upstream_files(location, upstream)
    for location, _, model in models(spec):
        if is_model_path(model):
            yield NamedFile(location=location, path=model, kind="model")


def _upstream_files(location: str, upstream: UpstreamSpec) -> Iterator[NamedFile]:
    if upstream.tls is None:
        return
    for name, kind in (("ca_file", "ca"), ("certificate_file", "certificate"), ("key_file", "key")):
        path = getattr(upstream.tls, name)
        if path:
            yield NamedFile(location=f"{location}.tls.{name}", path=path, kind=kind)


def files_of(facts: AuditFacts, *kinds: str) -> Iterator[tuple[NamedFile, FileFact]]:
    """Yield the collected files of these kinds, with their facts.

    Files named in the spec, and certificates that were set at startup.
    """
    of_spec = tuple(named_files(facts.spec))
    paths = {named.path for named in of_spec}
    others = tuple(
        NamedFile(
            location=f"certificate {certificate.name}", path=certificate.file, kind="certificate"
        )
        for certificate in facts.in_force
        if certificate.file not in paths
    )
    for named in (*of_spec, *others):
        if named.kind in kinds and named.path in facts.files:
            yield named, facts.files[named.path]


def host_of(url: str) -> str:
    """Return the host of a URL; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def exposed(facts: AuditFacts, role: str) -> tuple[Listener, ...]:
    """Return the addresses of this role that other machines can reach."""
    return tuple(
        listener
        for listener in facts.listeners
        if listener.role == role and not is_loopback(listener.host)
    )


def shown(listeners: tuple[Listener, ...]) -> str:
    """Return addresses as `host:port`."""
    return ", ".join(
        f"[{listener.host}]:{listener.port}"
        if ":" in listener.host
        else f"{listener.host}:{listener.port}"
        for listener in listeners
    )


def mode_text(mode: int) -> str:
    """Return a mode in the notation of `chmod`."""
    return f"0{mode & 0o7777:o}"


def mode_hit(file: FileFact, *, location: str, fix: str) -> Hit:
    """Return a finding that other users can access a file; low severity if unreachable."""
    evidence = f"{file.path} has mode {mode_text(file.mode)}"
    if file.is_reachable:
        return Hit(where=location, evidence=evidence, fix=fix)
    evidence += "; only the modes of its parent directories protect it"
    return Hit(where=location, evidence=evidence, fix=fix, severity=FindingSeverity.LOW)
