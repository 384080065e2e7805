"""Gather what is known of a system: of a spec file alone, or of one that runs.

What cannot be found out is written into `Facts.missing`; nothing here fails for want of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from headrace.advise import collect_host as host
from headrace.advise.check import NamedFile, named_files
from headrace.advise.collect_host import file_fact, named_file_fact
from headrace.advise.facts import (
    Advisory,
    ApiKeyFact,
    Facts,
    FileFact,
    InForceFact,
    Listener,
    Need,
    ProcessFact,
    ReplicaFact,
    TextFact,
    TokenFact,
    VersionFact,
)
from headrace.core import HeadraceError, NotFoundError
from headrace.core.spec import SystemSpec, parse_spec
from headrace.core.spec_yaml import read_yaml, show_place

Document = Mapping[str, Any]
ADMIN_TOKEN_FILE: Final = "admin-token"  # noqa: S105  # a file's name
_NO_ADVISORIES: Final = "no advisories were given (--advisories)"
_ALONE: Final = "a spec file alone does not say; audit the running system"
_ELSEWHERE: Final = "it is on another machine; run the audit there"
_WITH_SPEC: Final = frozenset({Need.SPEC, Need.FILES, Need.ADVISORIES})
_HOME_OWNER: Final = "admin"
"""Whose token lies in a file of the home; that one has no end, and is made anew by deleting it."""


class Ask(Protocol):
    """The management API."""

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """What is at `path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a system runs: `url` of its management API, and its home if that is on this machine."""

    url: str
    home: Path | None = None


def collect_spec_file(
    file: Path, *, now: datetime, advisories: tuple[Advisory, ...] | None = None
) -> Facts:
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
    lines = {show_place(place): line for place, line in written.lines.items()}
    missing = {need: _ALONE for need in Need if need not in _WITH_SPEC}
    facts = Facts(
        now=now,
        spec=spec,
        spec_file=replace(file_fact(file), path=str(file)),
        lines=lines,
        texts=tuple(
            TextFact(where=f"line {number}", text=line, line=number)
            for number, line in enumerate(text.splitlines(), 1)
        ),
        files=_files(spec),
        listeners=_gateway_by_spec(spec),
        missing=missing,
    )
    return _with_advisories(facts, advisories, is_here=True)


def collect_running(
    ask: Ask, place: Place, *, now: datetime, advisories: tuple[Advisory, ...] | None = None
) -> Facts:
    """What a running system says, and what is seen of it from this machine if it runs here.

    Raises:
        HeadraceError: Its management API does not answer.
    """
    status = ask.get("/api/v1/status")
    answer = ask.get("/api/v1/spec")
    document = answer.get("spec") or {}
    facts = Facts(now=now, texts=tuple(_texts(document, "")))
    missing: dict[Need, str] = {}
    try:
        facts = replace(facts, spec=parse_spec(document, in_force=document))
    except HeadraceError as error:
        missing[Need.SPEC] = f"the stored spec cannot be read: {str(error).splitlines()[0]}"
    facts = replace(facts, listeners=_gateway_by_spec(facts.spec))
    facts = _with_versions(facts, ask, status, missing)
    facts = _with_keys(facts, ask, missing)
    facts = _with_tokens(facts, ask, missing)
    replicas = tuple(_replicas(status))
    known = [one for one in replicas if one.get("isolation")]
    if replicas and not known:
        missing[Need.ISOLATION] = "this control plane does not tell how replicas are kept apart"
    found = tuple(
        ReplicaFact(
            name=str(one.get("name")),
            not_isolated=tuple(str(why) for why in one["isolation"].get("problems", ())),
        )
        for one in known
    )
    facts = replace(facts, replicas=found)
    facts = _with_certificates(facts, status, missing)
    facts = _with_scrapes(facts, status, missing)
    if place.home is None:
        facts = _from_elsewhere(facts, place, missing)
    else:
        facts = _from_here(facts, place.home, status, missing)
    is_here = place.home is not None and host.runs_this_python(_pid(status.get("pid")))
    return _with_advisories(replace(facts, missing=missing), advisories, is_here=is_here)


def _with_advisories(
    facts: Facts, advisories: tuple[Advisory, ...] | None, *, is_here: bool
) -> Facts:
    # Without `is_here` the packages of this interpreter are not those of the system.
    if advisories is None:
        return replace(facts, missing={**facts.missing, Need.ADVISORIES: _NO_ADVISORIES})
    if not is_here:
        return replace(facts, missing={**facts.missing, Need.ADVISORIES: _ELSEWHERE})
    return replace(facts, advisories=advisories, packages=host.packages_here())


def _files(spec: SystemSpec) -> dict[str, FileFact]:
    return {named.path: named_file_fact(named) for named in named_files(spec)}


def _gateway_by_spec(spec: SystemSpec) -> tuple[Listener, ...]:
    gateway = spec.gateway
    tls = gateway.tls is not None
    return (Listener(role="gateway", host=gateway.host, port=gateway.http_port, tls=tls),)


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


def _with_versions(facts: Facts, ask: Ask, status: Document, missing: dict[Need, str]) -> Facts:
    try:
        found = ask.get("/api/v1/models").get("models", [])
    except HeadraceError as error:
        missing[Need.VERSIONS] = f"the registry does not answer: {error}"
        return facts
    served = {
        revision.get("model")
        for endpoint in status.get("endpoints", ())
        for revision in endpoint.get("revisions", ())
    }
    versions = []
    for one in found:
        reference = f"{one.get('name')}:{one.get('version')}"
        versions.append(
            VersionFact(
                reference=reference,
                runtime=str(one.get("runtime", "")),
                runs_code=bool(one.get("runs_code")),
                signed=_is_signed(one),
                is_served=reference in served,
            )
        )
    return replace(facts, versions=tuple(versions))


def _is_signed(version: Document) -> bool | None:
    """Whether the registry tells a signature; None if it does not speak of them at all."""
    for name in ("signatures", "signed", "signed_by"):
        if name in version:
            return bool(version[name])
    return None


def _with_keys(facts: Facts, ask: Ask, missing: dict[Need, str]) -> Facts:
    try:
        found = ask.get("/api/v1/keys")
    except NotFoundError:
        missing[Need.KEYS] = "this control plane knows no API keys"
        return facts
    except HeadraceError as error:
        missing[Need.KEYS] = f"the API keys are not told: {error}"
        return facts
    listed = found.get("keys", found.get("items", []))
    keys = tuple(_key(one) for one in listed if not one.get("revoked"))
    return replace(
        facts,
        keys=tuple(
            key for key in keys if not (key.expires is not None and key.expires <= facts.now)
        ),
    )


def _with_tokens(facts: Facts, ask: Ask, missing: dict[Need, str]) -> Facts:
    try:
        found = ask.get("/api/v1/tokens").get("tokens", [])
    except NotFoundError:
        missing[Need.TOKENS] = "this control plane knows no tokens"
        return facts
    except HeadraceError as error:
        missing[Need.TOKENS] = f"the tokens are not told: {error}"
        return facts
    tokens = tuple(
        TokenFact(
            id=str(one.get("id")), owner=str(one.get("owner")), expires=_moment(one.get("expires"))
        )
        for one in found
        if one.get("state", "valid") == "valid"
        and one.get("kind", "token") == "token"
        and one.get("owner") != _HOME_OWNER
    )
    return replace(facts, tokens=tokens)


def _replicas(status: Document) -> Iterator[Document]:
    for endpoint in status.get("endpoints", ()):
        for revision in endpoint.get("revisions", ()):
            yield from revision.get("replicas", ())


def _with_certificates(facts: Facts, status: Document, missing: dict[Need, str]) -> Facts:
    told = status.get("gateway", {}).get("certificates")
    if told is None:
        missing[Need.CERTIFICATES] = "this control plane does not tell which are in force"
        return facts
    found = tuple(
        InForceFact(
            name=str(one.get("name")),
            file=str(one.get("file", "")),
            problem=str(one.get("problem") or ""),
        )
        for one in told
    )
    return replace(facts, in_force=found)


def _key(one: Document) -> ApiKeyFact:
    return ApiKeyFact(
        name=str(one.get("name") or one.get("id") or "?"),
        scopes=tuple(str(scope) for scope in one.get("scopes", ())),
        created=_moment(one.get("created")),
        expires=_moment(one.get("expires")),
        last_used=_moment(one.get("last_used")),
        tells_use="last_used" in one,
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


def _with_scrapes(facts: Facts, status: Document, missing: dict[Need, str]) -> Facts:
    if "metrics_read_at" not in status:
        missing[Need.SCRAPES] = "this control plane does not tell when its metrics were read"
        return facts
    at = _moment(status["metrics_read_at"])
    return replace(facts, scraped_s_ago=None if at is None else (facts.now - at).total_seconds())


def _from_elsewhere(facts: Facts, place: Place, missing: dict[Need, str]) -> Facts:
    """Of a system on another machine only the address is known by which it is reached."""
    for need in (Need.FILES, Need.HOST, Need.SOFTWARE):
        missing[need] = _ELSEWHERE
    parts = urlsplit(place.url)
    management = Listener(
        role="management",
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        tls=parts.scheme == "https",
    )
    return replace(facts, listeners=(*facts.listeners, management))


def _from_here(facts: Facts, home: Path, status: Document, missing: dict[Need, str]) -> Facts:
    pid = _pid(status.get("pid"))
    gateway_pid = _pid(status.get("gateway", {}).get("pid"))
    addresses = status.get("addresses", {})
    ports = {
        port: role
        for role, name in (("management", "admin"), ("metrics", "metrics"))
        if (port := urlsplit(str(addresses.get(name, ""))).port) is not None
    }
    found = host.with_roles(
        {"gateway": host.listeners_of(gateway_pid), "control": host.listeners_of(pid)},
        ports,
        secure=_secure_roles(facts, addresses),
    )
    has_gateway = any(one.role == "gateway" for one in found)
    if not any(one.role == "management" for one in found):
        missing[Need.LISTENERS] = "the control plane's sockets cannot be seen by this user"
    directory = host.envoy_files(gateway_pid)
    software = host.software_here() if host.runs_this_python(pid) else {}
    if directory is not None and (version := host.envoy_version(directory / "admin.sock")):
        software = {**software, "envoy": version}
    if not software:
        missing[Need.SOFTWARE] = "another Python runs the control plane; audit with that one"
    return replace(
        facts,
        files=_files(facts.spec) | _files_in_force(facts),
        listeners=found if has_gateway else (*facts.listeners, *found),
        processes=tuple(_processes(status, pid, gateway_pid)),
        home=host.home_facts(
            home.absolute(), pid=pid, token=home / ADMIN_TOKEN_FILE, sockets=directory
        ),
        software=software,
    )


def _secure_roles(facts: Facts, addresses: Document) -> set[str]:
    """Which addresses are encrypted: the gateway's by its spec or a flag, others by a flag."""
    names = {"http": "gateway", "admin": "management", "metrics": "metrics"}
    found = {
        role
        for name, role in names.items()
        if urlsplit(str(addresses.get(name, ""))).scheme == "https"
    }
    return found | ({"gateway"} if facts.spec.gateway.tls is not None else set())


def _files_in_force(facts: Facts) -> dict[str, FileFact]:
    """Certificates that the system was started with, besides those that its spec names."""
    return {
        one.file: named_file_fact(NamedFile(place=one.name, path=one.file, kind="certificate"))
        for one in facts.in_force
        if one.file
    }


def _processes(status: Document, pid: int, gateway_pid: int) -> Iterator[ProcessFact]:
    named = [("control plane", pid), ("gateway", gateway_pid)]
    named += [(str(one.get("name")), _pid(one.get("pid"))) for one in _replicas(status)]
    for name, number in dict.fromkeys(named):
        fact = host.process_fact(name, number) if number else None
        if fact is not None:
            yield fact


def _pid(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
