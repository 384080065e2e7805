"""Collection of facts about a system: from a spec file alone, or from a running system.

Facts that cannot be collected are listed in `AuditFacts.missing`; they never cause an error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from headrace.advise.audit import collect_host as host
from headrace.advise.audit.check import NamedFile, named_files
from headrace.advise.audit.collect_host import file_fact, named_file_fact
from headrace.advise.audit.facts import (
    Advisory,
    ApiKeyFact,
    AuditFacts,
    FileFact,
    InForceFact,
    Listener,
    Need,
    ReplicaFact,
    TextFact,
    TokenFact,
    VersionFact,
)
from headrace.core import HeadraceError, NotFoundError
from headrace.core.spec.parse import SystemSpec, parse_spec
from headrace.core.spec.yaml import read_yaml, show_place

Document = Mapping[str, Any]
ADMIN_TOKEN_FILE: Final = "admin-token"  # noqa: S105  # a file's name
_NO_ADVISORIES: Final = "no advisories (--advisories)"
_ALONE: Final = "not part of a spec file; audit the running system"
_ELSEWHERE: Final = "the system runs on another machine; run the audit there"
_WITH_SPEC: Final = frozenset({Need.SPEC, Need.FILES, Need.ADVISORIES})
_HOME_OWNER: Final = "admin"
"""Owner of the token in the home's file; it never expires, and is recreated after deletion."""


