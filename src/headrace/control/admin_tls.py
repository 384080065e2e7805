"""How is the management API encrypted, and how does it get a new certificate while it serves?"""

import asyncio
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.control.certificates import Certificates
from headrace.control.pem_files import Pem, PemFiles, PemWatch
from headrace.core import Clock, FailedPreconditionError
from headrace.core.files import write_atomic
from headrace.core.spec_access import TlsSpec
from headrace.gateway.pem import first_certificate

ADMIN: Final = "admin"
"""What its certificate is called among the others."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    return context


@dataclass(slots=True, kw_only=True)
class AdminTls:
    """The context of every connection to the management API and the metrics.

    `public_file`: where its certificate stands, for whoever calls from this machine.
    """

    certificates: Certificates
    clock: Clock
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
        watch = PemWatch(files=files)
        found = watch.look(self.clock.now())
        if found is None:
            raise FailedPreconditionError(watch.problem)
        self._load(found)
        watch.take(found)
        self.certificates.keep(watch, self._bring)

    async def _bring(self, pem: Pem) -> None:
        await asyncio.to_thread(self._load, pem)

    def _load(self, pem: Pem) -> None:
        """Show this to connections from now on. It was checked, so it cannot fail half-way."""
        with tempfile.NamedTemporaryFile(dir=self.public_file.parent) as file:  # mode 0600
            file.write(pem.certificates + b"\n" + (pem.key or b""))
            file.flush()
            self.context.load_cert_chain(file.name)
        write_atomic(self.public_file, first_certificate(pem.certificates), durable=False)
