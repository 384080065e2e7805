"""Mutual TLS between gateways and the control plane: names and revocation of certificates.

A certificate is revoked by its fingerprint: a gateway may have another certificate with the same
name, and serial numbers are unique only per authority.
"""

import asyncio
import hashlib
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headrace.control.base.journal import ChangeSignal
from headrace.control.gateway.certificates import (
    Certificates,
    Mark,
    Pem,
    PemFiles,
    mark_of,
    show_certificate,
    tls_context,
)
from headrace.core import FailedPreconditionError
from headrace.core.spec.access import TlsSpec

PAIR: Final = "agents"
"""Name of this side's certificate in the set of certificates."""
AUTHORITIES: Final = "agents-authorities"
_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 0.5
_MAX_BYTES: Final = 16 << 20
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = re.compile(r"^sha-?256( fingerprint)?\s*[=:]\s*", re.IGNORECASE)


def server_context() -> ssl.SSLContext:
    """Return the TLS context of the listener, which requires a client certificate."""
    context = tls_context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # a resumed session is not verified again
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context() -> ssl.SSLContext:
    """Return the TLS context of an agent, which verifies the control plane's host name."""
    return tls_context(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(slots=True, kw_only=True)
class MutualTls:
    """Certificates of both sides. A replaced certificate is used immediately.

    New authorities are trusted immediately, and former ones until the next start.
    """

    certificates: Certificates
    directory: Path
    """Private directory of this user, for temporary files."""
    context: ssl.SSLContext
    is_server: bool = True
    pair: Pem | None = None
    authorities: Pem | None = None

    def open(self, settings: TlsSpec) -> None:
        """Read the files and start to watch them. Blocking.

        Raises:
            FailedPreconditionError: The files cannot be used.
        """
        other = "gateways' agents" if self.is_server else "the control plane"
        pair = PemFiles(
            name=PAIR,
            what=f"the certificate shown to {other}",
            certificate_file=Path(settings.certificate_file),
            key_file=Path(settings.key_file),
            is_server=self.is_server,
        )
        authorities = PemFiles(
            name=AUTHORITIES,
            what=f"the authorities of {other}",
            certificate_file=Path(settings.client_ca_file),
        )
        self.certificates.open(pair, self._load_pair)
        self.certificates.open(authorities, self._load_authorities)

    def _load_pair(self, pem: Pem) -> None:
        show_certificate(self.context, pem, self.directory)
        self.pair = pem

    def _load_authorities(self, pem: Pem) -> None:
        self.context.load_verify_locations(cadata=pem.certificates.decode("ascii", "replace"))
        self.authorities = pem


def agent_name(certificate: Mapping[str, Any]) -> str:
    """Return the subject of an `ssl` certificate: common name, else first DNS name or URI.

    Empty if it has none of these.
    """
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName" and value:
                return str(value)
    names: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    for preferred in ("DNS", "URI"):
        for kind, value in names:
            if kind == preferred and value:
                return value.rpartition("/")[2] if kind == "URI" else value
    return ""


def expires_at(certificate: Mapping[str, Any]) -> float | None:
    """Return when a certificate in `ssl`'s form expires, in seconds since 1970.

    TLS verifies it only at the start of a connection, which may be as old as the agent.
    """
    end = certificate.get("notAfter")
    return None if end is None else float(ssl.cert_time_to_seconds(str(end)))


def name_in(pem: bytes) -> str:
    """Return `agent_name` of the first certificate in a PEM file. Blocking: loads cryptography."""
    from cryptography import x509  # noqa: PLC0415  # takes a while to load
    from cryptography.x509.oid import NameOID  # noqa: PLC0415  # as above

    certificate = x509.load_pem_x509_certificate(pem)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    subject = tuple((("commonName", str(attribute.value)),) for attribute in common)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return agent_name({"subject": subject})
    alternatives = [
        *(("DNS", name) for name in names.get_values_for_type(x509.DNSName)),
        *(("URI", name) for name in names.get_values_for_type(x509.UniformResourceIdentifier)),
    ]
    return agent_name({"subject": subject, "subjectAltName": alternatives})


def may_report_for(certificate: str, name: str) -> bool:
    """Whether the subject of a certificate may report as `name`.

    `name` is the subject itself, or one of several gateways that share the certificate, such as
    pods of one Deployment.
    """
    return bool(certificate) and (name == certificate or name.startswith(f"{certificate}/"))


def name_with(certificate: str, name: str) -> str:
    """Return the full name of gateway `name` that uses a certificate."""
    return certificate if name in {"", certificate} else f"{certificate}/{name}"


def fingerprint_of(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate (DER), in hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()


def fingerprint_of_pem(certificate: bytes) -> str:
    """Return `fingerprint_of` the first certificate in PEM."""
    return fingerprint_of(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")))


def fingerprints_in(text: str) -> frozenset[str]:
    """Return the fingerprints in `text`: one per line, in openssl's format or without colons.

    `#` begins a comment.

    Raises:
        FailedPreconditionError: A line has no fingerprint; the message names it.
    """
    fingerprints = set()
    for number, line in enumerate(text.splitlines(), start=1):
        fingerprint = _PREFIX.sub("", line.partition("#")[0].strip())
        plain = fingerprint.replace(":", "").lower()
        if plain and _FINGERPRINT.fullmatch(plain) is None:
            raise FailedPreconditionError(
                f"line {number}: {fingerprint[:100]!r} is no SHA-256 fingerprint; write 64 "
                "hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256 -in FILE` "
                "prints them"
            )
        if plain:
            fingerprints.add(plain)
    return frozenset(fingerprints)


@dataclass(slots=True, kw_only=True)
class RevokedAgents:
    """Revoked fingerprints in `path`; None disables it. Read errors keep the last content."""

    path: Path | None = None
    fingerprints: frozenset[str] = frozenset()
    problem: str = ""
    _changes: ChangeSignal = field(default_factory=ChangeSignal)
    _mark: Mark | None = None

    def open(self) -> None:
        """Read the file, before the first request is served. Blocking.

        Raises:
            FailedPreconditionError: The file cannot be read: a configured revocation list must be
                in force.
        """
        if self.path is not None:
            self._mark = mark_of((self.path,))
            self.fingerprints = _read(self.path)

    def has(self, fingerprint: str) -> bool:
        """Whether a certificate is revoked."""
        return fingerprint in self.fingerprints

    async def wait_for(self, fingerprint: str) -> None:
        """Return when that certificate is revoked."""
        while not self.has(fingerprint):
            await self._changes.next.wait()

    async def run(self) -> None:
        """Poll the file until cancelled."""
        while self.path is not None:
            await asyncio.sleep(_POLL_INTERVAL_S)
            fingerprints = await asyncio.to_thread(self.poll)
            if fingerprints is not None:
                self.take(fingerprints)

    def poll(self) -> frozenset[str] | None:
        """Return the file's content if it changed since the last poll. Blocking."""
        assert self.path is not None, "the file must be readable"
        mark = mark_of((self.path,))
        if mark == self._mark:
            return None
        try:
            fingerprints = _read(self.path)
        except FailedPreconditionError as error:
            if str(error) != self.problem:  # read again each time: only a right may be missing
                self.problem = str(error)
                _LOG.error("%s; those that were revoked stay so", error)
            return None
        self._mark, self.problem = mark, ""
        return fingerprints

    def take(self, fingerprints: frozenset[str]) -> None:
        """Set the revoked fingerprints, and wake waiters with one of them."""
        extra = {"revoked": len(fingerprints)}
        _LOG.info("the list of revoked gateways is another", extra=extra)
        self.fingerprints = fingerprints
        self._changes.notify()


def _read(path: Path) -> frozenset[str]:
    description = f"the list of revoked gateways {path}"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {description}: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise FailedPreconditionError(f"{description} has more than {_MAX_BYTES} bytes")
    try:
        return fingerprints_in(data.decode("utf-8", "replace"))
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"{description}, {error}") from None