class ManagementApi(Protocol):
    """The management API."""

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """Return the document at `path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemLocation:
    """Address of a running system: `url` of its management API, and its home if it is local."""

    url: str
    home: Path | None = None


def collect_spec_file(
    file: Path, *, now: datetime, advisories: tuple[Advisory, ...] | None = None
) -> AuditFacts:
    """Collect the facts of a spec file; no system needs to run.

    Raises:
        SpecError: The spec has mistakes.
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is not UTF-8 text.
    """
    text = file.read_text(encoding="utf-8")
    written = read_yaml(text)
    source = text if written.mistakes else written.value  # avoids parsing the YAML again
    spec = parse_spec(source, base_dir=file.absolute().parent, secrets_in=written.value)
    facts = AuditFacts(
        now=now,
        spec=spec,
        spec_file=replace(file_fact(file), path=str(file)),
        lines={show_place(location): line for location, line in written.lines.items()},
        texts=tuple(
            TextFact(where=f"line {number}", text=line, line=number)
            for number, line in enumerate(text.splitlines(), 1)
        ),
        files=_files(spec),
        listeners=(_gateway_listener(spec),),
        missing={need: _ALONE for need in Need if need not in _WITH_SPEC},
    )
    return _with_advisories(facts, advisories, is_here=True)


def collect_running(
    ask: ManagementApi,
    location: SystemLocation,
    *,
    now: datetime,
    advisories: tuple[Advisory, ...] | None = None,
) -> AuditFacts:
    """Collect the facts of a running system, also from its host if that is this machine.

    Raises:
        HeadraceError: Its management API does not respond.
    """
    status = ask.get("/api/v1/status")
    document = ask.get("/api/v1/spec").get("spec") or {}
    missing: dict[Need, str] = {}
    spec = SystemSpec()
    try:
        spec = parse_spec(document, in_force=document)
    except HeadraceError as error:
        missing[Need.SPEC] = f"the stored spec cannot be read: {str(error).splitlines()[0]}"
    if "metrics_read_at" not in status:
        missing[Need.SCRAPES] = "this control plane does not report when its metrics were read"
    read_at = _moment(status.get("metrics_read_at"))
    facts = AuditFacts(
        now=now,
        spec=spec,
        texts=tuple(_texts(document, "")),
        listeners=(_gateway_listener(spec),),
        versions=_versions(ask, status, missing),
        keys=_keys(ask, now, missing),
        tokens=_tokens(ask, missing),
        replicas=_replicas(status, missing),
        in_force=_certificates(status, missing),
        scraped_s_ago=None if read_at is None else (now - read_at).total_seconds(),
    )
    if location.home is None:
        # For a system on another machine, only its management URL is known.
        missing |= dict.fromkeys((Need.FILES, Need.HOST, Need.SOFTWARE), _ELSEWHERE)
        parts = urlsplit(location.url)
        is_secure = parts.scheme == "https"
        management = Listener(
            role="management",
            host=parts.hostname or "",
            port=parts.port or (443 if is_secure else 80),
            tls=is_secure,
        )
        facts = replace(facts, listeners=(*facts.listeners, management))
    else:
        facts = _with_local_facts(facts, location.home, status, missing)
    is_here = location.home is not None and host.runs_this_python(_pid(status))
    return _with_advisories(replace(facts, missing=missing), advisories, is_here=is_here)


def _with_advisories(
    facts: AuditFacts, advisories: tuple[Advisory, ...] | None, *, is_here: bool
) -> AuditFacts:
    # Without `is_here`, this interpreter's packages are not those of the system.
    if advisories is None or not is_here:
        reason = _NO_ADVISORIES if advisories is None else _ELSEWHERE
        return replace(facts, missing={**facts.missing, Need.ADVISORIES: reason})
    return replace(facts, advisories=advisories, packages=host.packages_here())


def _files(spec: SystemSpec) -> dict[str, FileFact]:
    return {named.path: named_file_fact(named) for named in named_files(spec)}


def _gateway_listener(spec: SystemSpec) -> Listener:
    gateway = spec.gateway
    return Listener(
        role="gateway", host=gateway.host, port=gateway.http_port, tls=gateway.tls is not None
    )


def _texts(value: object, location: str) -> Iterator[TextFact]:
    """Yield every text in a document with its location; the text of a value includes its key."""
    match value:
        case Mapping():
            for key, item in value.items():
                inside = f"{location}.{key}" if location else str(key)
                if isinstance(item, str):
                    yield TextFact(where=inside, text=f"{key}: {item}")
                else:
                    yield from _texts(item, inside)
        case list() | tuple():
            for i, item in enumerate(value):
                yield from _texts(item, f"{location}[{i}]")
        case str():
            yield TextFact(where=location, text=value)
        case _:
            return


def _listed(
    ask: ManagementApi,
    name: str,
    need: Need,
    missing: dict[Need, str],
    *,
    unknown: str,
    refused: str,
) -> list[Document]:
    """Return the items listed under `name`; on failure none, and the reason in `missing`."""
    try:
        return list(ask.get(f"/api/v1/{name}").get(name, ()))
    except NotFoundError:
        missing[need] = unknown
    except HeadraceError as error:
        missing[need] = f"{refused}: {error}"
    return []


def _versions(
    ask: ManagementApi, status: Document, missing: dict[Need, str]
) -> tuple[VersionFact, ...]:
    silent = "the registry does not respond"
    documents = _listed(ask, "models", Need.VERSIONS, missing, unknown=silent, refused=silent)
    served = {revision.get("model") for revision in _revisions(status)}
    return tuple(
        VersionFact(
            reference=(reference := f"{document.get('name')}:{document.get('version')}"),
            runtime=str(document.get("runtime", "")),
            runs_code=bool(document.get("runs_code")),
            signed=bool(document["signatures"]) if "signatures" in document else None,
            is_served=reference in served,
        )
        for document in documents
    )


def _keys(ask: ManagementApi, now: datetime, missing: dict[Need, str]) -> tuple[ApiKeyFact, ...]:
    """Return the valid API keys."""
    unknown, refused = "this control plane has no API keys", "the API keys cannot be listed"
    documents = _listed(ask, "keys", Need.KEYS, missing, unknown=unknown, refused=refused)
    keys = (
        ApiKeyFact(
            name=str(document.get("name") or document.get("id") or "?"),
            scopes=tuple(str(scope) for scope in document.get("scopes", ())),
            created=_moment(document.get("created")),
            expires=_moment(document.get("expires")),
            last_used=_moment(document.get("last_used")),
            records_use="last_used" in document,
        )
        for document in documents
        if not document.get("revoked")
    )
    return tuple(key for key in keys if key.expires is None or key.expires > now)


def _tokens(ask: ManagementApi, missing: dict[Need, str]) -> tuple[TokenFact, ...]:
    unknown, refused = "this control plane has no tokens", "the tokens cannot be listed"
    documents = _listed(ask, "tokens", Need.TOKENS, missing, unknown=unknown, refused=refused)
    return tuple(
        TokenFact(
            id=str(document.get("id")),
            owner=str(document.get("owner")),
            expires=_moment(document.get("expires")),
        )
        for document in documents
        if document.get("state", "valid") == "valid"
        and document.get("kind", "token") == "token"
        and document.get("owner") != _HOME_OWNER
    )


def _revisions(status: Document) -> Iterator[Document]:
    for endpoint in status.get("endpoints", ()):
        yield from endpoint.get("revisions", ())


def _replica_documents(status: Document) -> list[Document]:
    return [replica for revision in _revisions(status) for replica in revision.get("replicas", ())]


def _replicas(status: Document, missing: dict[Need, str]) -> tuple[ReplicaFact, ...]:
    replicas = _replica_documents(status)
    isolated = [replica for replica in replicas if replica.get("isolation")]
    if replicas and not isolated:
        missing[Need.ISOLATION] = "this control plane does not report the isolation of replicas"
    return tuple(
        ReplicaFact(
            name=str(replica.get("name")),
            not_isolated=tuple(str(reason) for reason in replica["isolation"].get("problems", ())),
        )
        for replica in isolated
    )


def _certificates(status: Document, missing: dict[Need, str]) -> tuple[InForceFact, ...]:
    documents = status.get("gateway", {}).get("certificates")
    if documents is None:
        missing[Need.CERTIFICATES] = "this control plane does not report active certificates"
    return tuple(
        InForceFact(
            name=str(document.get("name")),
            file=str(document.get("file", "")),
            problem=str(document.get("problem") or ""),
        )
        for document in documents or ()
    )


def _moment(value: object) -> datetime | None:
    """Return a time of the API: seconds since 1970, or ISO 8601."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str) and value:
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _with_local_facts(
    facts: AuditFacts, home: Path, status: Document, missing: dict[Need, str]
) -> AuditFacts:
    """Add the facts of this host: sockets, processes, files and software."""
    pid, gateway_pid = _pid(status), _pid(status.get("gateway", {}))
    urls = {
        role: urlsplit(str(status.get("addresses", {}).get(name, "")))
        for name, role in (("http", "gateway"), ("admin", "management"), ("metrics", "metrics"))
    }
    secure = {role for role, url in urls.items() if url.scheme == "https"}
    if facts.spec.gateway.tls is not None:
        secure.add("gateway")
    ports = {urls[role].port: role for role in ("management", "metrics")}
    addresses = [("gateway", *address) for address in host.listeners_of(gateway_pid)]
    addresses += [
        (ports[port], name, port) for name, port in host.listeners_of(pid) if port in ports
    ]
    listeners = tuple(
        Listener(role=role, host=name, port=port, tls=role in secure)
        for role, name, port in addresses
    )
    roles = {listener.role for listener in listeners}
    if "management" not in roles:
        missing[Need.LISTENERS] = "this user cannot list the control plane's sockets"
    directory = host.envoy_files(gateway_pid)
    software = host.software_here() if host.runs_this_python(pid) else {}
    if directory is not None and (version := host.envoy_version(directory / "admin.sock")):
        software = {**software, "envoy": version}
    if not software:
        missing[Need.SOFTWARE] = "another Python runs the control plane; run the audit with it"
    # Certificates that were set at startup, besides those of the spec.
    started_with = [
        NamedFile(location=certificate.name, path=certificate.file, kind="certificate")
        for certificate in facts.in_force
        if certificate.file
    ]
    processes = {"control plane": pid, "gateway": gateway_pid}
    processes |= {str(replica.get("name")): _pid(replica) for replica in _replica_documents(status)}
    process_facts = (
        host.process_fact(name, number) for name, number in processes.items() if number
    )
    return replace(
        facts,
        files=_files(facts.spec)
        | {certificate.path: named_file_fact(certificate) for certificate in started_with},
        listeners=listeners if "gateway" in roles else (*facts.listeners, *listeners),
        processes=tuple(fact for fact in process_facts if fact is not None),
        home=host.home_facts(
            home.absolute(), pid=pid, token=home / ADMIN_TOKEN_FILE, sockets=directory
        ),
        software=software,
    )


def _pid(document: Document) -> int:
    """Return the process ID in a document; 0 for none."""
    pid = document.get("pid")
    return pid if isinstance(pid, int) and pid > 0 else 0
