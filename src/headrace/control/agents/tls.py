"""Mutual TLS between gateways and the control plane, names in certificates, and revoked ones.

A certificate is revoked by its fingerprint: a gateway may have another one with the same name, and
a serial number is unique at one authority only.
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
"""What this side's certificate is called among the others."""
AUTHORITIES: Final = "agents-authorities"
_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 0.5
_MOST_BYTES: Final = 16 << 20
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = re.compile(r"^sha-?256( fingerprint)?\s*[=:]\s*", re.IGNORECASE)


def server_context() -> ssl.SSLContext:
    """Of the listener: nobody gets in without a certificate."""
    context = tls_context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # a session that is taken up again is not checked again
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context() -> ssl.SSLContext:
    """Of an agent: the control plane's certificate has to name the host that was asked for."""
    return tls_context(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(slots=True, kw_only=True)
class MutualTls:
    """Both sides' certificates. A replaced certificate is shown at once.

    New authorities are believed at once, and former ones until the next start.
    """

    certificates: Certificates
    directory: Path
    """Of this user only, for what has to be a file for a moment."""
    context: ssl.SSLContext
    is_server: bool = True
    pair: Pem | None = None
    authorities: Pem | None = None

    def open(self, settings: TlsSpec) -> None:
        """Read the files; from now on they are watched. Blocking.

        Raises:
            FailedPreconditionError: They cannot be used.
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
    """Whom a certificate names, as `ssl` tells it: its common name, else its first DNS name or URI.

    Empty if it names nobody.
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
    """When a certificate, as `ssl` tells it, expires, in seconds since 1970.

    It was checked when the connection began, which may be as old as the agent.
    """
    end = certificate.get("notAfter")
    return None if end is None else float(ssl.cert_time_to_seconds(str(end)))


def name_in(pem: bytes) -> str:
    """As `agent_name`, of the first certificate in a file. Blocking: loads cryptography."""
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
    """Whether whom a certificate names may report as `name`.

    That is itself, or one of several with the same certificate, as pods of one Deployment have it.
    """
    return bool(certificate) and (name == certificate or name.startswith(f"{certificate}/"))


def name_with(certificate: str, name: str) -> str:
    """What a gateway that would be called `name` is called with a certificate."""
    return certificate if name in {"", certificate} else f"{certificate}/{name}"


def fingerprint_of(certificate: bytes) -> str:
    """The SHA-256 of a certificate (DER), in hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()


def fingerprint_of_pem(certificate: bytes) -> str:
    """As `fingerprint_of`, of the first certificate in PEM."""
    return fingerprint_of(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")))


def fingerprints_in(text: str) -> frozenset[str]:
    """One in each line, as openssl prints it or without colons; `#` begins a remark.

    Raises:
        FailedPreconditionError: A line holds none; the message says which.
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
    """The fingerprints in `path`; None for none ever. What cannot be read changes nothing."""

    path: Path | None = None
    fingerprints: frozenset[str] = frozenset()
    problem: str = ""
    _changes: ChangeSignal = field(default_factory=ChangeSignal)
    _mark: Mark | None = None

    def open(self) -> None:
        """Read the file. Blocking; before anybody is answered.

        Raises:
            FailedPreconditionError: It cannot be read: whoever names one wants it to count.
        """
        if self.path is not None:
            self._mark = mark_of((self.path,))
            self.fingerprints = _read(self.path)

    def has(self, fingerprint: str) -> bool:
        """Whether a certificate is believed no more."""
        return fingerprint in self.fingerprints

    async def wait_for(self, fingerprint: str) -> None:
        """Return when that certificate is believed no more."""
        while not self.has(fingerprint):
            await self._changes.next.wait()

    async def run(self) -> None:
        """Look at the file until cancelled."""
        while self.path is not None:
            await asyncio.sleep(_POLL_INTERVAL_S)
            fingerprints = await asyncio.to_thread(self.poll)
            if fingerprints is not None:
                self.take(fingerprints)

    def poll(self) -> frozenset[str] | None:
        """What the file says, if it is another one than at the last look. Blocking."""
        assert self.path is not None, "the file must be readable"
        mark = mark_of((self.path,))
        if mark == self._mark:
            return None
        try:
            fingerprints = _read(self.path)
        except FailedPreconditionError as error:
            if str(error) != self.problem:  # it is read again each time: it may only lack a right
                self.problem = str(error)
                _LOG.error("%s; those that were revoked stay so", error)
            return None
        self._mark, self.problem = mark, ""
        return fingerprints

    def take(self, fingerprints: frozenset[str]) -> None:
        """Believe no certificate of these any more, and whoever waits with one is told."""
        extra = {"revoked": len(fingerprints)}
        _LOG.info("the list of revoked gateways is another", extra=extra)
        self.fingerprints = fingerprints
        self._changes.notify()


def _read(path: Path) -> frozenset[str]:
    what = f"the list of revoked gateways {path}"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {what}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise FailedPreconditionError(f"{what} has more than {_MOST_BYTES} bytes")
    try:
        return fingerprints_in(data.decode("utf-8", "replace"))
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"{what}, {error}") from None
