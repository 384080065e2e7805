"""Checks of TLS: at the gateway, and to other servers."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from headrace.advise.audit.check import (
    Hit,
    NamedFile,
    check,
    exposed,
    files_of,
    mode_text,
    shown,
    upstreams,
)
from headrace.advise.audit.facts import AuditFacts, CertificateFact, FileFact, FindingSeverity, Need
from headrace.core.names import is_loopback_url

_SOON: Final = timedelta(days=30)
_SHORTEST_BITS: Final = {"RSA": 2048, "DSA": 1 << 30, "EC": 224}  # DSA is never long enough
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})
_READS_OR_WRITES: Final = 6
_RENEW: Final = "Replace the file; it is read again without a dropped connection."
_TLS: Final = """\
gateway:
  tls:
    certificate_file: ./server.pem
    key_file: ./server.key"""


@check(
    "HR101",
    FindingSeverity.HIGH,
    "The gateway uses plain text beyond this machine",
    reason="Inputs, outputs, keys and tokens can be read and changed in transit.",
    fix="Set `gateway.tls`; `headrace certs dev` creates certificates for tests.",
)
def _plain_beyond(facts: AuditFacts) -> Iterator[Hit]:
    beyond = exposed(facts, "gateway")
    plain = tuple(listener for listener in beyond if not listener.tls)
    if plain:
        yield Hit("gateway.tls", f"the gateway listens on {shown(plain)} without TLS", fix=_TLS)


@check(
    "HR102",
    FindingSeverity.LOW,
    "TLS 1.2 is accepted",
    reason="TLS 1.3 has no weak options, and all current clients support it.",
    fix='min_version: "1.3"',
)
def _old_tls(facts: AuditFacts) -> Iterator[Hit]:
    tls = facts.spec.gateway.tls
    if tls is not None and tls.min_version == "1.2":
        yield Hit("gateway.tls.min_version", "TLS 1.2 is taken")


def _certificates(facts: AuditFacts) -> Iterator[tuple[NamedFile, CertificateFact]]:
    for named, file in files_of(facts, "certificate", "ca"):
        for certificate in file.certificates:
            yield named, certificate


@check(
    "HR103",
    FindingSeverity.CRITICAL,
    "A certificate is not valid today",
    reason="Callers refuse it, or disable verification.",
    fix="Replace the file; it is reloaded without closing connections.",
    needs=(Need.SPEC, Need.FILES),
)
def _expired(facts: AuditFacts) -> Iterator[Hit]:
    for named, certificate in _certificates(facts):
        if certificate.not_after <= facts.now:
            when = f"ended on {certificate.not_after:%Y-%m-%d}"
        elif certificate.not_before > facts.now:
            when = f"begins on {certificate.not_before:%Y-%m-%d}"
        else:
            continue
        yield Hit(named.location, f"{named.path}: {certificate.subject} {when}")


@check(
    "HR104",
    FindingSeverity.MEDIUM,
    "A certificate expires within 30 days",
    reason="From that day every caller is refused.",
    fix="Replace the file; it is reloaded without closing connections.",
    needs=(Need.SPEC, Need.FILES),
)
def _expiring(facts: AuditFacts) -> Iterator[Hit]:
    for named, certificate in _certificates(facts):
        if facts.now < certificate.not_after <= facts.now + _SOON:
            days = (certificate.not_after - facts.now).days
            evidence = (
                f"{named.path}: {certificate.subject} ends on {certificate.not_after:%Y-%m-%d}, "
                f"{days} days"
            )
            yield Hit(named.location, evidence)


@check(
    "HR105",
    FindingSeverity.HIGH,
    "A certificate's key is weak",
    reason="An attacker who computes the private key can impersonate the gateway.",
    fix="Use a P-256 key, or RSA of at least 2048 bits.",
    needs=(Need.SPEC, Need.FILES),
)
def _weak_key(facts: AuditFacts) -> Iterator[Hit]:
    for named, certificate in _certificates(facts):
        if 0 < certificate.key.bits < _SHORTEST_BITS.get(certificate.key.kind, 0):
            evidence = (
                f"{named.path}: {certificate.subject} has {certificate.key.kind} of "
                f"{certificate.key.bits} bits"
            )
            yield Hit(named.location, evidence)


@check(
    "HR106",
    FindingSeverity.HIGH,
    "A certificate is signed with a broken hash",
    reason="MD5 and SHA-1 signatures can be forged, and current clients refuse them.",
    fix="Use a certificate signed with SHA-256.",
    needs=(Need.SPEC, Need.FILES),
)
def _weak_hash(facts: AuditFacts) -> Iterator[Hit]:
    for named, certificate in _certificates(facts):
        # The self-signature of an authority proves nothing, regardless of the algorithm.
        if certificate.signature_hash in _WEAK_HASHES and not (
            named.kind == "ca" and certificate.is_self_signed
        ):
            evidence = (
                f"{named.path}: {certificate.subject} is signed with "
                f"{certificate.signature_hash.upper()}"
            )
            yield Hit(named.location, evidence)


@check(
    "HR107",
    FindingSeverity.MEDIUM,
    "The gateway's certificate is self-signed",
    reason="Callers on other machines must trust it manually, or skip verification.",
    fix="Use a certificate from an authority that callers trust, such as your company's.",
    needs=(Need.SPEC, Need.FILES),
)
def _self_signed(facts: AuditFacts) -> Iterator[Hit]:
    if not exposed(facts, "gateway"):
        return
    for named, file in _gateway_certificate(facts):
        if file.certificates and file.certificates[0].is_self_signed:
            evidence = f"{named.path}: {file.certificates[0].subject} is its own authority"
            yield Hit(named.location, evidence)


def _gateway_certificate(facts: AuditFacts) -> Iterator[tuple[NamedFile, FileFact]]:
    for named, file in files_of(facts, "certificate"):
        if named.location.startswith("gateway."):
            yield named, file


@check(
    "HR110",
    FindingSeverity.MEDIUM,
    "The gateway's certificate contains no host name",
    reason="Clients compare the host with subjectAltName only, so they refuse it.",
    fix="Create it with the gateway's DNS names in subjectAltName.",
    needs=(Need.SPEC, Need.FILES),
)
def _nameless(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in _gateway_certificate(facts):
        if file.certificates and not file.certificates[0].names:
            evidence = f"{named.path}: {file.certificates[0].subject} has no subjectAltName"
            yield Hit(named.location, evidence)


@check(
    "HR108",
    FindingSeverity.CRITICAL,
    "A private key is readable by other users",
    reason="A reader of the key can impersonate the gateway without a trace.",
    fix="chmod 600 the file, and renew the certificate if other users had access.",
    needs=(Need.SPEC, Need.FILES),
)
def _readable_key(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, "key"):
        if file.opens(_READS_OR_WRITES):
            yield Hit(
                named.location,
                f"{named.path} has mode {mode_text(file.mode)}",
                fix=f"chmod 600 {named.path}",
            )


@check(
    "HR109",
    FindingSeverity.HIGH,
    "A private key does not match its certificate",
    reason="The gateway refuses the pair and keeps the previous one, or does not start.",
    fix="Replace both files together.",
    needs=(Need.SPEC, Need.FILES),
)
def _mismatch(facts: AuditFacts) -> Iterator[Hit]:
    keys = {named.location: (named, file) for named, file in files_of(facts, "key")}
    for named, file in files_of(facts, "certificate"):
        location = named.location.replace("certificate_file", "key_file")
        if location not in keys or not file.certificates or not keys[location][1].keys:
            continue
        key = keys[location][1].keys[0]
        if key.fingerprint != file.certificates[0].key.fingerprint:
            yield Hit(location, f"{keys[location][0].path} is not the key of {named.path}")


@check(
    "HR111",
    FindingSeverity.HIGH,
    "Requests go to another machine in plain text",
    reason="Inputs and outputs can be read and changed in transit to the upstream.",
    fix="Use https:// or grpcs://.",
)
def _plain_upstream(facts: AuditFacts) -> Iterator[Hit]:
    for location, upstream in upstreams(facts.spec):
        scheme, _, rest = upstream.url.partition("://")
        if scheme in {"http", "grpc"} and not is_loopback_url(upstream.url):
            yield Hit(f"{location}.url", upstream.url, fix=f"url: {scheme}s://{rest}")


def _is_encrypted(url: str) -> bool:
    return url.partition("://")[0] in {"https", "grpcs"} and not is_loopback_url(url)


@check(
    "HR112",
    FindingSeverity.LOW,
    "An upstream is not restricted to an authority",
    reason="Any of the hundred authorities that the machine trusts can certify an impostor.",
    fix="Set `tls.ca_file` to the authority of this server.",
)
def _unpinned_upstream(facts: AuditFacts) -> Iterator[Hit]:
    for location, upstream in upstreams(facts.spec):
        if _is_encrypted(upstream.url) and (upstream.tls is None or not upstream.tls.ca_file):
            evidence = f"{upstream.url} is believed by every authority that this machine knows"
            yield Hit(f"{location}.tls.ca_file", evidence, fix="tls:\n  ca_file: ./their-ca.pem")


@check(
    "HR113",
    FindingSeverity.LOW,
    "An upstream cannot authenticate the gateway",
    reason="It has to accept requests from every host that reaches it, bypassing this gateway.",
    fix="Set `tls.certificate_file` and `tls.key_file`, and require them at the upstream.",
)
def _anonymous_upstream(facts: AuditFacts) -> Iterator[Hit]:
    for location, upstream in upstreams(facts.spec):
        tls = upstream.tls
        if _is_encrypted(upstream.url) and (tls is None or not tls.certificate_file):
            evidence = f"{upstream.url} is shown no certificate"
            fix = "tls:\n  certificate_file: ./gateway.pem\n  key_file: ./gateway.key"
            yield Hit(f"{location}.tls.certificate_file", evidence, fix=fix)


@check(
    "HR114",
    FindingSeverity.HIGH,
    "A certificate is not in force",
    reason="The system uses the previous certificate, or none, until it expires.",
    fix="Replace certificate and key with a matching pair.",
    needs=(Need.CERTIFICATES,),
)
def _not_in_force(facts: AuditFacts) -> Iterator[Hit]:
    for certificate in facts.in_force:
        # Expiry is found in the file, by another check.
        if certificate.problem and "expired" not in certificate.problem:
            yield Hit(
                f"certificate {certificate.name}", f"{certificate.file}: {certificate.problem}"
            )
