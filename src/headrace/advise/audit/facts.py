"""Facts about a system for an audit, and severities of findings.

`AuditFacts.missing` lists facts that could not be read, with the reason. A check that needs them is
reported as "not checked", never as passed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from headrace.core.spec.parse import SystemSpec


class FindingSeverity(StrEnum):
    """Severity of a finding."""

    LOW = "low"
    """Worth knowing; a deliberate choice for many."""
    MEDIUM = "medium"
    """Fix it before other people depend on the system."""
    HIGH = "high"
    """One more mistake, or one attacker, is enough to cause harm."""
    CRITICAL = "critical"
    """Harm occurs now."""

    @property
    def rank(self) -> int:
        """Return the rank; higher is worse."""
        return tuple(FindingSeverity).index(self)


class Need(StrEnum):
    """A kind of facts that a check needs."""

    SPEC = "spec"
    """The spec of the system."""
    FILES = "files"
    """The files named in the spec: certificates, keys, models."""
    LISTENERS = "listeners"
    """The addresses of the management API and metrics."""
    HOST = "host"
    """The home directory, and the processes on this machine."""
    KEYS = "keys"
    """The API keys, without their secrets."""
    TOKENS = "tokens"
    """The tokens of the management API, without their secrets."""
    ISOLATION = "isolation"
    """The isolation of replicas."""
    CERTIFICATES = "certificates"
    """The active certificates."""
    VERSIONS = "versions"
    """The model versions in the registry."""
    SOFTWARE = "software"
    """The installed software of the system."""
    SCRAPES = "scrapes"
    """Time of the last scrape of the metrics."""
    ADVISORIES = "advisories"
    """Known vulnerabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMaterial:
    """A public key, or the public half of a private key."""

    kind: str
    """RSA, EC, Ed25519, oct (a shared secret)."""

    bits: int = 0
    """0 if the kind determines the size."""

    fingerprint: str = ""
    """Equal for a certificate and its private key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFact:
    """One certificate of a file."""

    subject: str

    issuer: str

    not_before: datetime

    not_after: datetime

    key: KeyMaterial

    signature_hash: str
    """Hash algorithm; empty if the signature algorithm includes it."""

    names: tuple[str, ...]
    """Subject alternative names."""

    @property
    def is_self_signed(self) -> bool:
        """Whether subject and issuer are equal."""
        return self.subject == self.issuer


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """One file or directory, and facts of its content."""

    path: str

    exists: bool = True

    mode: int = 0o600

    is_reachable: bool = True
    """Whether other users can traverse the parent directories."""

    has_private_group: bool = False
    """Whether only the owner is in its group, so that the group's rights open it to nobody else."""

    problem: str = ""
    """Reason why its content is not valid; empty if it is."""

    certificates: tuple[CertificateFact, ...] = ()

    keys: tuple[KeyMaterial, ...] = ()

    format: str = ""
    """Format of a model."""

    runs_code: bool = False
    """Whether loading the model runs code."""

    def opens(self, rights: int) -> bool:
        """Whether another user has one of `rights` (1 execute, 2 write, 4 read)."""
        group = 0 if self.has_private_group else self.mode >> 3 & rights
        return self.exists and bool(group or self.mode & rights)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFact:
    """A text of the spec, to be searched for secrets."""

    where: str
    text: str
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening address."""

    role: str
    """Gateway, management or metrics."""
    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyFact:
    """One valid API key."""

    name: str
    scopes: tuple[str, ...]
    created: datetime | None = None
    expires: datetime | None = None
    last_used: datetime | None = None
    records_use: bool = False
    """Whether the system records the use of keys; otherwise `last_used` is meaningless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFact:
    """One valid token of the management API, without the home's own."""

    id: str
    owner: str
    expires: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFact:
    """One replica, and the isolation measures that it lacks."""

    name: str
    not_isolated: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InForceFact:
    """A configured certificate."""

    name: str
    file: str
    problem: str = ""
    """Reason why its file is not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFact:
    """One model version of the registry; `signed` is None if unknown."""

    reference: str
    runtime: str
    runs_code: bool = False
    signed: bool | None
    is_served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFact:
    """One process of the system."""

    name: str
    pid: int
    uid: int
    core_bytes: int | None
    """Size limit of core dumps; None is unlimited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeFacts:
    """Location and protection of the state."""

    home: FileFact = FileFact(path="")

    state: FileFact | None = None
    """The SQLite database, if it exists."""

    admin_token: FileFact | None = None

    sockets: tuple[FileFact, ...] = ()
    """The gateway's private sockets, which need no authentication."""

    file_system: str = ""

    state_url: str = ""
    """URL of the state, without a password."""

    state_url_source: str = ""

    state_url_has_password: bool = False

    log_level: str = ""

    allow_code: bool = False
    """Whether the control plane allows code in every model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """One package of an advisory: affected versions, or ranges `(introduced, fixed, last)`."""

    package: str
    versions: tuple[str, ...] = ()
    ranges: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """A known vulnerability, from an OSV document."""

    id: str
    summary: str
    severity: FindingSeverity
    affected: tuple[Affected, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """All collected facts."""

    now: datetime
    spec: SystemSpec = field(default_factory=SystemSpec)
    spec_file: FileFact | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line in the spec file by location, such as `endpoints[0].access`."""
    texts: tuple[TextFact, ...] = ()
    files: Mapping[str, FileFact] = field(default_factory=dict)
    """Facts of files by absolute path."""
    listeners: tuple[Listener, ...] = ()
    keys: tuple[ApiKeyFact, ...] = ()
    tokens: tuple[TokenFact, ...] = ()
    replicas: tuple[ReplicaFact, ...] = ()
    in_force: tuple[InForceFact, ...] = ()
    versions: tuple[VersionFact, ...] = ()
    processes: tuple[ProcessFact, ...] = ()
    home: HomeFacts = field(default_factory=HomeFacts)
    software: Mapping[str, str] = field(default_factory=dict)
    """Version by name."""

    packages: Mapping[str, str] = field(default_factory=dict)
    """Version by name on PyPI."""
    advisories: tuple[Advisory, ...] = ()
    scraped_s_ago: float | None = None
    """None: never scraped."""
    missing: Mapping[Need, str] = field(default_factory=dict)
    """Reason by kind of facts that could not be collected."""

    def line_of(self, location: str) -> int | None:
        """Return the spec file's line of `location`, or of its nearest parent that has one."""
        while location not in self.lines and location:
            location = location[: max(location.rfind("."), location.rfind("["), 0)]
        return self.lines.get(location)
