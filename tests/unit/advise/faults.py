"""Faults to plant in the hardened example, each with the one check that has to find it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from headrace.advise.facts import (
    Advisory,
    Affected,
    ApiKeyFact,
    CertificateFact,
    Facts,
    FileFact,
    HomeFacts,
    KeyMaterial,
    Listener,
    ProcessFact,
    VersionFact,
)
from headrace.advise.severity import Severity
from tests.unit.advise.conftest import NOW

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InSpec:
    """A change of the spec's document, or of a file beside it."""

    check: str
    name: str
    change: Callable[[Document, Path], None]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InSystem:
    """A change of what is known of the running system."""

    check: str
    name: str
    change: Callable[[Facts], Facts]
    where: str


def put(path: str, value: object) -> Callable[[Document, Path], None]:
    """Set a value of the document: `gateway.host`; a number is a position."""

    def change(document: Document, _: Path) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = document
        for part in parents:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        place[last] = value

    return change


def drop(path: str) -> Callable[[Document, Path], None]:
    """Take a value out of the document."""

    def change(document: Document, _: Path) -> None:
        *parents, last = path.split(".")
        place: Any = document
        for part in parents:
            place = place[int(part)] if part.isdigit() else place[part]
        del place[last]

    return change


def chmod(file: str, mode: int) -> Callable[[Document, Path], None]:
    def change(_: Document, folder: Path) -> None:
        (folder / file).chmod(mode)

    return change


def both(*changes: Callable[[Document, Path], None]) -> Callable[[Document, Path], None]:
    def change(document: Document, folder: Path) -> None:
        for one in changes:
            one(document, folder)

    return change


def write(file: str, text: str) -> Callable[[Document, Path], None]:
    def change(_: Document, folder: Path) -> None:
        (folder / file).write_text(text)

    return change


def copy(source: str, target: str) -> Callable[[Document, Path], None]:
    def change(_: Document, folder: Path) -> None:
        (folder / target).write_bytes((folder / source).read_bytes())

    return change


def with_upstream(upstream: Document) -> Callable[[Document, Path], None]:
    """The example's endpoint, answered by somebody else's server."""

    def change(document: Document, _: Path) -> None:
        endpoint = document["endpoints"][0]
        del endpoint["model"], endpoint["autoscale"]
        endpoint["upstream"] = upstream

    return change


def with_model(name: str, text: str, **more: object) -> Callable[[Document, Path], None]:
    """A model beside the spec, instead of the registry's."""

    def change(document: Document, folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)
        document["endpoints"][0] |= {"model": f"./{name.split('/')[0]}", **more}

    return change


