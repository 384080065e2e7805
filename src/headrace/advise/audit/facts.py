"""Facts about a system that an audit looks at, and severities of findings.

`AuditFacts.missing` holds what could not be read, with the reason. A check that needs it is
reported as "not checked", never as passed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from headrace.core.spec.parse import SystemSpec


class FindingSeverity(StrEnum):
    """From what is worth knowing to what has to be mended today."""

    LOW = "low"
    """Worth knowing; a deliberate choice for many."""
    MEDIUM = "medium"
    """Mend it before other people depend on the system."""
    HIGH = "high"
    """One more mistake, or one who tries, and it does harm."""
    CRITICAL = "critical"
    """It does harm as it is."""

    @property
    def rank(self) -> int:
        """A larger number is worse."""
        return tuple(FindingSeverity).index(self)


class Need(StrEnum):
    """What a check has to know."""

    SPEC = "spec"
    """What the system shall be."""
    FILES = "files"
    """The files that the spec names: certificates, keys, models."""
    LISTENERS = "listeners"
    """Where the management API and metrics are reached."""
    HOST = "host"
    """The home directory, and the processes on this machine."""
    KEYS = "keys"
    """The API keys, without their secrets."""
    TOKENS = "tokens"
    """The tokens of the management API, without their secrets."""
    ISOLATION = "isolation"
    """How replicas are kept apart."""
    CERTIFICATES = "certificates"
    """Which certificates are in force."""
    VERSIONS = "versions"
    """The model versions in the registry."""
    SOFTWARE = "software"
    """What is installed where the system runs."""
    SCRAPES = "scrapes"
    """When somebody last read the metrics."""
    ADVISORIES = "advisories"
    """Known vulnerabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMaterial:
    """A public key, or the public half of a private one.

    `kind`: RSA, EC, Ed25519, oct (a shared secret). `bits`: 0 where its kind fixes it.
    `fingerprint`: the same for a certificate and its private key.
    """

    kind: str
    bits: int = 0
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFact:
    """One certificate of a file; `signature_hash` is empty where the algorithm needs none."""

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    key: KeyMaterial
    signature_hash: str
    names: tuple[str, ...]

    @property
    def is_self_signed(self) -> bool:
        """Whether nobody but itself vouches for it."""
        return self.subject == self.issuer


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """One file or directory, and what was read in it.

    `is_reachable`: whether other users get to it through the directories above.
    `has_private_group`: whether its group is its owner's own, so that the group's rights open it to
    nobody. `problem`: why its content could not be read as what it should be; empty if it could.
    `format`: of a model.
    """

    path: str
    exists: bool = True
    mode: int = 0o600
    is_reachable: bool = True
    has_private_group: bool = False
    problem: str = ""
    certificates: tuple[CertificateFact, ...] = ()
    keys: tuple[KeyMaterial, ...] = ()
    format: str = ""
    runs_code: bool = False

    def opens(self, rights: int) -> bool:
        """Whether somebody else has one of `rights` (1 enters, 2 writes, 4 reads)."""
        group = 0 if self.has_private_group else self.mode >> 3 & rights
        return self.exists and bool(group or self.mode & rights)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFact:
    """A piece of what people wrote, in which secrets are looked for."""

    where: str
    text: str
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """An address that is listened on. `role`: gateway, management or metrics."""

    role: str
    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyFact:
    """One API key that is in force."""

    name: str
    scopes: tuple[str, ...]
    created: datetime | None = None
    expires: datetime | None = None
    last_used: datetime | None = None
    tells_use: bool = False
    """Whether the system keeps when keys were used; without it `last_used` says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFact:
    """One token of the management API that is in force, besides the home's own."""

    id: str
    owner: str
    expires: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFact:
    """One replica, and what should be kept from it and is not."""

    name: str
    not_isolated: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InForceFact:
    """A certificate that the system should use; `problem`: why its file's content is not used."""

    name: str
    file: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFact:
    """One model version of the registry; `signed` is None where that is not known."""

    reference: str
    runtime: str
    runs_code: bool = False
    signed: bool | None
    is_served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFact:
    """One process of the system. `core_bytes`: how large its core dump may be; None is no limit."""

    name: str
    pid: int
    uid: int
    core_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeFacts:
    """Where state lies, and how it is kept. `state_url` has no password in it.

    `sockets`: the gateway's, which let in without asking. `allow_code`: whether the control plane
    was told to let every model bring code.
    """

    home: FileFact = FileFact(path="")
    state: FileFact | None = None
    admin_token: FileFact | None = None
    sockets: tuple[FileFact, ...] = ()
    file_system: str = ""
    state_url: str = ""
    state_url_source: str = ""
    state_url_has_password: bool = False
    log_level: str = ""
    allow_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """What an advisory says of one package: versions, or ranges `(introduced, fixed, last)`."""

    package: str
    versions: tuple[str, ...] = ()
    ranges: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """A known vulnerability, of an OSV document."""

    id: str
    summary: str
    severity: FindingSeverity
    affected: tuple[Affected, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """Everything that was found out.

    `files` by absolute path. `lines`: the spec file's line of each place, such as
    `endpoints[0].access`. `software` and `packages`: version by name; packages as PyPI calls them.
    """

    now: datetime
    spec: SystemSpec = field(default_factory=SystemSpec)
    spec_file: FileFact | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    texts: tuple[TextFact, ...] = ()
    files: Mapping[str, FileFact] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    keys: tuple[ApiKeyFact, ...] = ()
    tokens: tuple[TokenFact, ...] = ()
    replicas: tuple[ReplicaFact, ...] = ()
    in_force: tuple[InForceFact, ...] = ()
    versions: tuple[VersionFact, ...] = ()
    processes: tuple[ProcessFact, ...] = ()
    home: HomeFacts = field(default_factory=HomeFacts)
    software: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    advisories: tuple[Advisory, ...] = ()
    scraped_s_ago: float | None = None
    missing: Mapping[Need, str] = field(default_factory=dict)

    def line_of(self, place: str) -> int | None:
        """The spec file's line of `place`, or of the nearest thing around it that has one."""
        while place not in self.lines and place:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        return self.lines.get(place)
