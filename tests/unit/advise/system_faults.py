"""Faults of a running system, each with the one check that has to find it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec

from headrace.advise.audit.facts import (
    Advisory,
    Affected,
    AuditFacts,
    CertificateFact,
    FileFact,
    FindingSeverity,
    HomeFacts,
    InForceFact,
    KeyMaterial,
    Listener,
    ProcessFact,
    ReplicaFact,
    TokenFact,
    VersionFact,
)
from tests.unit.advise.conftest import NOW

FIRST = "endpoints[0]"


@dataclass(frozen=True, slots=True, kw_only=True)
class InSystem:
    """A change of what is known of the running system."""

    check: str
    name: str
    change: Callable[[AuditFacts], AuditFacts]
    where: str


def server_file(facts: AuditFacts) -> tuple[str, FileFact]:
    assert facts.spec.gateway.tls is not None
    path = facts.spec.gateway.tls.certificate_file
    return path, facts.files[path]


def with_certificate(
    change: Callable[[CertificateFact], CertificateFact],
) -> Callable[[AuditFacts], AuditFacts]:
    """The gateway's certificate, otherwise."""

    def changed(facts: AuditFacts) -> AuditFacts:
        path, file = server_file(facts)
        (first, *more) = file.certificates
        new = replace(file, certificates=(change(first), *more))
        return replace(facts, files={**facts.files, path: new})

    return changed


def with_key(**more: Any) -> Callable[[AuditFacts], AuditFacts]:  # noqa: ANN401  # of a dataclass
    def changed(facts: AuditFacts) -> AuditFacts:
        (key,) = facts.keys
        return replace(facts, keys=(key, replace(key, name="old", **more)))

    return changed


def with_home(**more: Any) -> Callable[[AuditFacts], AuditFacts]:  # noqa: ANN401  # of a dataclass
    return lambda facts: replace(facts, home=replace(facts.home, **more))


def with_listener(role: str, host: str, *, tls: bool = False) -> Callable[[AuditFacts], AuditFacts]:
    listener = Listener(role=role, host=host, port=8080, tls=tls)
    return lambda facts: replace(facts, listeners=(*facts.listeners, listener))


def with_software(name: str, version: str) -> Callable[[AuditFacts], AuditFacts]:
    return lambda facts: replace(facts, software={**facts.software, name: version})


def same_key(key: KeyMaterial, **more: Any) -> KeyMaterial:  # noqa: ANN401  # of a dataclass
    """Another size of key, with the fingerprint of the private one beside it."""
    return replace(key, **more)


def without_tls(facts: AuditFacts) -> AuditFacts:
    spec = facts.spec
    gateway = spec.gateway.model_copy(update={"tls": None})
    auth = msgspec.structs.replace(spec.auth, certificates=())
    endpoint = spec.endpoints[0].model_copy(update={"access": ("key",)})
    changed = {"gateway": gateway, "auth": auth, "endpoints": (endpoint,)}
    listeners = tuple(replace(one, tls=False) for one in facts.listeners)
    return replace(facts, spec=spec.model_copy(update=changed), listeners=listeners)


def vulnerable(facts: AuditFacts) -> AuditFacts:
    advisory = Advisory(
        id="GHSA-test",
        summary="smuggling",
        severity=FindingSeverity.CRITICAL,
        affected=(Affected(package="HTTPtools", ranges=(("0", "0.9.1", ""),)),),
    )
    return replace(facts, advisories=(advisory,))


def served_by_code(facts: AuditFacts) -> AuditFacts:
    (version,) = facts.versions
    return replace(facts, versions=(replace(version, runtime="python"),))


def another_version(signed: bool | None) -> Callable[[AuditFacts], AuditFacts]:  # noqa: FBT001  # in a table
    other = VersionFact(reference="digits:2", runtime="onnx", signed=signed, is_served=False)
    return lambda facts: replace(facts, versions=(*facts.versions, other))


def writable_model(facts: AuditFacts) -> AuditFacts:
    """A path instead of a version is another fault; here only who may write it is looked at."""
    endpoint = facts.spec.endpoints[0].model_copy(update={"model": "/srv/digits.onnx"})
    spec = facts.spec.model_copy(update={"endpoints": (endpoint,)})
    file = FileFact(path="/srv/digits.onnx", mode=0o666)
    return replace(facts, spec=spec, files={**facts.files, "/srv/digits.onnx": file})


def served_with_code(facts: AuditFacts) -> AuditFacts:
    (version,) = facts.versions
    return replace(facts, versions=(replace(version, runs_code=True),))