LOCAL = put("gateway.host", "127.0.0.1")
SECURE = {
    "url": "https://churn.scoring.test:8443",
    "tls": {
        "ca_file": "./pki/ca.pem",
        "certificate_file": "./pki/client.pem",
        "key_file": "./pki/client.key",
    },
}
PYTHON = "class Model(PythonModel):\n    pass\n"
FIRST = "endpoints[0]"
IN_SPEC = [
    InSpec(check=check, name=name, change=change, where=where)
    for check, name, where, change in [
        ("HR001", "public beyond loopback", f"{FIRST}.access", put("endpoints.0.access", "public")),
        (
            "HR002",
            "public on loopback",
            f"{FIRST}.access",
            both(LOCAL, put("endpoints.0.access", "public")),
        ),
        ("HR003", "silent on loopback", f"{FIRST}.access", both(LOCAL, drop("endpoints.0.access"))),
        ("HR004", "lets nobody in", f"{FIRST}.access", put("endpoints.0.access", [])),
        ("HR005", "no client CA", "auth.certificates", drop("gateway.tls.client_ca_file")),
        (
            "HR005",
            "no client CA and no rule",
            f"{FIRST}.access",
            both(drop("gateway.tls.client_ca_file"), drop("auth.certificates")),
        ),
        (
            "HR006",
            "an unknown provider",
            f"{FIRST}.access",
            put("endpoints.0.access", ["key", "jwt:partners"]),
        ),
        (
            "HR007",
            "keys over http",
            "auth.jwt[0].jwks_url",
            both(
                drop("auth.jwt.0.jwks_file"),
                put("auth.jwt.0.jwks_url", "http://login.hardened.test/keys"),
            ),
        ),
        (
            "HR007",
            "an issuer over http",
            "auth.jwt[0].issuer",
            put("auth.jwt.0.issuer", "http://login.hardened.test"),
        ),
        (
            "HR008",
            "a shared audience",
            "auth.jwt[0].audiences[1]",
            put("auth.jwt.0.audiences", ["https://inference.hardened.test", "account"]),
        ),
        ("HR009", "clocks", "auth.jwt[0].clock_skew_s", put("auth.jwt.0.clock_skew_s", 300)),
        (
            "HR010",
            "old keys",
            "auth.jwt[0].jwks_cache_s",
            both(
                drop("auth.jwt.0.jwks_file"),
                put("auth.jwt.0.jwks_url", "https://login.hardened.test/keys"),
                put("auth.jwt.0.jwks_cache_s", 86400.0),
            ),
        ),
        (
            "HR011",
            "a shared secret",
            "auth.jwt[0].jwks_file",
            write("pki/issuer.jwks.json", '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'),
        ),
        (
            "HR011",
            "a short RSA key",
            "auth.jwt[0].jwks_file",
            write("pki/issuer.jwks.json", '{"keys": [{"kty": "RSA", "n": "' + "_" * 171 + '"}]}'),
        ),
        (
            "HR012",
            "an example's issuer",
            "auth.jwt[0].issuer",
            put("auth.jwt.0.issuer", "https://login.example.com"),
        ),
        (
            "HR012",
            "an example's upstream",
            f"{FIRST}.upstream.url",
            with_upstream(SECURE | {"url": "https://models.example:8443"}),
        ),
        (
            "HR013",
            "any certificate",
            "auth.certificates[0].dns",
            put("auth.certificates.0.dns", "*"),
        ),
        (
            "HR014",
            "certificates may all",
            "auth.certificates[0].scopes",
            put("auth.certificates.0.scopes", ["infer:*"]),
        ),
        (
            "HR015",
            "an unknown tier",
            "auth.certificates[0].tier",
            put("auth.certificates.0.tier", "platinum"),
        ),
        ("HR102", "TLS 1.2", "gateway.tls.min_version", put("gateway.tls.min_version", "1.2")),
        ("HR108", "a key for all", "gateway.tls.key_file", chmod("pki/server.key", 0o644)),
        (
            "HR109",
            "another's key",
            "gateway.tls.key_file",
            put("gateway.tls.key_file", "./pki/client.key"),
        ),
        (
            "HR107",
            "its own authority",
            "gateway.tls.certificate_file",
            lambda document, folder: self_signed(folder),
        ),
        (
            "HR110",
            "no host's name",
            "gateway.tls.certificate_file",
            lambda document, folder: nameless(folder),
        ),
        (
            "HR111",
            "a plain upstream",
            f"{FIRST}.upstream.url",
            with_upstream({"url": "http://churn.scoring.test:8000"}),
        ),
        (
            "HR112",
            "an upstream of any authority",
            f"{FIRST}.upstream.tls.ca_file",
            both(with_upstream(SECURE), drop("endpoints.0.upstream.tls.ca_file")),
        ),
        (
            "HR113",
            "an upstream that is shown nothing",
            f"{FIRST}.upstream.tls.certificate_file",
            with_upstream(SECURE | {"tls": {"ca_file": "./pki/ca.pem"}}),
        ),
        ("HR201", "no limits", f"{FIRST}.limits", drop("endpoints.0.limits")),
        (
            "HR202",
            "none per caller",
            f"{FIRST}.limits.per_caller",
            drop("endpoints.0.limits.per_caller"),
        ),
        (
            "HR203",
            "large bodies",
            "gateway.max_body_bytes",
            put("gateway.max_body_bytes", 1_000_000_000),
        ),
        (
            "HR203",
            "large bodies of one endpoint",
            f"{FIRST}.limits.max_body_bytes",
            put("endpoints.0.limits.max_body_bytes", 1_000_000_000),
        ),
        ("HR204", "no timeout", f"{FIRST}.timeout_s", put("endpoints.0.timeout_s", None)),
        (
            "HR205",
            "a long queue",
            f"{FIRST}.batching.max_queue_size",
            put("endpoints.0.batching", {"max_queue_size": 1_000_000}),
        ),
        ("HR301", "no promise", f"{FIRST}.slo", drop("endpoints.0.slo")),
        ("HR302", "one copy", f"{FIRST}.replicas", drop("endpoints.0.autoscale")),
        (
            "HR303",
            "no room",
            f"{FIRST}.autoscale.max_replicas",
            put("endpoints.0.autoscale.max_replicas", 2),
        ),
        (
            "HR304",
            "to zero",
            f"{FIRST}.autoscale.min_replicas",
            put("endpoints.0.autoscale.min_replicas", 0),
        ),
        ("HR305", "all at once", f"{FIRST}.rollout", drop("endpoints.0.rollout")),
        (
            "HR306",
            "a blind rollout",
            f"{FIRST}.rollout.metrics",
            put(
                "endpoints.0.rollout.metrics",
                {"errors": None, "rejections": None, "latency": None, "predictions": None},
            ),
        ),
        (
            "HR307",
            "wide margins of errors",
            f"{FIRST}.rollout.metrics.errors.margin",
            put("endpoints.0.rollout.metrics.errors.margin", 0.5),
        ),
        (
            "HR307",
            "wide margins of latency",
            f"{FIRST}.rollout.metrics.latency.margin_ratio",
            put("endpoints.0.rollout.metrics.latency.margin_ratio", 10.0),
        ),
        (
            "HR308",
            "promoted unjudged",
            f"{FIRST}.rollout.on_timeout",
            put("endpoints.0.rollout.on_timeout", "promote"),
        ),
        ("HR309", "no access log", "gateway.access_log", put("gateway.access_log", False)),
        (
            "HR401",
            "unsigned models",
            "security.require_signature",
            put("security.require_signature", False),
        ),
        (
            "HR403",
            "a key that signs something else",
            "security.trusted_keys[0]",
            lambda document, folder: elliptic_signer(folder),
        ),
        (
            "HR404",
            "anybody's trust",
            "security.trusted_keys[0]",
            chmod("pki/signer.pub.pem", 0o666),
        ),
        ("HR405", "a path", f"{FIRST}.model", with_model("digits.txt", "weights")),
        ("HR406", "the newest", f"{FIRST}.model", put("endpoints.0.model", "digits")),
        ("HR407", "code is allowed", f"{FIRST}.allow_code", put("endpoints.0.allow_code", True)),
        ("HR408", "Python", f"{FIRST}.model", put("endpoints.0.runtime", "python")),
        ("HR409", "network", f"{FIRST}.network", put("endpoints.0.network", True)),
        (
            "HR701",
            "a key in a label",
            f"{FIRST}.labels.output[0]",
            put("endpoints.0.labels", {"output": ["hr_a1b2c3d4_QmFzZTY0LXNlY3JldC1vZi1hLWtleQ"]}),
        ),
        (
            "HR702",
            "a dangling file",
            "gateway.tls.client_ca_file",
            put("gateway.tls.client_ca_file", "./pki/gone.pem"),
        ),
        (
            "HR703",
            "no certificate",
            "gateway.tls.client_ca_file",
            write("pki/ca.pem", "not a certificate"),
        ),
        (
            "HR703",
            "no set of keys",
            "auth.jwt[0].jwks_file",
            write("pki/issuer.jwks.json", "[" * 10_000),
        ),
        ("HR704", "anybody's spec", "headrace.yaml", chmod("headrace.yaml", 0o666)),
    ]
]


