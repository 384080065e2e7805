"""TLS of the management API, with certificates that are replaced while it serves."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.control.certificates import Certificates
from headrace.control.pem_files import Pem, PemFiles, show_certificate, tls_context
from headrace.core.files import write_atomic
from headrace.core.spec_access import TlsSpec
from headrace.gateway.pem import first_certificate

ADMIN: Final = "admin"
"""What its certificate is called among the others."""


def _context() -> ssl.SSLContext:
    context = tls_context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


@dataclass(slots=True, kw_only=True)
class AdminTls:
    """The context of every connection to the management API and the metrics.

    `public_file`: where its certificate stands, for whoever calls from this machine.
    """

    certificates: Certificates
    public_file: Path
    context: ssl.SSLContext = field(default_factory=_context)

    def open(self, settings: TlsSpec) -> None:
        """Read the files; from now on they are watched. Blocking.

        Raises:
            FailedPreconditionError: They cannot be used.
        """
        files = PemFiles(
            name=ADMIN,
            what="the management API's certificate",
            certificate_file=Path(settings.certificate_file),
            key_file=Path(settings.key_file),
        )
        if settings.min_version == "1.3":
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.certificates.open(files, self._load)

    def _load(self, pem: Pem) -> None:
        """Show this to connections from now on. It was checked, so it cannot fail half-way."""
        show_certificate(self.context, pem, self.public_file.parent)
        write_atomic(self.public_file, first_certificate(pem.certificates), durable=False)