UNUSED = InForceFact(name="admin", file="/srv/admin.pem", problem="the key is of another one")
OPEN_REPLICA = ReplicaFact(name="digits-1-2", not_isolated=("may open network connections",))
NETWORKED = HomeFacts(
    home=FileFact(path="/srv/headrace", mode=0o700),
    state=FileFact(path="/srv/headrace/state.db"),
    file_system="nfs4",
)
ROOT = ProcessFact(name="gateway", pid=12, uid=0, core_bytes=0)
DUMPING = ProcessFact(name="gateway", pid=12, uid=1000, core_bytes=None)
IN_SYSTEM = [
    InSystem(check=check, name=name, change=change, where=where)
    for check, name, where, change in [
        ("HR021", "a key for ever", "key old", with_key(expires=None)),
        ("HR022", "an unused key", "key old", with_key(last_used=NOW - timedelta(days=100))),
        ("HR023", "a key for all", "key old", with_key(scopes=("infer:*",))),
        ("HR024", "an old key", "key old", with_key(created=NOW - timedelta(days=100))),
        ("HR101", "plain text", "gateway.tls", without_tls),
        (
            "HR103",
            "an expired certificate",
            "gateway.tls.certificate_file",
            with_certificate(lambda one: replace(one, not_after=NOW - timedelta(seconds=1))),
        ),
        (
            "HR103",
            "a certificate of tomorrow",
            "gateway.tls.certificate_file",
            with_certificate(lambda one: replace(one, not_before=NOW + timedelta(days=1))),
        ),
        (
            "HR104",
            "an expiring certificate",
            "gateway.tls.certificate_file",
            with_certificate(lambda one: replace(one, not_after=NOW + timedelta(days=7))),
        ),
        (
            "HR105",
            "a short RSA key",
            "gateway.tls.certificate_file",
            with_certificate(
                lambda one: replace(one, key=same_key(one.key, kind="RSA", bits=1024))
            ),
        ),
        (
            "HR106",
            "SHA-1",
            "gateway.tls.certificate_file",
            with_certificate(lambda one: replace(one, signature_hash="sha1")),
        ),
        (
            "HR025",
            "a token for ever",
            "token t2",
            lambda facts: replace(
                facts, tokens=(*facts.tokens, TokenFact(id="t2", owner="ci", expires=None))
            ),
        ),
        (
            "HR114",
            "a pair that does not match",
            "certificate admin",
            lambda facts: replace(facts, in_force=(*facts.in_force, UNUSED)),
        ),
        (
            "HR407",
            "code for all",
            "headrace up --allow-code",
            with_home(allow_code=True),
        ),
        ("HR408", "a version of a format with code", f"{FIRST}.model", served_with_code),
        (
            "HR513",
            "a replica in the open",
            "replica digits-1-2",
            lambda facts: replace(facts, replicas=(*facts.replicas, OPEN_REPLICA)),
        ),
        ("HR310", "nobody watches", "metrics", lambda facts: replace(facts, scraped_s_ago=None)),
        (
            "HR310",
            "nobody watches any more",
            "metrics",
            lambda facts: replace(facts, scraped_s_ago=7200.0),
        ),
        ("HR402", "an unsigned version", "model digits:2", another_version(signed=False)),
        ("HR408", "a version of Python", f"{FIRST}.model", served_by_code),
        ("HR501", "plain management", "management API", with_listener("management", "10.0.0.5")),
        (
            "HR502",
            "management for all",
            "management API",
            with_listener("management", "0.0.0.0", tls=True),  # noqa: S104  # compared, not bound
        ),
        ("HR503", "metrics for all", "metrics", with_listener("metrics", "::")),
        (
            "HR504",
            "a readable token",
            "/srv/admin.token",
            with_home(admin_token=FileFact(path="/srv/admin.token", mode=0o640)),
        ),
        (
            "HR505",
            "an open home",
            "/srv/headrace",
            with_home(home=FileFact(path="/srv/headrace", mode=0o755)),
        ),
        (
            "HR506",
            "an open database",
            "/var/state.db",
            with_home(state=FileFact(path="/var/state.db", mode=0o644)),
        ),
        (
            "HR507",
            "an open socket",
            "/tmp/admin.sock",  # noqa: S108  # a name in evidence
            with_home(sockets=(FileFact(path="/tmp/admin.sock", mode=0o666),)),  # noqa: S108  # as above
        ),
        (
            "HR508",
            "SQLite over NFS",
            "/srv/headrace/state.db",
            lambda facts: replace(facts, home=NETWORKED),
        ),
        (
            "HR509",
            "a password in clear",
            "HEADRACE_STATE_URL",
            with_home(
                state_url="postgresql://headrace:***@db/headrace",
                state_url_source="HEADRACE_STATE_URL",
                state_url_has_password=True,
            ),
        ),
        (
            "HR510",
            "root",
            "processes",
            lambda facts: replace(facts, processes=(*facts.processes, ROOT)),
        ),
        (
            "HR511",
            "core dumps",
            "processes",
            lambda facts: replace(facts, processes=(*facts.processes, DUMPING)),
        ),
        ("HR512", "debug", "log level", with_home(log_level="DEBUG")),
        ("HR601", "an old Envoy", "envoy", with_software("envoy", "1.31.2")),
        ("HR601", "an old Python", "python", with_software("python", "3.12.3")),
        ("HR601", "an old OpenSSL", "openssl", with_software("openssl", "1.1.1")),
        ("HR602", "a vulnerability", "httptools", vulnerable),
    ]
]