def self_signed(folder: Path) -> None:
    """The authority's own certificate at the gateway."""
    (folder / "pki/server.pem").write_bytes(made_certificate(folder, name="localhost", own=True))


def nameless(folder: Path) -> None:
    (folder / "pki/server.pem").write_bytes(made_certificate(folder, name="", own=False))


def made_certificate(folder: Path, *, name: str, own: bool) -> bytes:
    """A certificate for the gateway's key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    key = load_pem_private_key((folder / "pki/server.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    common = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name or "gateway")])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(common)
        .issuer_name(common if own else issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=300))
    )
    if name:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def elliptic_signer(folder: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    data = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "pki/signer.pub.pem").write_bytes(data)


def server_file(facts: Facts) -> tuple[str, FileFact]:
    assert facts.spec.gateway.tls is not None
    path = facts.spec.gateway.tls.certificate_file
    return path, facts.files[path]


def with_certificate(
    change: Callable[[CertificateFact], CertificateFact],
) -> Callable[[Facts], Facts]:
    """The gateway's certificate, otherwise."""

    def changed(facts: Facts) -> Facts:
        path, file = server_file(facts)
        (first, *more) = file.certificates
        new = replace(file, certificates=(change(first), *more))
        return replace(facts, files={**facts.files, path: new})

    return changed


