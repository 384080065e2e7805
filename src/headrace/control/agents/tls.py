"""How is it known which gateway speaks? By its certificate, which the listener demands."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.control.certificates import Certificates
from headrace.control.pem_files import Pem, PemFiles, show_certificate, tls_context
from headrace.core.spec_access import TlsSpec

PAIR: Final = "agents"
"""What this side's certificate is called among the others."""
AUTHORITIES: Final = "agents-authorities"


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

    New authorities are believed at once, and former ones until the next start. `directory`: of
    this user only, for what has to be a file for a moment.
    """

    certificates: Certificates
    directory: Path
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
    for wanted in ("DNS", "URI"):
        for kind, value in names:
            if kind == wanted and value:
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
    subject = tuple((("commonName", str(one.value)),) for one in common)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return agent_name({"subject": subject})
    alternatives = [
        *(("DNS", name) for name in names.get_values_for_type(x509.DNSName)),
        *(("URI", name) for name in names.get_values_for_type(x509.UniformResourceIdentifier)),
    ]
    return agent_name({"subject": subject, "subjectAltName": alternatives})


def may_speak_for(certificate: str, name: str) -> bool:
    """Whether whom a certificate names may report as `name`.

    That is itself, or one of several with the same certificate, as pods of one Deployment have it.
    """
    return bool(certificate) and (name == certificate or name.startswith(f"{certificate}/"))


def name_with(certificate: str, name: str) -> str:
    """What a gateway that would be called `name` is called with a certificate."""
    return certificate if name in {"", certificate} else f"{certificate}/{name}"
