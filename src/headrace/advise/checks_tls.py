"""Encryption: the gateway's, and that to other servers."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from headrace.advise.check import (
    Check,
    Hit,
    NamedFile,
    exposed,
    files_of,
    is_loopback_url,
    mode_text,
    shown,
    upstreams,
)
from headrace.advise.facts import Facts, FileFact, KeyMaterial, Need, Severity

_SOON: Final = timedelta(days=30)
_SHORTEST_BITS: Final = {"RSA": 2048, "DSA": 1 << 30, "EC": 224}  # DSA is never long enough
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})
_READS_OR_WRITES: Final = 6
_TLS: Final = """\
gateway:
  tls:
    certificate_file: ./server.pem
    key_file: ./server.key"""


def _plain_beyond(facts: Facts) -> Iterator[Hit]:
    beyond = exposed(facts, "gateway")
    plain = tuple(one for one in beyond if not one.tls)
    if plain:
        seen = f"the gateway listens on {shown(plain)} without TLS"
        yield Hit(where="gateway.tls", seen=seen, fix=_TLS)


def _old_tls(facts: Facts) -> Iterator[Hit]:
    tls = facts.spec.gateway.tls
    if tls is not None and tls.min_version == "1.2":
        yield Hit(where="gateway.tls.min_version", seen="TLS 1.2 is taken")


def _expired(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "certificate", "ca"):
        for one in file.certificates:
            if one.not_after <= facts.now:
                when = f"ended on {one.not_after:%Y-%m-%d}"
            elif one.not_before > facts.now:
                when = f"begins on {one.not_before:%Y-%m-%d}"
            else:
                continue
            yield Hit(where=named.place, seen=f"{named.path}: {one.subject} {when}")


def _expiring(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "certificate", "ca"):
        for one in file.certificates:
            if facts.now < one.not_after <= facts.now + _SOON:
                days = (one.not_after - facts.now).days
                seen = f"{named.path}: {one.subject} ends on {one.not_after:%Y-%m-%d}, {days} days"
                yield Hit(where=named.place, seen=seen)


def _weak_key(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "certificate", "ca"):
        for one in file.certificates:
            if _is_weak(one.key):
                seen = f"{named.path}: {one.subject} has {one.key.kind} of {one.key.bits} bits"
                yield Hit(where=named.place, seen=seen)


def _is_weak(key: KeyMaterial) -> bool:
    return 0 < key.bits < _SHORTEST_BITS.get(key.kind, 0)


def _weak_hash(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "certificate", "ca"):
        for one in file.certificates:
            # What an authority signs itself with proves nothing, whatever the algorithm is.
            if one.signature_hash in _WEAK_HASHES and not (
                named.kind == "ca" and one.is_self_signed
            ):
                seen = f"{named.path}: {one.subject} is signed with {one.signature_hash.upper()}"
                yield Hit(where=named.place, seen=seen)


def _self_signed(facts: Facts) -> Iterator[Hit]:
    if not exposed(facts, "gateway"):
        return
    for named, file in _gateway_certificate(facts):
        if file.certificates and file.certificates[0].is_self_signed:
            seen = f"{named.path}: {file.certificates[0].subject} is its own authority"
            yield Hit(where=named.place, seen=seen)


def _gateway_certificate(facts: Facts) -> Iterator[tuple[NamedFile, FileFact]]:
    for named, file in files_of(facts, "certificate"):
        if named.place.startswith("gateway."):
            yield named, file


def _nameless(facts: Facts) -> Iterator[Hit]:
    for named, file in _gateway_certificate(facts):
        if file.certificates and not file.certificates[0].names:
            seen = f"{named.path}: {file.certificates[0].subject} has no subjectAltName"
            yield Hit(where=named.place, seen=seen)


def _readable_key(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "key"):
        if file.opens(_READS_OR_WRITES):
            yield Hit(
                where=named.place,
                seen=f"{named.path} has mode {mode_text(file.mode)}",
                fix=f"chmod 600 {named.path}",
            )


def _mismatch(facts: Facts) -> Iterator[Hit]:
    keys = {named.place: (named, file) for named, file in files_of(facts, "key")}
    for named, file in files_of(facts, "certificate"):
        place = named.place.replace("certificate_file", "key_file")
        if place not in keys or not file.certificates or not keys[place][1].keys:
            continue
        key = keys[place][1].keys[0]
        if key.fingerprint != file.certificates[0].key.fingerprint:
            seen = f"{keys[place][0].path} is not the key of {named.path}"
            yield Hit(where=place, seen=seen)


def _plain_upstream(facts: Facts) -> Iterator[Hit]:
    for place, upstream in upstreams(facts.spec):
        scheme, _, rest = upstream.url.partition("://")
        if scheme in {"http", "grpc"} and not is_loopback_url(upstream.url):
            yield Hit(where=f"{place}.url", seen=upstream.url, fix=f"url: {scheme}s://{rest}")


def _is_encrypted(url: str) -> bool:
    return url.partition("://")[0] in {"https", "grpcs"} and not is_loopback_url(url)


def _unpinned_upstream(facts: Facts) -> Iterator[Hit]:
    for place, upstream in upstreams(facts.spec):
        if _is_encrypted(upstream.url) and (upstream.tls is None or not upstream.tls.ca_file):
            seen = f"{upstream.url} is believed by every authority that this machine knows"
            fix = "tls:\n  ca_file: ./their-ca.pem"
            yield Hit(where=f"{place}.tls.ca_file", seen=seen, fix=fix)


def _anonymous_upstream(facts: Facts) -> Iterator[Hit]:
    for place, upstream in upstreams(facts.spec):
        tls = upstream.tls
        if _is_encrypted(upstream.url) and (tls is None or not tls.certificate_file):
            seen = f"{upstream.url} is shown no certificate"
            fix = "tls:\n  certificate_file: ./gateway.pem\n  key_file: ./gateway.key"
            yield Hit(where=f"{place}.tls.certificate_file", seen=seen, fix=fix)


def _not_in_force(facts: Facts) -> Iterator[Hit]:
    for one in facts.in_force:
        # That it expired is found in the file itself, by a check of its own.
        if one.problem and "expired" not in one.problem:
            yield Hit(where=f"certificate {one.name}", seen=f"{one.file}: {one.problem}")


_SPEC_FILES: Final = (Need.SPEC, Need.FILES)
_RENEW: Final = "Replace the file; it is read again without a dropped connection."
CHECKS: Final = (
    Check(
        id="HR101",
        title="The gateway talks in plain text beyond this machine",
        severity=Severity.HIGH,
        why="Inputs, answers, keys and tokens can be read and changed on the way.",
        fix="Set `gateway.tls`; `headrace certs dev` makes certificates to try it with.",
        needs=(Need.SPEC,),
        find=_plain_beyond,
    ),
    Check(
        id="HR102",
        title="TLS 1.2 is taken",
        severity=Severity.LOW,
        why="TLS 1.3 has no weak choices left; every client of the last years speaks it.",
        fix='min_version: "1.3"',
        needs=(Need.SPEC,),
        find=_old_tls,
    ),
    Check(
        id="HR103",
        title="A certificate is not valid today",
        severity=Severity.CRITICAL,
        why="Callers refuse it, or learn to switch verification off.",
        fix=_RENEW,
        needs=_SPEC_FILES,
        find=_expired,
    ),
    Check(
        id="HR104",
        title="A certificate ends within 30 days",
        severity=Severity.MEDIUM,
        why="On that day every caller is refused at once.",
        fix=_RENEW,
        needs=_SPEC_FILES,
        find=_expiring,
    ),
    Check(
        id="HR105",
        title="A certificate's key is weak",
        severity=Severity.HIGH,
        why="Who computes the private key can be the gateway.",
        fix="Use a P-256 key, or RSA of 2048 bits and more.",
        needs=_SPEC_FILES,
        find=_weak_key,
    ),
    Check(
        id="HR106",
        title="A certificate is signed with a broken hash",
        severity=Severity.HIGH,
        why="Two certificates with one MD5 or SHA-1 can be made; today's clients refuse them.",
        fix="Have it signed with SHA-256.",
        needs=_SPEC_FILES,
        find=_weak_hash,
    ),
    Check(
        id="HR107",
        title="The gateway's certificate vouches for itself",
        severity=Severity.MEDIUM,
        why="Callers on other machines have to trust it by hand, or to verify nothing.",
        fix="Get one from an authority that callers know, such as your company's.",
        needs=_SPEC_FILES,
        find=_self_signed,
    ),
    Check(
        id="HR108",
        title="A private key can be read by others",
        severity=Severity.CRITICAL,
        why="Whoever reads it can be the gateway, without a trace.",
        fix="chmod 600 the file, and renew the certificate if others had accounts there.",
        needs=_SPEC_FILES,
        find=_readable_key,
    ),
    Check(
        id="HR109",
        title="A private key does not belong to its certificate",
        severity=Severity.HIGH,
        why="The gateway refuses the pair and keeps the old one, or does not start.",
        fix="Replace both files together.",
        needs=_SPEC_FILES,
        find=_mismatch,
    ),
    Check(
        id="HR110",
        title="The gateway's certificate names no host",
        severity=Severity.MEDIUM,
        why="Clients compare the host with subjectAltName only, so they refuse it.",
        fix="Have it made with the gateway's DNS names in subjectAltName.",
        needs=_SPEC_FILES,
        find=_nameless,
    ),
    Check(
        id="HR111",
        title="Requests go to another machine in plain text",
        severity=Severity.HIGH,
        why="Inputs and answers can be read and changed on the way to the upstream.",
        fix="Use https:// or grpcs://.",
        needs=(Need.SPEC,),
        find=_plain_upstream,
    ),
    Check(
        id="HR112",
        title="An upstream is not tied to an authority",
        severity=Severity.LOW,
        why="Any of the hundred authorities that the machine trusts can certify an impostor.",
        fix="Set `tls.ca_file` to the one that certifies this server.",
        needs=(Need.SPEC,),
        find=_unpinned_upstream,
    ),
    Check(
        id="HR113",
        title="An upstream does not learn who calls it",
        severity=Severity.LOW,
        why="It has to take requests of everybody who reaches it, past this gateway.",
        fix="Set `tls.certificate_file` and `tls.key_file`, and let it ask for them.",
        needs=(Need.SPEC,),
        find=_anonymous_upstream,
    ),
    Check(
        id="HR114",
        title="A certificate is not in force",
        severity=Severity.HIGH,
        why="The system goes on with the one before, or with none, until that one expires.",
        fix="Replace certificate and key by a pair that belongs together.",
        needs=(Need.CERTIFICATES,),
        find=_not_in_force,
    ),
)