def with_key(**more: Any) -> Callable[[Facts], Facts]:  # noqa: ANN401  # of a dataclass
    def changed(facts: Facts) -> Facts:
        (key,) = facts.keys
        return replace(facts, keys=(key, replace(key, name="old", **more)))

    return changed


def with_home(**more: Any) -> Callable[[Facts], Facts]:  # noqa: ANN401  # of a dataclass
    return lambda facts: replace(facts, home=replace(facts.home, **more))


def with_listener(role: str, host: str, *, tls: bool = False) -> Callable[[Facts], Facts]:
    listener = Listener(role=role, host=host, port=8080, tls=tls)
    return lambda facts: replace(facts, listeners=(*facts.listeners, listener))


def with_software(name: str, version: str) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, software={**facts.software, name: version})


def same_key(key: KeyMaterial, **more: Any) -> KeyMaterial:  # noqa: ANN401  # of a dataclass
    """Another size of key, with the fingerprint of the private one beside it."""
    return replace(key, **more)


def without_tls(facts: Facts) -> Facts:
    spec = facts.spec
    gateway = spec.gateway.model_copy(update={"tls": None})
    auth = spec.auth.model_copy(update={"certificates": ()})
    endpoint = spec.endpoints[0].model_copy(update={"access": ("key",)})
    changed = {"gateway": gateway, "auth": auth, "endpoints": (endpoint,)}
    return replace(facts, spec=spec.model_copy(update=changed))


def vulnerable(facts: Facts) -> Facts:
    advisory = Advisory(
        id="GHSA-test",
        summary="smuggling",
        severity=Severity.CRITICAL,
        affected=(Affected(package="HTTPtools", ranges=(("0", "0.9.1", ""),)),),
    )
    return replace(facts, advisories=(advisory,))


def served_by_code(facts: Facts) -> Facts:
    (version,) = facts.versions
    return replace(facts, versions=(replace(version, runtime="python"),))


def another_version(signed: bool | None) -> Callable[[Facts], Facts]:  # noqa: FBT001  # in a table
    other = VersionFact(reference="digits:2", runtime="onnx", signed=signed, is_served=False)
    return lambda facts: replace(facts, versions=(*facts.versions, other))


def writable_model(facts: Facts) -> Facts:
    """A path instead of a version is another fault; here only who may write it is looked at."""
    endpoint = facts.spec.endpoints[0].model_copy(update={"model": "/srv/digits.onnx"})
    spec = facts.spec.model_copy(update={"endpoints": (endpoint,)})
    file = FileFact(path="/srv/digits.onnx", mode=0o666)
    return replace(facts, spec=spec, files={**facts.files, "/srv/digits.onnx": file})


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
            with_home(admin_socket=FileFact(path="/tmp/admin.sock", mode=0o666)),  # noqa: S108  # as above
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
