"""Gather what is known of a system: of a spec file alone, or of one that runs.

What cannot be found out is written into `AuditFacts.missing`; nothing here fails for want of it.
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
_NO_ADVISORIES: Final = "no advisories were given (--advisories)"
_ALONE: Final = "a spec file alone does not say; audit the running system"
_ELSEWHERE: Final = "it is on another machine; run the audit there"
_WITH_SPEC: Final = frozenset({Need.SPEC, Need.FILES, Need.ADVISORIES})
_HOME_OWNER: Final = "admin"
"""Whose token lies in a file of the home; that one has no end, and is made anew by deleting it."""


class AskApi(Protocol):
    """The management API."""

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """What is at `path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemLocation:
    """Where a system runs: `url` of its management API, and its home if that is on this machine."""

    url: str
    home: Path | None = None


def collect_spec_file(
    file: Path, *, now: datetime, advisories: tuple[Advisory, ...] | None = None
) -> AuditFacts:
    """What a spec file says; nothing has to run.

    Raises:
        SpecError: It has mistakes.
        OSError: It cannot be read.
        UnicodeDecodeError: It is no text.
    """
    text = file.read_text(encoding="utf-8")
    written = read_yaml(text)
    source = text if written.mistakes else written.value  # reading YAML is the slow part
    spec = parse_spec(source, base_dir=file.absolute().parent, secrets_in=written.value)
    facts = AuditFacts(
        now=now,
        spec=spec,
        spec_file=replace(file_fact(file), path=str(file)),
        lines={show_place(place): line for place, line in written.lines.items()},
        texts=tuple(
            TextFact(where=f"line {number}", text=line, line=number)
            for number, line in enumerate(text.splitlines(), 1)
        ),
        files=_files(spec),
        listeners=(_gateway_by_spec(spec),),
        missing={need: _ALONE for need in Need if need not in _WITH_SPEC},
    )
    return _with_advisories(facts, advisories, is_here=True)


def collect_running(
    ask: AskApi,
    place: SystemLocation,
    *,
    now: datetime,
    advisories: tuple[Advisory, ...] | None = None,
) -> AuditFacts:
    """What a running system says, and what is seen of it from this machine if it runs here.

    Raises:
        HeadraceError: Its management API does not answer.
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
        missing[Need.SCRAPES] = "this control plane does not tell when its metrics were read"
    read_at = _moment(status.get("metrics_read_at"))
    facts = AuditFacts(
        now=now,
        spec=spec,
        texts=tuple(_texts(document, "")),
        listeners=(_gateway_by_spec(spec),),
        versions=_versions(ask, status, missing),
        keys=_keys(ask, now, missing),
        tokens=_tokens(ask, missing),
        replicas=_replicas(status, missing),
        in_force=_certificates(status, missing),
        scraped_s_ago=None if read_at is None else (now - read_at).total_seconds(),
    )
    if place.home is None:
        # Of a system on another machine only the address is known by which it is reached.
        missing |= dict.fromkeys((Need.FILES, Need.HOST, Need.SOFTWARE), _ELSEWHERE)
        parts = urlsplit(place.url)
        is_secure = parts.scheme == "https"
        management = Listener(
            role="management",
            host=parts.hostname or "",
            port=parts.port or (443 if is_secure else 80),
            tls=is_secure,
        )
        facts = replace(facts, listeners=(*facts.listeners, management))
    else:
        facts = _from_here(facts, place.home, status, missing)
    is_here = place.home is not None and host.runs_this_python(_pid(status))
    return _with_advisories(replace(facts, missing=missing), advisories, is_here=is_here)


def _with_advisories(
    facts: AuditFacts, advisories: tuple[Advisory, ...] | None, *, is_here: bool
) -> AuditFacts:
    # Without `is_here` the packages of this interpreter are not those of the system.
    if advisories is None or not is_here:
        why = _NO_ADVISORIES if advisories is None else _ELSEWHERE
        return replace(facts, missing={**facts.missing, Need.ADVISORIES: why})
    return replace(facts, advisories=advisories, packages=host.packages_here())


def _files(spec: SystemSpec) -> dict[str, FileFact]:
    return {named.path: named_file_fact(named) for named in named_files(spec)}


def _gateway_by_spec(spec: SystemSpec) -> Listener:
    gateway = spec.gateway
    return Listener(
        role="gateway", host=gateway.host, port=gateway.http_port, tls=gateway.tls is not None
    )


def _texts(value: object, place: str) -> Iterator[TextFact]:
    """Every text in a document, with its place; a name is looked at together with its value."""
    match value:
        case Mapping():
            for key, item in value.items():
                inside = f"{place}.{key}" if place else str(key)
                if isinstance(item, str):
                    yield TextFact(where=inside, text=f"{key}: {item}")
                else:
                    yield from _texts(item, inside)
        case list() | tuple():
            for i, item in enumerate(value):
                yield from _texts(item, f"{place}[{i}]")
        case str():
            yield TextFact(where=place, text=value)
        case _:
            return


def _listed(
    ask: AskApi, name: str, need: Need, missing: dict[Need, str], *, unknown: str, refused: str
) -> list[Document]:
    """What the API lists under `name`; none, and why in `missing`, where it does not."""
    try:
        return list(ask.get(f"/api/v1/{name}").get(name, ()))
    except NotFoundError:
        missing[need] = unknown
    except HeadraceError as error:
        missing[need] = f"{refused}: {error}"
    return []


def _versions(ask: AskApi, status: Document, missing: dict[Need, str]) -> tuple[VersionFact, ...]:
    silent = "the registry does not answer"
    found = _listed(ask, "models", Need.VERSIONS, missing, unknown=silent, refused=silent)
    served = {revision.get("model") for revision in _revisions(status)}
    return tuple(
        VersionFact(
            reference=(reference := f"{one.get('name')}:{one.get('version')}"),
            runtime=str(one.get("runtime", "")),
            runs_code=bool(one.get("runs_code")),
            signed=bool(one["signatures"]) if "signatures" in one else None,
            is_served=reference in served,
        )
        for one in found
    )


def _keys(ask: AskApi, now: datetime, missing: dict[Need, str]) -> tuple[ApiKeyFact, ...]:
    """The API keys that are in force."""
    unknown, refused = "this control plane knows no API keys", "the API keys are not told"
    found = _listed(ask, "keys", Need.KEYS, missing, unknown=unknown, refused=refused)
    keys = (
        ApiKeyFact(
            name=str(one.get("name") or one.get("id") or "?"),
            scopes=tuple(str(scope) for scope in one.get("scopes", ())),
            created=_moment(one.get("created")),
            expires=_moment(one.get("expires")),
            last_used=_moment(one.get("last_used")),
            tells_use="last_used" in one,
        )
        for one in found
        if not one.get("revoked")
    )
    return tuple(key for key in keys if key.expires is None or key.expires > now)


def _tokens(ask: AskApi, missing: dict[Need, str]) -> tuple[TokenFact, ...]:
    unknown, refused = "this control plane knows no tokens", "the tokens are not told"
    found = _listed(ask, "tokens", Need.TOKENS, missing, unknown=unknown, refused=refused)
    return tuple(
        TokenFact(
            id=str(one.get("id")), owner=str(one.get("owner")), expires=_moment(one.get("expires"))
        )
        for one in found
        if one.get("state", "valid") == "valid"
        and one.get("kind", "token") == "token"
        and one.get("owner") != _HOME_OWNER
    )


def _revisions(status: Document) -> Iterator[Document]:
    for endpoint in status.get("endpoints", ()):
        yield from endpoint.get("revisions", ())


def _replica_documents(status: Document) -> list[Document]:
    return [one for revision in _revisions(status) for one in revision.get("replicas", ())]


def _replicas(status: Document, missing: dict[Need, str]) -> tuple[ReplicaFact, ...]:
    replicas = _replica_documents(status)
    known = [one for one in replicas if one.get("isolation")]
    if replicas and not known:
        missing[Need.ISOLATION] = "this control plane does not tell how replicas are kept apart"
    return tuple(
        ReplicaFact(
            name=str(one.get("name")),
            not_isolated=tuple(str(why) for why in one["isolation"].get("problems", ())),
        )
        for one in known
    )


def _certificates(status: Document, missing: dict[Need, str]) -> tuple[InForceFact, ...]:
    told = status.get("gateway", {}).get("certificates")
    if told is None:
        missing[Need.CERTIFICATES] = "this control plane does not tell which are in force"
    return tuple(
        InForceFact(
            name=str(one.get("name")),
            file=str(one.get("file", "")),
            problem=str(one.get("problem") or ""),
        )
        for one in told or ()
    )


def _moment(value: object) -> datetime | None:
    """A moment as the API tells it: seconds since 1970, or ISO 8601."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str) and value:
            found = datetime.fromisoformat(value)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _from_here(
    facts: AuditFacts, home: Path, status: Document, missing: dict[Need, str]
) -> AuditFacts:
    """With what this machine shows: sockets, processes, files and software."""
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
    found = tuple(
        Listener(role=role, host=name, port=port, tls=role in secure)
        for role, name, port in addresses
    )
    roles = {listener.role for listener in found}
    if "management" not in roles:
        missing[Need.LISTENERS] = "the control plane's sockets cannot be seen by this user"
    directory = host.envoy_files(gateway_pid)
    software = host.software_here() if host.runs_this_python(pid) else {}
    if directory is not None and (version := host.envoy_version(directory / "admin.sock")):
        software = {**software, "envoy": version}
    if not software:
        missing[Need.SOFTWARE] = "another Python runs the control plane; audit with that one"
    # Certificates that the system was started with, besides those that its spec names.
    started_with = [
        NamedFile(place=one.name, path=one.file, kind="certificate")
        for one in facts.in_force
        if one.file
    ]
    processes = {"control plane": pid, "gateway": gateway_pid}
    processes |= {str(one.get("name")): _pid(one) for one in _replica_documents(status)}
    seen = (host.process_fact(name, number) for name, number in processes.items() if number)
    return replace(
        facts,
        files=_files(facts.spec) | {one.path: named_file_fact(one) for one in started_with},
        listeners=found if "gateway" in roles else (*facts.listeners, *found),
        processes=tuple(fact for fact in seen if fact is not None),
        home=host.home_facts(
            home.absolute(), pid=pid, token=home / ADMIN_TOKEN_FILE, sockets=directory
        ),
        software=software,
    )


def _pid(document: Document) -> int:
    """A document's process; 0 for none."""
    pid = document.get("pid")
    return pid if isinstance(pid, int) and pid > 0 else 0
